"""Exact resume, and what breaks a run: kills, signals, full disks, broken files, losses that are not finite."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import NAMES, ROOT, TINY, shapes, write_parquet

import cond_ddpm.training.checkpoint as checkpoint
from cond_ddpm import CondDDPMPipeline
from cond_ddpm.config import TrainConfig
from cond_ddpm.ema import snapshot_steps
from cond_ddpm.fingerprints import file_checksum
from cond_ddpm.training import train
from cond_ddpm.training.checkpoint import checkpoints, fault, find_checkpoint, load_checkpoint, save_checkpoint
from cond_ddpm.training.state import Progress
from cond_ddpm.visualize import read_metrics


@pytest.fixture
def config(shapes_parquet, tmp_path):
    """Accumulation, two averages, bf16 and dropout: all that could make a resumed run differ."""
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="attention",
        unet={**TINY, "block_out_channels": [8, 16], "dropout": 0.1},
        batch_size=16,
        gradient_accumulation_steps=2,
        mixed_precision="bf16",
        num_validation_images=16,
        max_train_steps=23,  # epochs of 5 steps
        learning_rate=6e-4,  # what processes may differ by was found with this one
        lr_scheduler="cosine",
        lr_warmup_steps=5,
        save_images_epochs=0,
        checkpointing_steps=0,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


def _state(run):
    """Last weights, averages and optimizer moments, and the published weights."""
    tensors, states, progress, _ = load_checkpoint(checkpoints(run)[0])
    moments = {f"{key}/{name}": value for key, group in states["optimizer"]["state"].items() for name, value in group.items()}
    published = CondDDPMPipeline.from_pretrained(run / "pipeline").unet.state_dict()
    progress.elapsed_seconds = 0
    for row in progress.metrics:
        row.pop("images_per_second")
    return {**tensors, "optimizer": moments, "published": published}, progress


def _assert_same(one, two):
    (state_one, progress_one), (state_two, progress_two) = one, two
    assert progress_one == progress_two
    for part in state_one:
        assert state_one[part].keys() == state_two[part].keys()
        for name, value in state_one[part].items():
            assert torch.equal(value, state_two[part][name]), f"{part}: {name}"


def _stop_after(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal while it is in `step`."""
    import cond_ddpm.training.step as module

    original = module.draw_training

    def draw(config, at, *rest):
        if at == step - 1:
            os.kill(os.getpid(), number)
        return original(config, at, *rest)

    monkeypatch.setattr(module, "draw_training", draw)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.end_to_end
def test_a_run_stopped_at_any_step_ends_bitwise_the_same(config, tmp_path, monkeypatch, optimizer):
    config = dataclasses.replace(config, optimizer=optimizer)
    whole = dataclasses.replace(config, checkpointing_steps=1000, output_dir=str(tmp_path / "whole"))
    expected = _state(train(whole))
    steps = sorted(random.Random(7).sample(range(1, 23), 3))
    assert any(step % 5 for step in steps)
    for step in steps:
        run = dataclasses.replace(config, checkpointing_steps=1000, output_dir=str(tmp_path / f"at{step}"))
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
            _stop_after(patch, step)
            train(run)
        assert exit.value.code == 143
        assert [path.name for path in checkpoints(tmp_path / f"at{step}")] == [f"checkpoint-{step}"]
        torch.manual_seed(step)  # whatever state the resuming process is in
        found = _state(train(dataclasses.replace(run, resume_from_checkpoint="latest")))
        _assert_same(expected, found)


@pytest.mark.end_to_end
def test_steps_and_losses_are_written_once_whatever_was_stopped(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, checkpointing_steps=4)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        _stop_after(patch, 7)
        train(config)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')  # a kill came later than the last checkpoint
    run = train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 24))
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 15, 20, 23]
    assert {"images_per_second", "memory_gb", "learning_rate", "epoch"} <= rows[0].keys()


@pytest.mark.end_to_end
def test_only_the_newest_checkpoints_are_kept(config):
    run = train(dataclasses.replace(config, checkpointing_steps=5, checkpoints_total_limit=2))
    assert [path.name for path in checkpoints(run)] == ["checkpoint-23", "checkpoint-20"]
    again = dataclasses.replace(config, checkpointing_steps=5, checkpoints_total_limit=None, overwrite_output_dir=True)
    assert len(checkpoints(train(again))) == 5


@pytest.mark.end_to_end
def test_a_longer_run_goes_on_from_a_finished_one(config, tmp_path):
    config = dataclasses.replace(config, lr_scheduler="constant", max_train_steps=10, checkpointing_steps=1000)
    train(config)
    run = train(dataclasses.replace(config, max_train_steps=15, resume_from_checkpoint="latest"))
    whole = train(dataclasses.replace(config, max_train_steps=15, output_dir=str(tmp_path / "whole")))
    _assert_same(_state(whole), _state(run))


@pytest.mark.end_to_end
def test_a_run_at_a_constant_rate_can_be_ended_by_a_decay(config, tmp_path):
    """As one that was to decay from that step on; a last third that does not decay would be another."""
    config = dataclasses.replace(config, lr_scheduler="linear", lr_decay_share=0, max_train_steps=10, checkpointing_steps=1000)
    train(config)
    ending = dataclasses.replace(config, max_train_steps=15, lr_decay_share=1 / 3)
    run = train(dataclasses.replace(ending, resume_from_checkpoint="latest"))
    whole = train(dataclasses.replace(ending, output_dir=str(tmp_path / "whole")))
    _assert_same(_state(whole), _state(run))
    rates = [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1] < rates[0]


@pytest.mark.end_to_end
def test_resuming_with_other_settings_is_refused(config):
    run = train(dataclasses.replace(config, max_train_steps=2, checkpointing_steps=1))
    with pytest.raises(ValueError, match=rf"got batch_size 16 -> 8; change them back, or give --config {run}/config.yaml"):
        train(dataclasses.replace(config, batch_size=8, resume_from_checkpoint="latest"))
    with pytest.raises(ValueError, match=r"checkpoint-9 .* has checkpoint-2, checkpoint-1"):
        train(dataclasses.replace(config, resume_from_checkpoint="checkpoint-9"))
    assert train(dataclasses.replace(config, max_train_steps=3, resume_from_checkpoint="checkpoint-1")) == run


@pytest.mark.end_to_end
def test_latest_without_a_checkpoint_starts(config):
    run = train(dataclasses.replace(config, max_train_steps=2, resume_from_checkpoint="latest"))
    assert (run / "pipeline").is_dir()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_finish_the_step_write_a_checkpoint_and_say_how_to_resume(config, monkeypatch, capsys, number, code):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        _stop_after(patch, 3, number)
        train(config)
    assert exit.value.code == code
    assert "stopped after step 3" in capsys.readouterr().err
    assert find_checkpoint(checkpoint.Path(config.output_dir), "latest").name == "checkpoint-3"
    assert signal.getsignal(number) == before


@pytest.mark.end_to_end
def test_a_loss_that_is_not_finite_stops_the_run(config, monkeypatch):
    import cond_ddpm.training.step as module

    original = module.diffusion_losses
    calls = []

    def losses(*arguments, **named):
        calls.append(1)
        return original(*arguments, **named) * (float("nan") if len(calls) == 13 else 1)

    monkeypatch.setattr(module, "diffusion_losses", losses)
    # Two accumulation parts make two calls a step, so call 13 is in step 7.
    config = dataclasses.replace(config, checkpointing_steps=2, num_epochs=1, max_train_steps=None, batch_size=8)
    with pytest.raises(FloatingPointError, match=r"step 7: the loss is nan at learning rate .*/checkpoint-6\. Lower"):
        train(config)


def _some(run, step=1):
    return save_checkpoint(run, {"unet": {"w": torch.arange(3.0)}}, {"optimizer": {"a": [1]}}, Progress(step=step), {"x": 1})


def test_round_trip(tmp_path):
    folder = _some(tmp_path)
    tensors, states, progress, settings = load_checkpoint(folder)
    assert torch.equal(tensors["unet"]["w"], torch.arange(3.0))
    assert (states, progress, settings) == ({"optimizer": {"a": [1]}}, Progress(step=1), {"x": 1})
    assert fault(folder) is None and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest", "no manifest"])
def test_a_broken_checkpoint_is_skipped_by_name(tmp_path, damage):
    good, broken = _some(tmp_path, 5), _some(tmp_path, 10)
    (tmp_path / "checkpoint-15.partial").mkdir()  # a killed write
    weights = broken / "unet.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest":
        (broken / "manifest.json").write_text("{")
    else:
        (broken / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="checkpoint-10 is broken and skipped"):
        assert find_checkpoint(tmp_path, "latest") == good
    with pytest.raises(ValueError, match="expected 'latest' or a good checkpoint, got checkpoint-10"):
        find_checkpoint(tmp_path, "checkpoint-10")


def test_pruning_spares_the_one_just_written_whatever_lies_after_it(tmp_path):
    """A broken checkpoint-15 is not one of those kept: else checkpoint-10, the only good one, would go."""
    for step in (5, 10, 15):
        _some(tmp_path, step)
    checkpoint.prune_checkpoints(tmp_path, 1, step=10)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-15", "checkpoint-10"]


@pytest.mark.parametrize("function", ["save_file", "_flush"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, function):
    good = _some(tmp_path, 5)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, function, full)
    with pytest.raises(
        OSError, match=r"checkpoint-10: .* No space left on device.*; the last good one is .*checkpoint-5; free space"
    ):
        _some(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"] and fault(good) is None


def test_a_checkpoint_runs_no_code(tmp_path):
    folder = _some(tmp_path)
    torch.save(Progress(), folder / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_checkpoint(folder)


def _signed(folder):
    """Write the manifest anew, so that what a test put into the checkpoint counts as its own."""
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    (folder / "manifest.json").write_text(json.dumps({name: file_checksum(folder / name) for name in names}))


@pytest.mark.hostile(22)
@pytest.mark.parametrize("damage", ["{}", "null", "[]", "junk", "without unet", "progress"])
def test_a_checkpoint_that_lacks_or_cannot_read_what_is_needed_is_skipped(tmp_path, damage):
    good, broken = _some(tmp_path, 5), _some(tmp_path, 10)
    if damage == "junk":
        (broken / "optimizer.pt").write_bytes(b"junk")
    elif damage == "without unet":
        (broken / "unet.safetensors").unlink()
    elif damage == "progress":
        (broken / "progress.json").write_text("null")
    _signed(broken)
    if damage in ("{}", "null", "[]"):
        (broken / "manifest.json").write_text(damage)
    with pytest.warns(UserWarning, match="checkpoint-10 is broken and skipped"):
        assert find_checkpoint(tmp_path, "latest") == good


@pytest.mark.hostile(22)
def test_a_file_that_is_not_the_checkpoints_is_not_read(tmp_path):
    folder = _some(tmp_path)
    (folder / "notes.pt").write_bytes(b"junk")
    assert find_checkpoint(tmp_path, "latest") == folder
    assert set(load_checkpoint(folder)[1]) == {"optimizer"}


@pytest.fixture
def short(config):
    """A run of a few steps, for what is done before and after them."""
    small = {"model": "simple", "unet": {**TINY, "block_out_channels": [8, 16]}}
    return dataclasses.replace(config, **small, gradient_accumulation_steps=1, mixed_precision="no")


@pytest.mark.end_to_end
def test_a_checkpoint_whose_removal_was_interrupted_is_removed_at_the_next_start(short):
    short = dataclasses.replace(short, max_train_steps=3, checkpointing_steps=1, checkpoints_total_limit=2)
    run = train(short)
    (run / "checkpoint-1").mkdir()  # killed before it was empty, and then itself gone
    train(dataclasses.replace(short, resume_from_checkpoint="latest"))  # which has nothing else left to do
    assert [path.name for path in checkpoints(run)] == ["checkpoint-3", "checkpoint-2"]


@pytest.mark.end_to_end
def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default(short):
    folder = train(dataclasses.replace(short, max_train_steps=1, checkpointing_steps=1)) / "checkpoint-1"
    record = json.loads((folder / "progress.json").read_text())
    assert record["settings"].pop("timestep_sampling") == "uniform" and record["settings"].pop("weight_decay") == 0.01
    (folder / "progress.json").write_text(json.dumps(record))
    _signed(folder)
    more = dataclasses.replace(short, max_train_steps=2, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"made with, got timestep_sampling uniform -> logit_normal; change them back"):
        train(dataclasses.replace(more, timestep_sampling="logit_normal"))
    train(more)


@pytest.mark.hostile(3)
@pytest.mark.end_to_end
def test_resuming_with_other_data_is_refused(short, tmp_path):
    images, labels = shapes(96)
    data = tmp_path / "data"
    data.mkdir()
    write_parquet(data, images, labels)
    short = dataclasses.replace(short, dataset=str(data), max_train_steps=2, checkpointing_steps=1, lr_scheduler="constant")
    train(short)
    more = dataclasses.replace(short, max_train_steps=3, resume_from_checkpoint="latest")
    for other, words in (
        ((images, labels, ["circle", "cross", "square"]), "other class names (label 1: 'square' -> 'cross')"),
        ((images, labels, [*NAMES, "star"]), "other class names (3 -> 4 classes)"),
        ((*shapes(99), NAMES), "another number of images (96 -> 99)"),
        ((255 - images, labels, NAMES), "other contents"),
        ((images, labels[::-1], NAMES), "other contents"),
    ):
        write_parquet(data, *other)
        with pytest.raises(ValueError, match="expected the data it was made with, got " + re.escape(words)):
            train(more)
    # A checkpoint of before, which did not tell.
    folder = tmp_path / "run" / "checkpoint-2"
    record = json.loads((folder / "progress.json").read_text())
    del record["settings"]["data"]
    (folder / "progress.json").write_text(json.dumps(record))
    _signed(folder)
    with pytest.warns(UserWarning, match="does not record its data"):
        train(more)


@pytest.mark.hostile(3)
@pytest.mark.end_to_end
def test_resuming_with_another_precision_by_the_launcher_is_refused(short, monkeypatch):
    short = dataclasses.replace(short, max_train_steps=1, checkpointing_steps=1, mixed_precision=None)
    train(short)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="expected the settings it was made with, got mixed_precision no -> bf16"):
        train(dataclasses.replace(short, max_train_steps=2, resume_from_checkpoint="latest"))


@pytest.mark.hostile(5)
@pytest.mark.end_to_end
def test_going_back_leaves_the_run_as_if_the_later_steps_had_never_been(short, tmp_path, monkeypatch, capsys):
    """... also where the first attempt was killed while it moved them."""
    short = dataclasses.replace(
        short,
        lr_scheduler="constant",
        save_images_epochs=1,
        num_inference_steps=1,
        num_images_per_class=1,
        checkpointing_steps=5,
        checkpoints_total_limit=None,
        num_ema_snapshots=2,
    )
    whole = _state(train(dataclasses.replace(short, max_train_steps=10, output_dir=str(tmp_path / "whole"))))
    run = train(dataclasses.replace(short, max_train_steps=15))
    shutil.copytree(run / "checkpoint-15", run / "checkpoint-20")
    (run / "checkpoint-20" / "manifest.json").unlink()  # a broken one is of the abandoned course too
    original, moved = checkpoint.Path.rename, []

    def killed(self, target):
        moved.append(self)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return original(self, target)

    back = dataclasses.replace(short, max_train_steps=10, resume_from_checkpoint="checkpoint-5")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Path, "rename", killed)
        train(back)
    assert find_checkpoint(run, "latest").name == "checkpoint-10"
    capsys.readouterr()
    train(back)
    assert "the run goes back to step 5; what it had written after it is now in" in capsys.readouterr().err
    _assert_same(whole, _state(run))
    assert [path.name for path in checkpoints(run)] == ["checkpoint-10", "checkpoint-5"]
    assert max(snapshot_steps(run / "ema")) == 10
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in read_metrics(run)] == [5, 10]
    # Nothing is lost: the abandoned course lies aside, and can be gone on with in another folder.
    aside = {path.relative_to(folder).as_posix() for folder in run.glob("abandoned-5-*") for path in folder.rglob("*")}
    assert {"checkpoint-20", "checkpoint-15", "checkpoint-10", "ema/step-00000015.safetensors"} <= aside
    assert {"samples/epoch_0003.png", "metrics.csv", "metrics.jsonl", "loss.png", "pipeline/model_index.json"} <= aside


@pytest.mark.hostile(15)
@pytest.mark.end_to_end
def test_resuming_elsewhere_brings_the_best_weights_along(short, tmp_path, monkeypatch):
    losses = iter([9, 1.0, 9, 2.0])  # raw and averaged of epochs 1 and 2: the first remains the best
    monkeypatch.setattr("cond_ddpm.training.epoch.validation_loss", lambda *_: next(losses))
    first = train(dataclasses.replace(short, lr_scheduler="constant", max_train_steps=5, checkpointing_steps=5))
    more = dataclasses.replace(short, lr_scheduler="constant", resume_from_checkpoint=str(first / "checkpoint-5"))
    run = train(dataclasses.replace(more, max_train_steps=10, output_dir=str(tmp_path / "other")))
    # ... also where nothing is left to do.
    ended = train(dataclasses.replace(more, max_train_steps=5, output_dir=str(tmp_path / "ended")))
    expected = CondDDPMPipeline.from_pretrained(first / "pipeline").unet.state_dict()
    for folder in (run, ended):
        found = CondDDPMPipeline.from_pretrained(folder / "pipeline").unet.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert json.loads((folder / "pipeline" / "results.json").read_text())["training"]["step"] == 5
        assert (folder / "pipeline" / "README.md").is_file() and (folder / "loss.png").is_file()


@pytest.mark.hostile(15)
@pytest.mark.end_to_end
def test_an_older_checkpoint_elsewhere_takes_the_next_epoch_for_the_best(short, tmp_path, monkeypatch):
    losses = iter([9, 1.0, 9, 2.0])
    monkeypatch.setattr("cond_ddpm.training.epoch.validation_loss", lambda *_: next(losses))
    first = train(dataclasses.replace(short, lr_scheduler="constant", max_train_steps=5, checkpointing_steps=5))
    (first / "checkpoint-5" / "best.pt").unlink(missing_ok=True)  # as it was before it was kept
    _signed(first / "checkpoint-5")
    other = dataclasses.replace(short, lr_scheduler="constant", max_train_steps=10, output_dir=str(tmp_path / "other"))
    run = train(dataclasses.replace(other, resume_from_checkpoint=str(first / "checkpoint-5")))
    assert json.loads((run / "pipeline" / "results.json").read_text())["training"]["step"] == 10


@pytest.mark.hostile(17)
@pytest.mark.end_to_end
def test_a_run_that_is_past_its_end_says_so(short, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        _stop_after(patch, 3)
        train(short)
    less = dataclasses.replace(short, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"max_train_steps: expected more than the 3 steps .* got an end after 2 steps"):
        train(dataclasses.replace(less, max_train_steps=2))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        _stop_after(patch, 7)
        train(less)
    run = train(dataclasses.replace(less, max_train_steps=6))
    assert "7 steps are done, and the run ends after 6 steps" in capsys.readouterr().out
    assert (run / "pipeline" / "loss.png").is_file() and len(read_metrics(run)) == 1
    assert not list(run.glob("abandoned-*"))


@pytest.mark.hostile(22)
@pytest.mark.end_to_end
def test_lines_of_metrics_that_are_none_are_dropped_and_the_good_ones_kept(short):
    short = dataclasses.replace(short, lr_scheduler="constant", max_train_steps=2, checkpointing_steps=1)
    run = train(short)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'null\n[1]\n3\n\xff\xfe\n{"step": null}\n{"loss": 1}\n{"step": 9, "loss": null}\n'
            b'{"step": 1, "loss": 1, "learning_rate": "x"}\n{"step"'
        )
    train(dataclasses.replace(short, max_train_steps=3, resume_from_checkpoint="latest"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]


@pytest.mark.hostile(24)
@pytest.mark.end_to_end
def test_an_epoch_has_one_row_though_the_run_ended_within_it_and_went_on(short, tmp_path):
    short = dataclasses.replace(short, lr_scheduler="constant", checkpointing_steps=100)
    train(dataclasses.replace(short, max_train_steps=7))
    run = train(dataclasses.replace(short, max_train_steps=10, resume_from_checkpoint="latest"))
    whole = train(dataclasses.replace(short, max_train_steps=10, output_dir=str(tmp_path / "whole")))
    found, expected = read_metrics(run), read_metrics(whole)
    for row in (*found, *expected):
        del row["images_per_second"]
    assert found == expected and [row["epoch"] for row in found] == [1, 2]


def _launched(config):
    """The script and the flags that make this config."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None and name != "unet"}
    given |= {f"unet.{name}": json.dumps(value) for name, value in config.unet.items()}
    return [str(ROOT / "train_cond_ddpm.py"), *(f"--{name}={value}" for name, value in given.items())]


def _losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], [row["val_loss"] for row in rows if "val_loss" in row]


@pytest.mark.parametrize(
    "processes, optimizer, tolerance",
    [
        (2, "adamw", 1e-5),
        pytest.param(2, "muon", 1e-4, marks=pytest.mark.integration),
        pytest.param(4, "adamw", 1e-5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.end_to_end
def test_two_processes_follow_the_course_of_one(config, tmp_path, processes, optimizer, tolerance):
    """Same seed, 20 steps, losses equal to 1e-5 relative: each step's, averaged over the processes, and the validation's.

    Muon's iteration is in bfloat16, where a last bit's difference of the gradient may be rounded to one of 2^-8.
    """
    config = dataclasses.replace(
        config,
        optimizer=optimizer,
        mixed_precision="no",
        unet={**config.unet, "dropout": 0.0},
        max_train_steps=20,
        gradient_accumulation_steps=1,
        save_images_epochs=2,
        num_inference_steps=2,
        num_images_per_class=1,
        checkpointing_steps=10,
    )
    one = train(config)
    two = dataclasses.replace(config, output_dir=str(tmp_path / "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*command, *_launched(two)], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "config.json").read_text())["resolved"]["num_processes"] == processes
    for found, expected in zip(_losses(tmp_path / "two"), _losses(one)):
        assert len(found) == len(expected)
        assert found == pytest.approx(expected, rel=tolerance)
    assert (tmp_path / "two" / "samples" / "epoch_0004.png").exists()
    # ... and one process goes on from what several wrote.
    train(dataclasses.replace(two, resume_from_checkpoint="checkpoint-10"))
    for found, expected in zip(_losses(tmp_path / "two"), _losses(one)):
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow
def test_several_processes_stop_together(config, tmp_path):
    """SIGTERM to torchrun, which passes it on: one whole checkpoint, and no process waits for another."""
    config = dataclasses.replace(config, max_train_steps=100_000, logging_steps=5)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *_launched(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        rows = checkpoint.Path(config.output_dir) / "metrics.jsonl"
        while not rows.exists() or len(rows.read_text().splitlines()) < 10:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=600)
    assert "repeat the command with --resume_from_checkpoint latest" in printed
    (folder,) = checkpoints(checkpoint.Path(config.output_dir))
    assert fault(folder) is None


def _train_until_killed(settings, after_seconds):
    """In a process of its own: train, and be killed as by `kill -9` or a power cut after so many seconds."""
    import threading

    if after_seconds is not None:
        threading.Timer(after_seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    train(TrainConfig(**settings))


@pytest.mark.slow
def test_twenty_kills_lose_only_the_steps_since_the_last_checkpoint(config, tmp_path):
    """The run ends bitwise as one that was never killed; checkpoints, metrics and the published pipeline are whole."""
    import multiprocessing

    config = dataclasses.replace(config, max_train_steps=400, checkpointing_steps=3, num_ema_snapshots=5, num_cpu_threads=1)
    expected = _state(train(dataclasses.replace(config, output_dir=str(tmp_path / "whole"))))
    context = multiprocessing.get_context("forkserver")  # a server that has imported torch forks each run in no time
    context.set_forkserver_preload(["cond_ddpm.training"])
    settings = dataclasses.asdict(dataclasses.replace(config, resume_from_checkpoint="latest"))
    rng, kills, reached = random.Random(0), 0, []
    run = checkpoint.Path(config.output_dir)
    while kills < 20:
        process = context.Process(target=_train_until_killed, args=(settings, rng.uniform(1.0, 2.5)))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before its twentieth kill: train longer"
        kills += 1
        newest = checkpoint.newest_good_checkpoint(run)
        reached.append(0 if newest is None else int(newest.name.partition("-")[2]))
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}") and "loss" in json.loads(line)]
        assert max(steps, default=0) - reached[-1] <= 3
        if (run / "pipeline").exists():
            CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert reached == sorted(reached) and reached[-1] > 0
    process = context.Process(target=_train_until_killed, args=(settings, None))
    process.start()
    process.join()
    assert process.exitcode == 0
    _assert_same(expected, _state(run))
    assert not list(run.glob("*.partial"))
    print(f"newest checkpoint after each kill: {reached}")
