"""The exported network: equal to the network, for any batch, and sampled from without torch's weights."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, make_unet
from diffusers import DDPMScheduler

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import main
from cond_ddpm.export import ExportedUNet, export, load_exported


@pytest.fixture(params=["onnx", "torch"])
def format(request):
    if request.param == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason='pip install "cond_ddpm[onnx]"')
    return request.param


@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_equal_to_the_network_over_batches_timesteps_and_labels(model, format, tmp_path):
    pipeline = CondDDPMPipeline(make_unet(model), DDPMScheduler(num_train_timesteps=50), dict(enumerate(NAMES)), 0.1, 3.0)
    assert export(pipeline, format, tmp_path / "out") <= 1e-4
    loaded = load_exported(tmp_path / "out")
    for batch in (1, 3, 7):
        sample, labels = torch.randn(batch, 3, 8, 8), torch.arange(batch) % 4  # 3 is the null label
        for timestep in (0, torch.tensor(17), torch.tensor([49]), torch.arange(batch)):
            with torch.no_grad():
                expected = pipeline.unet(sample, timestep, labels).sample
            torch.testing.assert_close(loaded.unet(sample, timestep, labels).sample, expected, atol=1e-4, rtol=0)

    arguments = {"seeds": [0, 1, 2], "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "np"}
    images = loaded(["cross", 0, "square"], **arguments).images
    np.testing.assert_allclose(images, pipeline(["cross", 0, "square"], **arguments).images, atol=1e-3)
    assert loaded.id2label == dict(enumerate(NAMES)) and loaded.class_dropout_prob == 0.1 and loaded.guidance_scale == 3
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("export.json", "scheduler"),
        {"onnx": "unet.onnx", "torch": "unet.pt2"}[format],
    }


def test_samples_where_the_networks_code_is_missing(format, tmp_path):
    """Neither the network's classes nor its weights are loaded."""
    export(CondDDPMPipeline(make_unet("hybrid"), DDPMScheduler(num_train_timesteps=50)), format, tmp_path / "out")
    script = f"""
import sys
sys.modules["cond_ddpm.models"] = sys.modules["cond_ddpm.models.cond_unet"] = None
from pathlib import Path
from cond_ddpm.export import load_exported
pipeline = load_exported(Path({str(tmp_path / "out")!r}))
assert pipeline([0, 1], num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 3)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_by_the_command_line_and_every_command_takes_it(format, tmp_path, capsys):
    CondDDPMPipeline(make_unet("hybrid"), DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "model")
    out = tmp_path / "exported"
    assert main(["export", "--model", str(tmp_path / "model"), "--format", format, "--output", str(out)]) == 0
    assert "the same as the network to within" in capsys.readouterr().out
    common = ["--num_images_per_class", "2", "--num_inference_steps", "3"]
    for model, name in ((tmp_path / "model", "one.npz"), (out, "two.npz")):
        assert main(["sample", "--model", str(model), *common, "--output", str(tmp_path / name)]) == 0
    one, two = (np.load(tmp_path / name) for name in ("one.npz", "two.npz"))
    assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1
    assert main(["export", "--model", str(tmp_path / "model"), "--format", format, "--output", str(out)]) == 1
    assert "output: expected a new or empty folder" in capsys.readouterr().err
    assert main(["sample", "--model", str(out), *common, "--fast", "--output", str(tmp_path / "x.npz")]) == 1
    assert "expected neither with an exported model" in capsys.readouterr().err


def test_an_export_that_differs_is_not_left(monkeypatch, tmp_path):
    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(num_train_timesteps=50))
    monkeypatch.setattr(ExportedUNet, "forward", lambda self, sample, timestep, labels: type("Out", (), {"sample": sample}))
    with pytest.raises(FloatingPointError, match=r"torch: expected at most 0.0001 from the network, got"):
        export(pipeline, "torch", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_known_or_not_there(tmp_path, monkeypatch):
    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(num_train_timesteps=50))
    with pytest.raises(ValueError, match="format: expected one of onnx, torch, got 'tflite'"):
        export(pipeline, "tflite", tmp_path / "out")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r'which are not installed; pip install "cond_ddpm\[onnx\]"'):
        export(pipeline, "onnx", tmp_path / "out")
    pipeline.scheduler.save_pretrained(tmp_path / "old" / "scheduler")
    record = {"format": "onnx", "unet": {}, "id2label": None, "class_dropout_prob": None}
    (tmp_path / "old" / "export.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="onnxruntime, which is not installed"):
        load_exported(tmp_path / "old")
