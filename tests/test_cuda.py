"""What has to be tried on a GPU: `make gpu STAGE=tests`. Without one all is skipped.

With COND_DDPM_CUDA_TESTS=cpu it runs on the CPU, which says whether the tests themselves work.
"""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from conftest import NAMES, TINY, make_pipeline, make_unet

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.evaluation.evaluate import evaluate
from cond_ddpm.hardware import precision_for
from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import generate
from cond_ddpm.training import train
from cond_ddpm.training.checkpoint import checkpoints, load_checkpoint

ON_CPU = os.environ.get("COND_DDPM_CUDA_TESTS") == "cpu"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.end_to_end,
    pytest.mark.skipif(not (torch.cuda.is_available() or ON_CPU), reason="there is no GPU"),
]
needs_cuda = pytest.mark.skipif(ON_CPU, reason="not on a CPU")


@pytest.fixture
def config(shapes_parquet, tmp_path):
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="hybrid",
        unet={**TINY, "block_out_channels": [8, 16], "size": "tiny", "transformer_layers": 1, "attention_head_dim": 8},
        batch_size=16,
        num_validation_images=16,
        max_train_steps=10,  # epochs of 5 steps
        lr_scheduler="constant",
        lr_warmup_steps=2,
        save_images_epochs=1,
        num_images_per_class=1,
        num_inference_steps=2,
        checkpointing_steps=5,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


def _state(run):
    tensors, _, progress, _ = load_checkpoint(checkpoints(run)[0])
    return tensors, [row["val_loss"] for row in progress.metrics]


PRECISIONS = ["no", "bf16", pytest.param("fp16", marks=needs_cuda), "auto"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_and_resuming(config, tmp_path, precision):
    """Resumed after the half, it ends as without the interruption: GPUs may add in another order, so not always bitwise."""
    config = dataclasses.replace(config, mixed_precision=precision)
    whole = train(config)
    record = json.loads((whole / "config.json").read_text())["resolved"]
    device = process_state().device
    assert record["device"] == str(device) and record["mixed_precision"] == (
        precision_for(device) if precision == "auto" else precision
    )
    half = dataclasses.replace(config, output_dir=str(tmp_path / "half"))
    train(dataclasses.replace(half, max_train_steps=5))
    train(dataclasses.replace(half, resume_from_checkpoint="latest"))
    (first, losses), (second, losses_resumed) = _state(whole), _state(half.folder)
    assert losses_resumed == pytest.approx(losses, rel=1e-3 if precision == "no" else 2e-2)
    for part in ("unet", "ema"):
        for name, tensor in first[part].items():
            assert torch.isfinite(tensor).all()
            assert torch.allclose(tensor, second[part][name], atol=1e-3 if precision == "no" else 2e-2)


@needs_cuda
@pytest.mark.parametrize("switch", ["compile", "channels_last"])
def test_speed_switches_follow_the_same_course(config, tmp_path, switch):
    plain = _state(train(config))[1]
    other = dataclasses.replace(config, output_dir=str(tmp_path / "other"), **{switch: True})
    assert _state(train(other))[1] == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_samplers_draw_what_they_draw_on_a_cpu(sampler):
    """The noise is drawn on the CPU, so that an image is a function of its label and seed on any device."""
    pipeline = make_pipeline(make_unet("hybrid"))
    arguments = {"num_inference_steps": 5, "guidance_scale": 2.0, "sampler": sampler}
    expected = generate(pipeline, NAMES, [0, 1, 2], **arguments).astype(float)
    found = generate(pipeline.to(process_state().device), NAMES, [0, 1, 2], **arguments)
    assert abs(found - expected).max() <= 3
    half = generate(pipeline, NAMES, [0, 1, 2], mixed_precision="auto", **arguments)
    assert abs(half - expected).mean() < 10


def test_evaluation(config, shapes_parquet, tmp_path):
    pipeline = make_pipeline(make_unet("simple")).to(process_state().device)
    protocol = EvaluationConfig(dataset=str(shapes_parquet), resolution=8, num_samples=12, subset=8)
    results = evaluate(protocol, tmp_path / "results.json", pipeline=pipeline, num_inference_steps=2, progress=False)
    found = results["samples"]
    assert found["num_images"] == 12 and np.isfinite(found["frechet_distance"]) and 0 <= found["label_accuracy"] <= 1
    assert (tmp_path / "results.json").is_file()


@needs_cuda
def test_offloading_to_the_cpu():
    pipeline = make_pipeline(make_unet("attention"))
    expected = generate(pipeline, NAMES, [0, 1, 2], num_inference_steps=2).astype(float)
    pipeline.enable_model_cpu_offload()
    images = pipeline(NAMES, seeds=[0, 1, 2], num_inference_steps=2, output_type="np").images
    assert abs(images.transpose(0, 3, 1, 2) * 255 - expected).max() <= 4
