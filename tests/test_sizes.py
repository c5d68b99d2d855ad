"""The smallest and the largest of all: pixels, channels, classes, images. It works, or is refused in one line."""

import numpy as np
import pytest
import torch
from conftest import TINY
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import COMMANDS, guarded, parse_train, run
from cond_ddpm.config import TrainConfig
from cond_ddpm.training import train

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def _write(folder, size=8, bands=3, classes=3, count=None, constant=False):
    """Random or constant pictures; every class has four or more, unless `count` says how many there are in all."""
    rng, count = np.random.default_rng(0), max(8, 4 * classes) if count is None else count
    shape = (count, size, size, bands) if bands > 1 else (count, size, size)
    pixels = np.full(shape, 128, np.uint8) if constant else rng.integers(0, 256, shape, np.uint8)
    names = [f"class {label}" for label in range(classes)]
    rows = {
        "image": [PILImage.fromarray(one, MODES[bands]) if bands in (1, 3) else _with_alpha(one, bands) for one in pixels],
        "label": [row % classes for row in range(count)],
    }
    Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=names)})).to_parquet(
        folder / "train.parquet"
    )
    return folder


def _with_alpha(pixels, bands):
    planes = [PILImage.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(bands)]
    return PILImage.merge(MODES[bands], planes)


def _config(folder, **changes):
    few = {"batch_size": 4, "max_train_steps": 2, "save_images_epochs": 0, "checkpointing_steps": 0, "report_to": "none"}
    few |= {"num_validation_images": 2, "model": "attention", "unet": dict(TINY), "output_dir": str(folder / "run")}
    return TrainConfig(dataset=str(folder), **{**few, **changes})


def _images(run):
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert all(torch.isfinite(parameter).all() for parameter in pipeline.unet.parameters())
    pipeline.set_progress_bar_config(disable=True)
    last = pipeline.unet.config.num_classes - 1
    images = pipeline(class_labels=[0, last], seeds=[0, 1], num_inference_steps=2, output_type="np").images
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    return images


@pytest.mark.parametrize(
    "size, bands, classes, precision, changes",
    [
        (8, 1, 1, "no", {}),
        (8, 2, 2, "bf16", {}),
        (8, 3, 1000, "no", {"batch_size": 64, "max_train_steps": 1}),
        (16, 4, 2, "bf16", {}),
        (128, 3, 2, "bf16", {"model": "simple", "max_train_steps": 1}),
    ],
)
@pytest.mark.end_to_end
@pytest.mark.filterwarnings("ignore:.*transparent:UserWarning")
def test_pixels_channels_and_classes(tmp_path, size, bands, classes, precision, changes):
    """Pictures with transparency, of two or four bands, become pictures in grey or colour."""
    _write(tmp_path, size, bands, classes)
    images = _images(train(_config(tmp_path, resolution=size, mixed_precision=precision, **changes)))
    assert images.shape[:3] == (2, size, size) and images.shape[3] == (1 if bands == 1 else 3)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_are_refused(channels, capsys):
    with pytest.raises(SystemExit):
        parse_train(["--channels", str(channels)])
    assert f"channels: expected one of 1, 3, or null, got {channels}." in capsys.readouterr().err


@pytest.mark.end_to_end
def test_constant_images(tmp_path):
    images = _images(train(_config(_write(tmp_path, constant=True), resolution=8)))
    assert images.shape == (2, 8, 8, 3)


@pytest.mark.end_to_end
def test_a_batch_that_is_not_given_is_no_larger_than_the_data(tmp_path):
    run = train(_config(_write(tmp_path, classes=2, count=7), resolution=8, batch_size=None))
    assert _images(run).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "count, flags, words",
    [
        (1, [], "expected a class of 4 images or more"),
        (1, ["--num_validation_images=1"], "num_validation_images: expected at most half of the 1 training images, got 1"),
        (0, [], "expected pictures in the split 'train', got none"),
        (6, ["--batch_size=100"], "batch_size: expected"),
    ],
)
@pytest.mark.end_to_end
def test_too_few_images_are_refused_in_one_line_that_says_what_to_do(tmp_path, capsys, monkeypatch, count, flags, words):
    _write(tmp_path, count=count, classes=1)
    given = ["--num_validation_images=2"] if flags[:1] == ["--batch_size=100"] else []
    given += [f"--dataset={tmp_path}", f"--output_dir={tmp_path / 'run'}", "--report_to=none", "--resolution=8", *flags]
    assert guarded(run, COMMANDS["train"], given) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line and ";" in line
