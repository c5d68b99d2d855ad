"""What training chooses by `--minutes`, weights to start from, and changes of images of which the network is told."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import NAMES, TINY_HYBRID, make_pipeline, make_unet, shapes, write_parquet

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import main, parse_train
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.settings import unless_chosen
from cond_ddpm.data import LabelledImages, make_batch
from cond_ddpm.data.augmentation import augment
from cond_ddpm.diffusion import AUGMENT_DIM, draw_training
from cond_ddpm.models import HybridUNet2DModel
from cond_ddpm.training import train
from cond_ddpm.training.batches import as_recorded
from cond_ddpm.training.network import make_unet as network_of
from cond_ddpm.training.network import start_from_base, with_base
from cond_ddpm.training.plan import LENGTHS, SIZES, plan

FLOP = {"xs": 0.137, "s": 0.734, "m": 4.0, "l": 12.6}  # GFLOP of a forward pass, 32x32x3


def _machine(gflop_per_second, seen=None):
    def speed(config):
        if seen is not None:
            seen.append(config.unet["size"])
        return gflop_per_second / 3 / FLOP[config.unet["size"]]

    return speed


TWO_CORES = _machine(176)  # 80 images/s of size s, as docs/LOG.md has it
GPU = _machine(60_000)


def _plan(minutes, num_images=50_000, speed=TWO_CORES, is_gpu=False, parts=1, **settings):
    config = TrainConfig(**{"minutes": minutes, "model": "hybrid", "resolution": 32, **settings})
    return plan(config, num_images, 10, speed, is_gpu, parts)


# The rule


def test_the_sizes_of_the_table_are_those_of_the_networks():
    assert list(SIZES) == list(HybridUNet2DModel.SIZES)[1:]  # without tiny, which is for tests
    for name, size in SIZES.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in HybridUNet2DModel(size=name).parameters())
        assert parameters / 1e6 == pytest.approx(size.parameters, rel=0.05)


def test_it_agrees_with_the_presets():
    """An hour of CIFAR-10 on two cores: size s, batches of 64, about 4,449 steps. Three minutes of digits: size xs."""
    hour, _ = _plan(60)
    assert (hour.unet["size"], hour.batch_size, hour.learning_rate) == ("s", 64, 3e-3)
    assert hour.unet["activation"] == "squared_relu"
    assert 0.8 < hour.max_train_steps / 4449 < 1.1 and 150 < hour.lr_warmup_steps < 300
    digits, _ = _plan(3, num_images=3600)
    assert digits.unet["size"] == "xs" and 500 <= digits.max_train_steps <= 1500
    gpu, _ = _plan(60, speed=GPU, is_gpu=True)
    assert (gpu.unet["size"], gpu.batch_size, gpu.learning_rate) in [("m", 256, 6e-4), ("l", 256, 6e-4)]


@pytest.mark.parametrize("num_images", [54, 1000, 50_000])
@pytest.mark.parametrize("machine", [TWO_CORES, GPU])
def test_more_minutes_never_choose_less(num_images, machine):
    before = None
    for minutes in (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 600, 3000):
        chosen, _ = _plan(minutes, num_images, machine, is_gpu=machine is GPU)
        size, images = list(SIZES).index(chosen.unet["size"]), chosen.max_train_steps * chosen.batch_size
        assert chosen.max_train_minutes == minutes and images <= 1000 * num_images
        if before is not None:
            assert size >= before[0]
            if size == before[0]:
                assert images >= 0.99 * before[1]
        before = size, images


def test_no_network_is_chosen_that_would_see_too_few_images_within_the_most_passes():
    """200 images, 1,000 times each, are fewer than l needs, however fast the machine is."""
    chosen, notes = _plan(30, num_images=200, speed=GPU, is_gpu=True)
    assert SIZES[chosen.unet["size"]].images <= 200_000 < SIZES["l"].images
    assert "each seen 1,000 times" in "\n".join(notes)


def test_a_faster_machine_gets_at_least_as_large_a_network():
    sizes = [list(SIZES).index(_plan(10, speed=_machine(speed))[0].unet["size"]) for speed in np.geomspace(10, 1e6, 12)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[-1] == len(SIZES) - 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_size", 7),
        ("learning_rate", 1e-5),
        ("lr_warmup_steps", 0),
        ("max_train_steps", 12),
        ("guidance_scale", 1.0),
        ("augmentation_prob", 0.7),
        ("validation_epochs", 3),
        ("save_images_epochs", 0),
        ("patience", None),
        ("unet", {"size": "m", "patch_size": 1, "activation": "silu", "dropout": 0.3}),
        ("unet", {**TINY_HYBRID, "patch_size": 1, "activation": "silu", "dropout": 0.0}),
    ],
)
def test_what_is_given_stays(name, value):
    speed = lambda config: 100.0  # noqa: E731
    chosen, _ = _plan(5, 200, speed, **{name: value})
    assert getattr(chosen, name) == value


def test_small_data_gets_smaller_batches_few_enough_passes_and_changed_images():
    chosen, notes = _plan(60, num_images=200)
    assert chosen.max_train_steps * chosen.batch_size <= 1000 * 200
    assert chosen.augmentation_prob > 0 and chosen.unet["dropout"] > 0
    epochs = chosen.max_train_steps / (200 // chosen.batch_size)
    assert 10 <= epochs / chosen.validation_epochs <= 31
    large, _ = _plan(60)
    assert large.augmentation_prob == 0 and "dropout" not in large.unet and large.validation_epochs == 1
    assert "--augmentation_prob" in "\n".join(notes) and f"{chosen.max_train_steps:,}" in "\n".join(notes)
    short, _ = _plan(1, num_images=200, speed=_machine(80))
    assert short.batch_size == 16 and short.max_train_steps > 500


def test_a_base_model_learns_few_images_by_heart_sooner_so_they_are_changed_sooner():
    """255 seconds of 100 images/s: each of 300 images 85 times, each of 1,000 of them 25 times. Passes that leave out what
    does not fill a batch are more, and do not count: 400 of 64, of 114 images that are each seen 225 times."""
    speed = lambda config: 100.0  # noqa: E731
    probs = {
        (num_images, base): _plan(5, num_images, speed, init_from=base)[0].augmentation_prob
        for num_images in (300, 1000)
        for base in (None, "cifar10")
    }
    assert probs == {(300, None): 0.0, (300, "cifar10"): 0.2, (1000, None): 0.0, (1000, "cifar10"): 0.0}
    chosen, _ = _plan(5, 114, speed, batch_size=64, max_train_steps=400)
    assert chosen.augmentation_prob == 0.0
    chosen, _ = _plan(5, 114, speed, batch_size=64, max_train_steps=540)  # 303 times
    assert chosen.augmentation_prob == 0.2


def test_the_batch_is_a_multiple_of_the_processes_and_no_larger_than_the_data():
    chosen, _ = _plan(1, num_images=54, parts=4)
    assert chosen.batch_size % 4 == 0 and chosen.batch_size <= 54
    with pytest.raises(ValueError, match="batch_size: expected at most the 54 training images, got 64; give --batch_size 52"):
        _plan(1, num_images=54, parts=4, batch_size=64)
    with pytest.raises(ValueError, match="processes: expected at most one for each of the 3 training images, got 4"):
        _plan(1, num_images=3, parts=4)


def test_without_minutes_but_with_a_length_settings_are_as_they_were():
    """64 images, or as many as there are; the rest as in earlier versions, whatever the machine."""
    config = TrainConfig(model="hybrid", resolution=32, max_train_steps=5)
    chosen, notes = plan(config, 1000, 10, speed=lambda config: pytest.fail("measured"))
    assert (chosen.batch_size, chosen.learning_rate, chosen.lr_warmup_steps, chosen.num_epochs) == (64, 3e-3, 200, 50)
    assert (chosen.guidance_scale, chosen.augmentation_prob, chosen.unet, notes) == (1.0, 0.0, {}, [])
    chosen, notes = plan(config, 54, 10, speed=lambda config: pytest.fail("measured"))
    assert chosen.batch_size == 54 and notes == ["batch: 54 images, because there are 54 to train on (--batch_size)"]


def test_a_network_that_does_not_fit_into_the_memory_is_not_chosen():
    chosen, notes = _plan(600, speed=lambda config: None if config.unet["size"] == "s" else 1000.0)
    assert chosen.unet["size"] == "xs" and "s needs more memory than there is" in "\n".join(notes)
    with pytest.raises(MemoryError, match="out of memory: a step of 64 images of 32 pixels does not fit; lower --batch_size"):
        _plan(600, speed=lambda config: None)


def test_a_network_that_is_out_of_reach_is_not_measured():
    seen = []
    _plan(60, speed=_machine(176, seen))
    assert seen == ["xs", "s"]


@pytest.mark.parametrize("resolution, patch", [(8, 1), (16, 1), (28, 2), (32, 2), (48, 2), (64, 4), (128, 4), (30, 1)])
def test_patches_grow_with_the_images(resolution, patch):
    assert _plan(1, resolution=resolution)[0].unet["patch_size"] == patch


def test_a_patch_has_no_more_values_than_the_network_has_channels():
    """Else the noise of the others could not be predicted, and would stay in each sample as grain."""
    for channels, resolution in ((1, 32), (3, 32), (1, 64), (3, 64), (1, 128), (3, 128), (3, 256)):
        config = TrainConfig(minutes=1, model="hybrid", resolution=resolution)
        for speed in (_machine(5), TWO_CORES, _machine(3000)):
            unet = plan(config, 50_000, 10, speed, channels=channels)[0].unet
            width = unet.get("block_out_channels", HybridUNet2DModel.SIZES[unet["size"]]["block_out_channels"])
            assert channels * unet["patch_size"] ** 2 <= width[0], (unet, channels, resolution)
    for options in ({"size": "xs"}, {"size": "tiny"}, {**TINY_HYBRID}):  # what is given stays, and the rest fits to it
        unet = _plan(1, resolution=64, speed=lambda config: 100.0, unet=options)[0].unet
        width = unet.get("block_out_channels")
        assert options.items() <= unet.items() and 3 * unet["patch_size"] ** 2 <= width[0], unet


def test_two_lengths_that_contradict_each_other_are_refused(capsys):
    with pytest.raises(ValueError, match="max_train_minutes: expected none with minutes, which sets it, got 60"):
        TrainConfig(minutes=5, max_train_minutes=60)
    assert TrainConfig(minutes=5, max_train_minutes=5).minutes == 5  # as a run's config.yaml has it
    arguments = ["--config", "hybrid_cifar10_cpu", "--dataset", "shapes", "--minutes", "5"]
    assert parse_train(arguments).max_train_minutes is None  # a flag replaces the preset's hour
    with pytest.raises(SystemExit):
        parse_train([*arguments, "--max_train_minutes", "60"])
    assert "expected none with minutes" in capsys.readouterr().err


# A run


@pytest.fixture
def small(tmp_path):
    """Settings of a run on 36 pictures whose network is given, so that it is small."""
    (tmp_path / "data").mkdir()
    data = write_parquet(tmp_path / "data", *shapes(36))
    return TrainConfig(
        dataset=str(data),
        resolution=8,
        unet=TINY_HYBRID,
        num_images_per_class=1,
        num_inference_steps=2,
        num_validation_images=6,
        mixed_precision="no",
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


@pytest.mark.end_to_end
def test_a_run_says_and_keeps_what_it_chose_and_resumes_with_it(small, monkeypatch, capsys):
    """The resumed run measures nothing, and ends with the weights of a run that was not interrupted."""
    monkeypatch.setattr("cond_ddpm.training.speed.measured_speed", lambda *arguments: 2.0)
    whole = train(dataclasses.replace(small, minutes=1, checkpointing_steps=2))
    said = capsys.readouterr().err
    assert "minutes:     1," in (whole / "data.txt").read_text().partition("\n\n")[0] in said  # then all files of findings
    record = json.loads((whole / "config.json").read_text())["config"]
    assert record["max_train_minutes"] == record["minutes"] == 1
    assert record["max_train_steps"] > 3 and record["batch_size"] == 15 and record["augmentation_prob"] == 0

    def halfway(row):
        raise KeyboardInterrupt

    parts = dataclasses.replace(small, output_dir=f"{small.output_dir}-parts", checkpointing_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(parts, minutes=1), on_epoch=lambda row: row["epoch"] == 2 and halfway(row))
    monkeypatch.setattr("cond_ddpm.training.speed.measured_speed", lambda *arguments: pytest.fail("measured again"))
    resumed = train(dataclasses.replace(parts, resume_from_checkpoint="latest"))
    weights, again = (CondDDPMPipeline.from_pretrained(run / "pipeline").unet.state_dict() for run in (whole, resumed))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    after = json.loads((resumed / "config.json").read_text())["config"]
    assert {name for name in record if record[name] != after[name]} == {"output_dir", "resume_from_checkpoint"}


@pytest.mark.end_to_end
def test_more_minutes_at_a_resume_are_more_steps_of_the_same(small, monkeypatch):
    monkeypatch.setattr("cond_ddpm.training.speed.measured_speed", lambda *arguments: 2.0)
    run = train(dataclasses.replace(small, minutes=0.5))
    before = json.loads((run / "config.json").read_text())["config"]
    train(dataclasses.replace(small, minutes=1, resume_from_checkpoint="latest"))
    after = json.loads((run / "config.json").read_text())["config"]
    assert after["max_train_steps"] == 2 * before["max_train_steps"] and after["max_train_minutes"] == 1
    same = ("batch_size", "learning_rate", "unet", "lr_warmup_steps", "validation_epochs")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}


@pytest.mark.end_to_end
def test_a_run_without_any_length_chooses_half_an_hour(small, monkeypatch, capsys):
    monkeypatch.setattr("cond_ddpm.training.speed.measured_speed", lambda *arguments: 1.0)
    assert all(getattr(small, name) is None for name in (*LENGTHS, "minutes"))
    flags = ["--dataset", small.dataset, "--output_dir", small.output_dir, "--unet.size", "tiny", "--dry_run"]
    assert main(["train", *flags]) == 0
    said = capsys.readouterr().out
    assert "minutes:     30," in said and "--minutes" in said


@pytest.mark.end_to_end
def test_validation_after_several_passes(small):
    run = train(dataclasses.replace(small, batch_size=10, max_train_steps=10, validation_epochs=2, save_images_epochs=2))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "val_loss" in row] == [2, 4]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch_0004.png"]


@pytest.mark.end_to_end
def test_memory_that_does_not_suffice_is_one_line(small, monkeypatch, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("cond_ddpm.training.speed.make_unet", full)
    flags = ["--dataset", small.dataset, "--output_dir", small.output_dir, "--minutes", "1", "--report_to", "none"]
    assert main(["train", *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: out of memory: a step of") and "lower --batch_size" in error


# Weights to start from


@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_classes_of_the_same_name_keep_their_rows_and_others_begin_as_none(model, tmp_path):
    base = make_pipeline(make_unet(model))
    base.save_pretrained(tmp_path)
    own = make_unet(model, seed=1, num_classes=2)
    notes = start_from_base(own, ["cross", "star"], str(tmp_path))
    rows, before = own.class_embedding.weight, base.unet.class_embedding.weight
    assert torch.equal(rows[0], before[NAMES.index("cross")])
    assert torch.equal(rows[1], before[3]) and torch.equal(rows[2], before[3])
    others = {name: tensor for name, tensor in own.state_dict().items() if name != "class_embedding.weight"}
    assert all(torch.equal(tensor, base.unet.state_dict()[name]) for name, tensor in others.items())
    assert notes == ["1 of 2 classes are known; star begin anew"]


def test_the_network_starts_with_the_base_models_predictions(tmp_path):
    """Of the same class; and with labels of changes that are all zero, which the base model did not have."""
    base = make_pipeline(make_unet("hybrid"))
    base.save_pretrained(tmp_path)
    own = make_unet("hybrid", seed=1, augment_dim=AUGMENT_DIM)
    start_from_base(own, NAMES[::-1], str(tmp_path))
    sample, timestep = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 999])
    with torch.no_grad():
        expected = base.unet(sample, timestep, torch.tensor([0, 1, 3])).sample
        found = own(sample, timestep, torch.tensor([2, 1, 3]), augment_labels=torch.zeros(3, AUGMENT_DIM)).sample
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_another_resolution_keeps_all_but_the_positions_which_are_interpolated(model, tmp_path):
    more = {"attention_resolutions": (4,)} if model == "attention" else {}
    base = make_pipeline(make_unet(model, **more))
    if model == "hybrid":  # a function of the place that interpolation keeps
        base.unet.positions.data[:] = torch.arange(2.0).repeat_interleave(2)[:, None]
    base.save_pretrained(tmp_path)
    config = with_base(TrainConfig(init_from=str(tmp_path), resolution=16, prediction_type="epsilon"))
    assert config.model == model and config.channels == 3
    config = dataclasses.replace(config, augmentation_prob=0.0)
    own = network_of(config, (3, 16, 16), 3)
    notes = start_from_base(own, NAMES, str(tmp_path))
    assert not any("new layers" in note for note in notes)
    for name, tensor in base.unet.state_dict().items():
        if name == "positions":
            rows = own.positions.reshape(4, 4, -1)
            assert torch.allclose(rows, rows[:, :1].expand_as(rows), atol=1e-5) and (rows.diff(dim=0) > 0).all()
        else:
            assert torch.equal(own.state_dict()[name], tensor)


def test_options_of_the_network_are_the_base_models_unless_given(tmp_path):
    make_pipeline(make_unet("hybrid")).save_pretrained(tmp_path)
    config = with_base(TrainConfig(init_from=str(tmp_path), unet={"dropout": 0.2}, prediction_type="epsilon"))
    assert config.unet["block_out_channels"] == [8, 16] and config.unet["dropout"] == 0.2 and config.resolution == 8
    with pytest.raises(ValueError, match=r"model: expected hybrid, the kind of .*, got simple; leave it out"):
        with_base(TrainConfig(init_from=str(tmp_path), model="simple"))
    with pytest.raises(ValueError, match=r"prediction_type: expected epsilon, with which .* got v_prediction; give --pred"):
        with_base(TrainConfig(init_from=str(tmp_path)))


@pytest.mark.end_to_end
def test_a_run_names_its_base_model_and_resumes_without_it(small, tmp_path):
    pipeline = make_pipeline(make_unet("hybrid"))
    pipeline.save_pretrained(tmp_path / "shapes-base")
    config = dataclasses.replace(
        small, unet={}, resolution=None, init_from=str(tmp_path / "shapes-base"), batch_size=10, prediction_type="epsilon"
    )
    run = train(dataclasses.replace(config, max_train_steps=2))
    assert f"{pipeline.unet.config.sample_size}: the size of {config.init_from} (--res" in (run / "data.txt").read_text()
    settings = json.loads((run / "config.json").read_text())
    assert settings["config"]["init_from"] == str(tmp_path / "shapes-base") == settings["resolved"]["base_model"]
    record = json.loads((run / "pipeline" / "results.json").read_text())["training"]
    assert record["base_model"] == record["config"]["base_model"] == "shapes-base"
    assert "| base model | shapes-base, from whose weights it started |" in (run / "pipeline" / "README.md").read_text()
    (tmp_path / "shapes-base" / "model_index.json").unlink()
    again = dataclasses.replace(config, init_from=None, max_train_steps=4, resume_from_checkpoint="latest")
    assert len(json.loads((train(again) / "config.json").read_text())["config"]["unet"]) > 5


# Changes of images


def test_shifts_of_whole_pixels_mirrors_and_quarter_turns_by_hand():
    images = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    one = lambda **amounts: np.array([[amounts.get(n, 0) for n in ("mirror", "right", "down", "big", "turn")]], np.float32)  # noqa: E731
    assert torch.allclose(augment(images, one(mirror=1)), images.flip(3), atol=1e-5)
    assert torch.allclose(augment(images, one(right=1))[..., 1:], images[..., :-1], atol=1e-5)  # an eighth of 8 pixels
    assert torch.allclose(augment(images, one(down=2))[:, :, 2:], images[:, :, :-2], atol=1e-5)
    assert torch.allclose(augment(images, one(turn=6)), images.rot90(-1, (2, 3)), atol=1e-4)  # clockwise by 6 of 15 degrees
    enlarged = augment(images, one(big=5))[0, 0]  # twice as large: the middle fills the image
    assert torch.allclose(enlarged.mean(), images[0, 0, 2:6, 2:6].mean(), atol=0.2)
    assert augment(images, one()) is images


def test_images_that_are_not_changed_are_bitwise_themselves():
    images, labels = shapes(4)
    data = LabelledImages(images.transpose(0, 3, 1, 2), labels, NAMES)
    amounts = np.zeros((4, AUGMENT_DIM), np.float32)
    amounts[2, 1] = 1
    plain, changed = make_batch(data, np.arange(4)), make_batch(data, np.arange(4), None, amounts)
    same = [torch.equal(one, other) for one, other in zip(plain.images, changed.images)]
    assert same == [True, True, False, True] and plain.augment_labels is None
    assert torch.equal(changed.augment_labels, torch.from_numpy(amounts))


def test_a_seed_gives_the_same_noise_with_and_without_changes():
    plain, changed = (draw_training(TrainConfig(batch_size=400, augmentation_prob=p), 3, (1, 2, 2), "cpu") for p in (0.0, 0.3))
    assert torch.equal(plain.noise, changed.noise) and torch.equal(plain.timesteps, changed.timesteps)
    assert plain.augmentation is None and changed.dropout_seed == plain.dropout_seed
    shares = (changed.augmentation != 0).mean(0)
    assert shares[0] == pytest.approx(0.15, abs=0.06) and shares[1:] == pytest.approx(0.3, abs=0.08)
    halves = [changed.part(index, 2).augmentation for index in range(2)]
    assert np.array_equal(np.concatenate(halves), changed.augmentation)


@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_the_network_is_told_and_no_label_is_the_same_as_zeros(model):
    unet = make_unet(model, augment_dim=AUGMENT_DIM)
    sample, timestep, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 400]), torch.tensor([0, 2])
    with torch.no_grad():
        plain = unet(sample, timestep, labels).sample
        zeros = unet(sample, timestep, labels, augment_labels=torch.zeros(2, AUGMENT_DIM)).sample
        told = unet(sample, timestep, labels, augment_labels=torch.ones(2, AUGMENT_DIM)).sample
    assert torch.equal(plain, zeros) and not torch.allclose(plain, told, atol=1e-3)
    with pytest.raises(ValueError, match=r"augment_labels: expected shape \(2, 5\), with augment_dim above 0, got \(2, 4\)"):
        unet(sample, timestep, labels, augment_labels=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"augment_labels: expected shape \(2, 0\).* got \(2, 5\)"):
        make_unet(model)(sample, timestep, labels, augment_labels=torch.zeros(2, AUGMENT_DIM))


@pytest.mark.end_to_end
def test_a_run_with_changed_images_learns_and_samples_alone(small, monkeypatch):
    """The weights that tell of changes are trained; mirrored images are not told of where half of the images are mirrored."""
    seen = []
    original = make_batch
    monkeypatch.setattr(
        "cond_ddpm.training.batches.make_batch",
        lambda *arguments, **more: seen.append(original(*arguments, **more)) or seen[-1],
    )
    run = train(dataclasses.replace(small, augmentation_prob=0.9, random_flip=True, batch_size=10, max_train_steps=4))
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline.unet.augment_embedding.weight.any()
    drawn, *steps = seen  # first_batch.png, which shows what the first step sees
    assert torch.equal(drawn.images, steps[0].images)
    told = [batch.augment_labels for batch in steps]
    assert len(told) == 4 and not torch.cat(told)[:, 0].any() and torch.cat(told)[:, 1:].any(1).all()
    assert pipeline("circle", num_inference_steps=2).images[0].size == (8, 8)
    assert math.isfinite(json.loads((run / "pipeline" / "results.json").read_text())["training"]["val_loss"])


def test_a_run_of_before_keeps_its_number_of_steps_for_pictures():
    """20 was the default when it began, and 10 is now."""
    recorded = dataclasses.asdict(TrainConfig().with_open(unless_chosen(TrainConfig))) | {"num_inference_steps": 20}
    assert as_recorded(TrainConfig(), recorded).num_inference_steps == 20
    assert as_recorded(TrainConfig(num_inference_steps=5), recorded).num_inference_steps == 5
