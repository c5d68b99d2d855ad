"""Training: the run folder, early stopping, schedules, resuming in other folders, `--dry_run`, threads and locks."""

import csv
import dataclasses
import errno
import io
import itertools
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CIFAR10, NAMES, ROOT, TINY, needs_cifar10
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cond_ddpm import CondDDPMPipeline, files
from cond_ddpm.cli import main, parse_train
from cond_ddpm.config import TrainConfig
from cond_ddpm.files import held
from cond_ddpm.models import forward_flop
from cond_ddpm.training import dry_run, save_pipeline, train
from cond_ddpm.training.optimizer import lr_factor
from cond_ddpm.training.state import Progress
from cond_ddpm.training.step import validation_draws

# DDPM's own objective and AdamW: in the few steps of a test, its loss falls more than it scatters.
PLAIN = {"prediction_type": "epsilon", "min_snr_gamma": None, "optimizer": "adamw", "adam_beta2": 0.999, "weight_decay": 0.0}
PLAIN |= {"learning_rate": 2e-3, "lr_scheduler": "constant", "lr_decay_share": 1.0, "lr_warmup_steps": 0}

# What the run of the fixture chooses, which gives a number of epochs.
AS_CHOSEN = {"fit": "crop", "random_flip": True, "augmentation_prob": 0.0, "validation_epochs": 1, "guidance_scale": 1.0}


@pytest.fixture
def config(shapes_parquet, tmp_path):
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="simple",
        unet={**TINY, "block_out_channels": [8, 16]},
        batch_size=16,
        num_validation_images=16,
        num_epochs=4,
        **PLAIN,
        num_images_per_class=2,
        num_inference_steps=2,
        save_images_epochs=2,
        output_dir=str(tmp_path / "run"),
    )


def _metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _unet(folder):
    return CondDDPMPipeline.from_pretrained(folder).unet.state_dict()


def _weights(run):
    return _unet(run / "pipeline")


@pytest.mark.end_to_end
def test_the_run_folder_holds_all_and_its_pipeline_samples(config):
    run = train(config)
    rows = _metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    for picture in (run / "data.png", run / "loss.png", *(run / "samples").iterdir()):
        with Image.open(picture) as opened:
            assert opened.size[0] > 200
    record = json.loads((run / "config.json").read_text())
    assert TrainConfig(**record["config"]) == dataclasses.replace(config, **AS_CHOSEN)
    assert record["resolved"]["unet"]["num_classes"] == 3 and record["resolved"]["class_names"] == NAMES
    assert record["versions"]["torch"] == version("torch") and record["command"]
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline.id2label == dict(enumerate(NAMES))
    assert pipeline(["square"], num_inference_steps=2).images[0].size == (8, 8)
    assert not (run / "pipeline.partial").exists()


@pytest.mark.end_to_end
def test_same_seed_same_weights_another_seed_others(config, tmp_path):
    runs = [
        train(dataclasses.replace(config, seed=seed, output_dir=str(tmp_path / f"{i}"), num_epochs=1, save_images_epochs=0))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (_weights(run) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.end_to_end
def test_max_train_steps_counts_steps_not_epochs(config):
    run = train(dataclasses.replace(config, num_epochs=1, max_train_steps=7, save_images_epochs=0))
    assert [row["step"] for row in _metrics(run)] == [5, 7]
    assert not list((run / "samples").iterdir())


@pytest.mark.end_to_end
def test_early_stopping_keeps_the_best_epoch(config, monkeypatch):
    """Validation losses 3, 2, 2, 2.5: epoch 2 is the best, and two epochs without better end the run."""
    losses, saved = iter([9, 3.0, 9, 2.0, 9, 2.0, 9, 2.5, 9, 1.0]), []  # of the raw weights, of the averaged ones, ...
    monkeypatch.setattr("cond_ddpm.training.epoch.validation_loss", lambda *_: next(losses))
    monkeypatch.setattr("cond_ddpm.training.epoch.save_pipeline", lambda pipeline, folder: saved.append(folder))
    run = train(dataclasses.replace(config, num_epochs=9, patience=2))
    assert [row["val_loss"] for row in _metrics(run)] == [3, 2, 2, 2.5]
    assert len(saved) == 2
    assert (run / "loss.png").exists() and (run / "samples" / "epoch_0004.png").exists()


@pytest.mark.end_to_end
def test_learning_guidance_chooses_the_best_epoch_anew(config, monkeypatch, tmp_path):
    """Losses 1, 0.5 before guidance begins and 4, 3 after it: the last weights are kept, and patience counts from there."""
    losses = [9, 1.0, 9, 0.5, 9, 4.0, 9, 3.0]
    given = iter(losses)
    monkeypatch.setattr("cond_ddpm.training.epoch.validation_loss", lambda *_: next(given))
    config = dataclasses.replace(config, model_guidance_scale=2.0, patience=2)
    run = train(config)
    assert [row["val_loss"] for row in _metrics(run)] == [1, 0.5, 4, 3]
    record = json.loads((run / "pipeline" / "results.json").read_text())["training"]
    assert (record["epoch"], record["val_loss"]) == (4, 3.0)
    assert record["guided_from"] == record["step"] / 2
    images = record["step"] * 16
    guided = record["training_flop"] / forward_flop(CondDDPMPipeline.from_pretrained(run / "pipeline").unet) - 3 * images
    assert guided == images / 2  # a forward pass more in the second half


@pytest.mark.end_to_end
def test_learning_guidance_goes_on_after_a_resume(config, tmp_path):
    """From a checkpoint before guidance is learned, and from one in the middle of its first epoch."""
    config = dataclasses.replace(config, model_guidance_scale=2.0, checkpointing_steps=1, checkpoints_total_limit=None)
    config = dataclasses.replace(config, save_images_epochs=0)
    run = train(config)
    half = _metrics(run)[1]["step"]
    for step in (half - 1, half + 1):
        checkpoint = str(run / f"checkpoint-{step:.0f}")
        resumed = train(
            dataclasses.replace(
                config, output_dir=str(tmp_path / "other"), resume_from_checkpoint=checkpoint, overwrite_output_dir=True
            )
        )
        assert all(torch.equal(a, b) for a, b in zip(_weights(run).values(), _weights(resumed).values(), strict=True))
    plain = train(dataclasses.replace(config, model_guidance_scale=1.0, output_dir=str(tmp_path / "plain")))
    assert not all(torch.equal(a, b) for a, b in zip(_weights(run).values(), _weights(plain).values()))


@pytest.mark.end_to_end
def test_without_ema_the_pipeline_has_the_last_weights(config, tmp_path):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    with_ema = _weights(train(config))
    without = _weights(train(dataclasses.replace(config, use_ema=False, output_dir=str(tmp_path / "raw"))))
    assert not torch.equal(with_ema["conv_in.weight"], without["conv_in.weight"])


@pytest.mark.end_to_end
def test_an_earlier_run_is_not_overwritten_unless_told(config):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    run = train(config)
    (run / "samples" / "epoch_0099.png").touch()
    with pytest.raises(ValueError, match=r"output_dir: expected a folder without a run, .* --overwrite_output_dir true"):
        train(config)
    # ... nor before all else is known to fit.
    with pytest.raises(ValueError, match="pos_dim"):
        train(dataclasses.replace(config, overwrite_output_dir=True, unet={"pos_dim": 13}))
    assert (run / "samples" / "epoch_0099.png").exists() and (run / "pipeline").exists()
    train(dataclasses.replace(config, overwrite_output_dir=True))
    assert not (run / "samples" / "epoch_0099.png").exists()


@pytest.mark.end_to_end
def test_a_failed_start_is_not_in_the_way_of_the_next(config):
    with pytest.raises(FileNotFoundError):
        train(dataclasses.replace(config, dataset="./nowhere"))
    assert (train(dataclasses.replace(config, num_epochs=1, save_images_epochs=0)) / "pipeline").exists()


@pytest.mark.parametrize("flags", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}])
def test_a_folder_of_something_else_is_never_touched(config, flags):
    (Path(config.output_dir) / "samples").mkdir(parents=True)
    (Path(config.output_dir) / "samples" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty folder or one of a run"):
        train(dataclasses.replace(config, **flags))
    assert (Path(config.output_dir) / "samples" / "mine.txt").read_text() == "mine"


@pytest.mark.end_to_end
def test_resuming_deletes_no_run_without_a_good_checkpoint(config):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    run = train(dataclasses.replace(config, checkpointing_steps=0))
    with pytest.raises(ValueError, match="expected a folder without a run"):
        train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert (run / "pipeline").exists()
    run = train(dataclasses.replace(config, overwrite_output_dir=True))
    (next(run.glob("checkpoint-*")) / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="is broken"), pytest.raises(ValueError, match="expected a folder without a run"):
        train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert list(run.glob("checkpoint-*"))


@pytest.mark.end_to_end
def test_resuming_into_another_folder(config, tmp_path):
    first = train(dataclasses.replace(config, num_epochs=1))
    other = dataclasses.replace(config, num_epochs=2, output_dir=str(tmp_path / "other"))
    run = train(dataclasses.replace(other, resume_from_checkpoint=str(first / "checkpoint-5")))
    assert [row["step"] for row in _metrics(run)] == [5, 10] and (first / "pipeline").exists()


@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.end_to_end
def test_mixed_precision_holds_in_training_and_not_for_the_noising(config, monkeypatch, precision, dtype):
    import cond_ddpm.training.state as module

    seen, original = set(), module.make_unet

    def make_unet(*arguments):
        unet = original(*arguments)
        unet.down_stages[0].blocks[0].conv1.register_forward_hook(
            lambda layer, inputs, output: seen.add((layer.training, output.dtype))
        )
        return unet

    monkeypatch.setattr(module, "make_unet", make_unet)
    train(dataclasses.replace(config, mixed_precision=precision, num_epochs=1))
    assert seen == {(True, dtype), (False, dtype)}


@pytest.mark.end_to_end
def test_a_runs_settings_can_be_run_again(config):
    run = train(dataclasses.replace(config, num_epochs=1, save_images_epochs=0))
    assert parse_train(["--config", str(run / "config.yaml")]) == dataclasses.replace(
        config, num_epochs=1, save_images_epochs=0, **AS_CHOSEN
    )


@pytest.mark.parametrize(
    "name, share, expected",
    [
        ("constant", 1.0, [1, 1, 1, 1, 1]),
        ("linear", 1.0, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.5, [1, 1, 1, 0.5, 0]),
        ("cosine", 1.0, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ("1-sqrt", 1.0, [1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0]),
    ],
)
def test_learning_rate_by_hand(name, share, expected):
    config = TrainConfig(lr_scheduler=name, lr_decay_share=share, lr_warmup_steps=0)
    assert [lr_factor(config, 99, done) for done in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected)


def test_warm_up_by_hand():
    config = TrainConfig(lr_scheduler="constant", lr_warmup_steps=4)
    assert [lr_factor(config, step, 0) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]


@pytest.mark.end_to_end
def test_the_samples_of_two_epochs_start_from_the_same_noise(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cond_ddpm.training.epoch.generate",
        lambda pipeline, labels, seeds, **_: seen.append((labels, list(seeds))) or np.zeros((6, 3, 8, 8), np.uint8),
    )
    train(config)
    assert seen == [([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5])] * 2


@needs_cifar10
@pytest.mark.parametrize("preset", ["simple_cifar10", "attention_cifar10"])
@pytest.mark.end_to_end
def test_presets_train_on_real_cifar10_with_tiny_networks(preset, tmp_path):
    """The study's settings with fewer channels and a smaller batch: the loss falls, the pipeline loads and samples."""
    small = ["--unet.block_out_channels", "[8,16]", "--unet.layers_per_block", "1", "--unet.patch_size", "2"]
    quick = ["--batch_size", "32", "--num_inference_steps", "2", "--num_images_per_class", "1", "--learning_rate", "2e-3"]
    where = ["--dataset", str(CIFAR10), "--output_dir", str(tmp_path / "run"), "--num_validation_images", "200"]
    arguments = ["--config", str(ROOT / f"configs/{preset}.yaml"), *small, *quick, *where]
    first = train(parse_train([*arguments, "--max_train_steps", "1"]))
    before = _metrics(first)[-1]["val_loss"]
    run = train(parse_train([*arguments, "--max_train_steps", "50", "--overwrite_output_dir", "true"]))
    assert _metrics(run)[-1]["val_loss"] < 0.9 * before
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline(["horse"], num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.end_to_end
def test_a_time_budget_ends_the_run_and_the_learning_rate(config):
    """By a clock that goes on by a second whenever it is read, which happens a few times a step."""
    config = dataclasses.replace(config, max_train_minutes=5, lr_scheduler="linear", save_images_epochs=0)
    run = train(config, clock=map(float, itertools.count()).__next__)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["elapsed_seconds"] for row in rows if "elapsed_seconds" in row]
    assert seconds == sorted(seconds) and seconds[-2] < 300 <= seconds[-1] < 310
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] > 0.9 * config.learning_rate and rates[-1] < 0.1 * config.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert (run / "pipeline").is_dir()


@pytest.mark.end_to_end
def test_tensorboard_gets_losses_and_images(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(dataclasses.replace(config, report_to="tensorboard"))
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second", "memory_gb", "val_loss", "val_loss_raw"} <= set(
        events.Tags()["scalars"]
    )
    assert events.Tags()["images"] and [event.step for event in events.Scalars("val_loss")] == [5, 10, 15, 20]


@pytest.mark.end_to_end
def test_gradient_accumulation_gives_the_same_losses(config, tmp_path):
    whole = train(dataclasses.replace(config, num_epochs=2, save_images_epochs=0))
    parts = dataclasses.replace(config, num_epochs=2, save_images_epochs=0, output_dir=str(tmp_path / "parts"))
    parts = train(dataclasses.replace(parts, gradient_accumulation_steps=4))
    for one, other in zip(_metrics(whole), _metrics(parts)):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)


@pytest.mark.end_to_end
def test_both_losses_are_logged_and_equal_without_an_average(config, tmp_path):
    assert all(row["val_loss"] != row["val_loss_raw"] for row in _metrics(train(config))[1:])
    raw = train(dataclasses.replace(config, use_ema=False, output_dir=str(tmp_path / "raw")))
    assert all(row["val_loss"] == row["val_loss_raw"] for row in _metrics(raw))


@pytest.mark.end_to_end
def test_dry_run_counts_and_trains_nothing(config):
    """FLOPs of a network whose convolutions can be counted by hand, times three for the backward."""
    text = dry_run(config)
    assert not Path(config.output_dir).exists()
    unet = CondDDPMPipeline.from_pretrained(train(config) / "pipeline").unet
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert f"{parameters / 1e6:.2f} million parameters" in text
    assert "80 images to train on, 16 held out, 3 classes, 3x8x8" in text and "20 of 16 images (4.0 epochs of 5)" in text
    with FlopCounterMode(display=False) as flops:
        unet(torch.zeros(1, 3, 8, 8), 0, torch.tensor([0]))
    assert f"{flops.get_total_flops() / 1e9:.3f} GFLOP" in text and "hours at" in text
    assert "\nmirrored:    half" in text and "\nduplicates:  0 exact" in text  # as a run says it


@pytest.mark.parametrize("optimizer, expected", [("adamw", 0), ("muon", 2)])
@pytest.mark.end_to_end
def test_dry_run_times_the_step_of_the_run(config, monkeypatch, optimizer, expected):
    """With clipping, accumulation, averages and the optimizer that the run has."""
    from cond_ddpm import ema
    from cond_ddpm.training import muon, step

    calls = {"orthogonalize": 0, "losses": 0, "ema": 0}

    def counted(name, function):
        def call(*arguments, **named):
            calls[name] += 1
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(muon, "orthogonalize", counted("orthogonalize", muon.orthogonalize))
    monkeypatch.setattr(step, "diffusion_losses", counted("losses", step.diffusion_losses))
    monkeypatch.setattr(ema.PowerEMA, "update", counted("ema", ema.PowerEMA.update))
    dry_run(dataclasses.replace(config, optimizer=optimizer, gradient_accumulation_steps=4))
    assert calls["ema"] >= 2 and calls["losses"] == 4 * calls["ema"]
    assert calls["orthogonalize"] >= expected * calls["ema"]


@pytest.mark.end_to_end
def test_dry_run_refuses_what_train_refuses(config, tmp_path):
    run = train(dataclasses.replace(config, max_train_steps=2, checkpointing_steps=1, save_images_epochs=0))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    more = dataclasses.replace(config, max_train_steps=5, resume_from_checkpoint="latest")
    assert "3 of 16 images" in dry_run(more) and "2 steps are done" in dry_run(more)
    (tmp_path / "file").touch()
    for refused, words in (
        (config, "output_dir: expected a folder without a run"),
        (dataclasses.replace(more, learning_rate=1e-5), "expected the settings it was made with"),
        (dataclasses.replace(config, output_dir=str(tmp_path)), "output_dir: expected an empty folder or one of a run"),
        (
            dataclasses.replace(config, output_dir=str(tmp_path / "file/run")),
            "output_dir: expected a folder that can be written",
        ),
        (dataclasses.replace(config, output_dir=str(tmp_path / "new"), batch_size=96), "batch_size: expected at most the 80"),
    ):
        for function in (train, dry_run):
            with pytest.raises((ValueError, OSError), match=words):
                function(refused)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if "lock" not in path.name}.items() <= before.items()


@pytest.mark.end_to_end
def test_ema_command_writes_a_pipeline_of_another_horizon(config, capsys):
    run = train(dataclasses.replace(config, save_images_epochs=0, num_epochs=8))
    assert len(list((run / "ema").glob("step-*.safetensors"))) == 20
    for std in ("0.05", "0.2"):
        assert main(["ema", "--run", str(run), "--std", std]) == 0
        assert f"pipeline-ema-{std}" in capsys.readouterr().out
    kept, made, wide = (_unet(run / name) for name in ("pipeline", "pipeline-ema-0.05", "pipeline-ema-0.2"))
    for name in kept:
        torch.testing.assert_close(made[name], kept[name], atol=2e-3, rtol=2e-3)  # the snapshots are in half precision
    assert not torch.allclose(wide["conv_in.weight"], kept["conv_in.weight"], atol=2e-3)
    assert main(["ema", "--run", str(run), "--std", "0.5"]) == 1
    assert "error: std: expected a share of the run" in capsys.readouterr().err


def test_processes_that_were_asked_for_and_did_not_start(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what `accelerate launch --cpu --num_processes 2` leaves behind
    with pytest.raises(ValueError, match="processes: expected several, as launched, got 1; on CPUs launch by `torchrun"):
        train(config)


def test_a_batch_that_cannot_be_split(config):
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of 3 \(1 processes with 3 accumulation steps\)"):
        train(dataclasses.replace(config, gradient_accumulation_steps=3))


def test_few_held_out_images_are_used_several_times_in_a_validation():
    assert validation_draws(1000, 49_000) == 1  # CIFAR-10
    assert validation_draws(30, 5000) == 5  # 150 draws
    assert validation_draws(6, 114) == 9  # two classes of 60 images: about half of 114
    assert validation_draws(35, 35) == 1


@pytest.mark.end_to_end
def test_a_run_of_before_validates_as_it_began(config, monkeypatch):
    """Each held-out image once, since its best loss is compared with those that follow."""
    import cond_ddpm.training.loop as module

    drawn, draw, restore = [], module.draw_validation, module.resume
    monkeypatch.setattr(module, "draw_validation", lambda *given: drawn.append(given[0]) or draw(*given))
    config = dataclasses.replace(config, num_validation_images=4, save_images_epochs=0, checkpointing_steps=6)
    run = train(config)
    (record, *_) = [json.loads(path.read_text()) for path in run.glob("checkpoint-*/progress.json")]
    assert record["progress"].pop("val_draws") == 11 and Progress(**record["progress"]).val_draws == 1
    more = dataclasses.replace(config, num_epochs=5, resume_from_checkpoint="latest")
    train(more)

    def as_before(state, *rest):
        restore(state, *rest)
        state.progress.val_draws = 1

    monkeypatch.setattr(module, "resume", as_before)
    train(dataclasses.replace(more, num_epochs=6))
    assert drawn == [44, 44, 4]


def test_each_use_of_a_held_out_image_has_its_own_noise_and_timestep(config, monkeypatch):
    import cond_ddpm.training.step as module

    seen, original = [], module.diffusion_losses

    def losses(unet, scheduler, images, labels, randomness, *rest):
        if not torch.is_grad_enabled():
            seen.append((images, randomness.timesteps, randomness.noise))
        return original(unet, scheduler, images, labels, randomness, *rest)

    monkeypatch.setattr(module, "diffusion_losses", losses)
    train(dataclasses.replace(config, num_validation_images=4, num_epochs=4, validation_epochs=4, max_train_steps=None))
    images, timesteps, noise = (torch.cat(parts)[:44] for parts in zip(*seen))
    assert len(images.unique(dim=0)) == 4 and len(timesteps.unique()) == len(noise.unique(dim=0)) == 44
    spread = torch.stack([timesteps[n::4].float() for n in range(4)]).mean(1) / config.num_train_timesteps
    assert (spread - 0.5).abs().max() < 0.2  # each image at low and at high noise


@pytest.mark.parametrize("switch", [pytest.param("compile", marks=pytest.mark.slow), "channels_last"])
@pytest.mark.end_to_end
def test_speed_switches_follow_the_same_course(config, tmp_path, switch):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    plain = _metrics(train(config))[-1]
    run = train(dataclasses.replace(config, output_dir=str(tmp_path / switch), **{switch: True}))
    assert _metrics(run)[-1]["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)
    assert "conv_in.weight" in _weights(run) and list((run / "ema").iterdir()) and list(run.glob("checkpoint-*"))


@pytest.mark.hostile(9)
@pytest.mark.end_to_end
def test_ema_command_overwrites_no_other_weights(config, tmp_path, capsys):
    config = dataclasses.replace(config, save_images_epochs=0, max_train_steps=5, num_ema_snapshots=5, report_to="none")
    run = train(config)
    ema = ["ema", "--run", str(run), "--std", "0.1"]
    assert main(ema) == 0 and main([*ema, "--step", "3"]) == 0
    last, third = _unet(run / "pipeline-ema-0.1"), _unet(run / "pipeline-ema-0.1-step-3")
    assert not torch.equal(last["conv_in.weight"], third["conv_in.weight"])
    assert main([*ema, "--step", "0"]) == 1
    before = (run / "pipeline" / "README.md").read_bytes(), _weights(run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    capsys.readouterr()
    for output, words in ((run / "pipeline", "is the run's own pipeline"), (tmp_path / "mine", "has other files")):
        assert main([*ema, "--output", str(output)]) == 1
        assert f"expected a new or empty folder, got {output}, which {words}" in capsys.readouterr().err
    assert (run / "pipeline" / "README.md").read_bytes() == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in _weights(run).items())
    # Results that were measured of the folder's earlier weights go with them.
    (run / "pipeline-ema-0.1" / "results.json").write_text("{}")
    assert main(ema) == 0 and not (run / "pipeline-ema-0.1" / "results.json").exists()


@pytest.mark.hostile(13)
@pytest.mark.end_to_end
def test_a_folder_that_another_run_is_in_is_refused_at_once(config):
    """... and left as it is; once the other is gone, however it ended, its lock is in nobody's way."""
    run = Path(config.output_dir)
    (run / "pipeline").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    script = f"import pathlib, time, cond_ddpm.files as f\nwith f.held(pathlib.Path({str(run)!r}), 'it'):\n"
    script += " print(1, flush=True)\n time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as other:
        try:
            assert other.stdout.readline() == b"1\n"
            for flags in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
                words = rf"which process {other.pid} on {platform.node()} has held since 20\d\d-"
                with pytest.raises(ValueError, match=f"output_dir: expected a folder that nobody else .*{words}"):
                    train(dataclasses.replace(config, **flags))
            assert (run / "pipeline").is_dir()
        finally:
            other.kill()
    (run / "pipeline").rmdir()
    (run / "config.json").unlink()  # what a lock leaves behind are no other files
    assert train(dataclasses.replace(config, max_train_steps=1, save_images_epochs=0, report_to="none")) == run
    with held(run, "output_dir"):
        pass


@pytest.mark.hostile(13)
@pytest.mark.end_to_end
def test_a_second_run_started_while_the_first_decodes_its_data_is_refused(config, monkeypatch):
    """... and does not end with a result that the first one then removes."""
    import cond_ddpm.training.batches as module

    config = dataclasses.replace(config, max_train_steps=1, save_images_epochs=0, report_to="none")
    original = module.load_training_images

    def decode(config):
        monkeypatch.setattr(module, "load_training_images", original)
        with pytest.raises(ValueError, match="output_dir: expected a folder that nobody else writes to"):
            train(config)
        return original(config)

    monkeypatch.setattr(module, "load_training_images", decode)
    assert (train(config) / "pipeline").is_dir()


@pytest.mark.hostile(13)
def test_a_folder_of_something_else_gets_no_lock(config):
    (Path(config.output_dir) / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected an empty folder or one of a run"):
        train(config)
    assert [path.name for path in Path(config.output_dir).iterdir()] == ["mine"]


@pytest.mark.hostile(5)
@pytest.mark.end_to_end
def test_tensorboard_shows_no_step_that_was_gone_back_from(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(config, save_images_epochs=0, checkpointing_steps=5, report_to="tensorboard")
    train(dataclasses.replace(config, max_train_steps=10))
    run = train(dataclasses.replace(config, max_train_steps=7, resume_from_checkpoint="checkpoint-5"))
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [5, 7]
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 8))


@pytest.mark.hostile(13)
@pytest.mark.end_to_end
def test_all_processes_stop_where_the_main_one_is_refused(config, shapes_parquet):
    run = Path(config.output_dir)
    run.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "train_cond_ddpm.py"), "--output_dir", str(run), "--dataset", str(shapes_parquet)]
    with held(run, "output_dir"):
        done = subprocess.run([*command, "--report_to", "none"], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "error: output_dir: expected a folder that nobody" in line]
    assert sorted(path.name for path in run.iterdir()) == [".lock", ".lock.json"]


@pytest.mark.hostile(14)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit to the size of files")
@pytest.mark.parametrize("limit", [0, 300, 2_000, 8_000, 15_000, 30_000, 50_000])
def test_files_that_cannot_be_written_are_named_in_one_line(config, monkeypatch, limit):
    """As on a full disk: no write goes beyond `limit` bytes once the run is under way."""
    import resource

    import cond_ddpm.training.loop as module

    original, (soft, hard) = module.draw_validation, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return original(*arguments)

    monkeypatch.setattr(module, "draw_validation", limited)
    for name in ("stdout", "stderr"):  # pytest's are files too, to which the limit applies
        monkeypatch.setattr(sys, name, io.StringIO())
    config = dataclasses.replace(config, max_train_steps=2, num_ema_snapshots=2, report_to="none")
    try:
        with pytest.raises(OSError, match=r"could not be written: .*; there is no earlier checkpoint; free space") as raised:
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value) and str(raised.value).startswith(config.output_dir)
    assert not list(Path(config.output_dir).rglob("*.partial"))


@pytest.mark.hostile(14)
@pytest.mark.end_to_end
def test_what_was_there_stays_where_new_content_cannot_be_written(config, tmp_path, monkeypatch):
    run = train(dataclasses.replace(config, max_train_steps=1, save_images_epochs=0, report_to="none"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.models.modeling_utils.ModelMixin.save_pretrained", full)
        with pytest.raises(OSError, match="pipeline: could not be written: No space left on device"):
            save_pipeline(pipeline, run / "pipeline")
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"config\.json: could not be written: No space left on device"):
            files.write(run / "config.json", "{}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.hostile(22)
def test_a_number_of_threads_that_no_system_gives(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--num_cpu_threads", "100000"])
    assert "num_cpu_threads: expected from 1 to 1024, got 100000" in capsys.readouterr().err


@pytest.mark.hostile(24)
@pytest.mark.parametrize(
    "given, launcher, asked_for, expected",
    [
        ("3", {}, None, 3),
        ("1", {}, None, 1),
        ("3", {"WORLD_SIZE": "1"}, None, 3),
        ("1", {"WORLD_SIZE": "1"}, None, 2),  # torchrun's, where nobody asked
        ("1", {"ACCELERATE_MIXED_PRECISION": "no"}, None, 2),
        ("1", {"WORLD_SIZE": "1"}, 1, 1),
        ("3", {}, 2, 2),
        ("", {}, None, 2),
        ("many", {}, None, 2),
    ],
)
def test_a_users_number_of_threads_is_taken(monkeypatch, given, launcher, asked_for, expected):
    from cond_ddpm import processes

    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"OMP_NUM_THREADS": given, **launcher}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(processes.psutil, "cpu_count", lambda logical: 2)
    taken = []
    monkeypatch.setattr(processes.torch, "set_num_threads", taken.append)
    processes._set_threads(torch.device("cpu"), asked_for)
    assert taken == [expected]
