import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import CIFAR10, NAMES, ROOT, TINY, needs_cifar10
from PIL import Image

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import parse_train
from cond_ddpm.config import TrainConfig
from cond_ddpm.train import lr_factor, train


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
        learning_rate=2e-3,
        num_images_per_class=2,
        num_inference_steps=2,
        save_images_epochs=2,
        output_dir=str(tmp_path / "run"),
    )


def _metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _weights(run):
    return CondDDPMPipeline.from_pretrained(run / "pipeline").unet.state_dict()


def test_the_run_folder_holds_all_and_its_pipeline_samples(config):
    run = train(config)
    rows = _metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    for picture in (run / "loss.png", *(run / "samples").iterdir()):
        assert Image.open(picture).size[0] > 200
    record = json.loads((run / "config.json").read_text())
    assert TrainConfig(**record["config"]) == config
    assert record["resolved"]["unet"]["num_classes"] == 3 and record["resolved"]["class_names"] == NAMES
    assert record["versions"]["torch"] == torch.__version__ and record["command"]
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline.id2label == dict(enumerate(NAMES))
    assert pipeline(["square"], num_inference_steps=2).images[0].size == (8, 8)
    assert not (run / "pipeline.partial").exists()


def test_same_seed_same_weights_another_seed_others(config, tmp_path):
    runs = [
        train(dataclasses.replace(config, seed=seed, output_dir=str(tmp_path / f"{i}"), num_epochs=1, save_images_epochs=0))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (_weights(run) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_max_train_steps_counts_steps_not_epochs(config):
    run = train(dataclasses.replace(config, num_epochs=1, max_train_steps=7, save_images_epochs=0))
    assert [row["step"] for row in _metrics(run)] == [5, 7]
    assert not list((run / "samples").iterdir())


def test_early_stopping_keeps_the_best_epoch(config, monkeypatch):
    """Validation losses 3, 2, 2, 2.5: epoch 2 is the best, and two epochs without better end the run."""
    losses, saved = iter([3.0, 2.0, 2.0, 2.5, 1.0]), []
    monkeypatch.setattr("cond_ddpm.train._validation_loss", lambda *_: next(losses))
    monkeypatch.setattr("cond_ddpm.train._save_pipeline", lambda pipeline, folder: saved.append(folder))
    run = train(dataclasses.replace(config, num_epochs=9, patience=2))
    assert [row["val_loss"] for row in _metrics(run)] == [3, 2, 2, 2.5]
    assert len(saved) == 2
    assert (run / "loss.png").exists() and (run / "samples" / "epoch_0004.png").exists()


def test_without_ema_the_pipeline_has_the_last_weights(config, tmp_path):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    with_ema = _weights(train(config))
    without = _weights(train(dataclasses.replace(config, use_ema=False, output_dir=str(tmp_path / "raw"))))
    assert not torch.equal(with_ema["conv_in.weight"], without["conv_in.weight"])


def test_an_earlier_run_is_not_overwritten_unless_told(config):
    config = dataclasses.replace(config, num_epochs=1, save_images_epochs=0)
    run = train(config)
    (run / "samples" / "epoch_0099.png").touch()
    with pytest.raises(ValueError, match=r"output_dir: expected a folder without a run, .* --overwrite_output_dir true"):
        train(config)
    train(dataclasses.replace(config, overwrite_output_dir=True))
    assert not (run / "samples" / "epoch_0099.png").exists()


def test_learning_rate_by_hand():
    config = TrainConfig(lr_warmup_steps=4, lr_scheduler="linear")
    assert [lr_factor(config, step, 14) for step in (0, 3, 4, 9, 13)] == pytest.approx([0.25, 1, 1, 0.5, 0.1])
    cosine = TrainConfig(lr_scheduler="cosine")
    assert [lr_factor(cosine, step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    assert lr_factor(TrainConfig(), 999, 1000) == 1


def test_the_samples_of_two_epochs_start_from_the_same_noise(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cond_ddpm.train.generate",
        lambda pipeline, labels, seeds, **_: seen.append((labels, list(seeds))) or np.zeros((6, 3, 8, 8), np.uint8),
    )
    train(config)
    assert seen == [([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5])] * 2


@needs_cifar10
@pytest.mark.parametrize("preset", ["simple_cifar10", "attention_cifar10"])
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
