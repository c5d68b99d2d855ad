"""Pipeline folders that an earlier version saved still load, and still draw the same images.

The folders in `fixtures/pipelines` were saved by the code of commit 9d5a12e, one for each kind of network: 8x8 images of
three classes, random weights, and the copies of the code that `save_pretrained` puts beside them. `images.npy` holds what
that code drew from each. Never save these folders again: they stand for the folders that users have published.
"""

import json

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from cond_ddpm import CondDDPMPipeline

FOLDERS = ROOT / "tests" / "fixtures" / "pipelines"


def _by_the_package(folder):
    return CondDDPMPipeline.from_pretrained(folder)


def _by_its_own_code(folder):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("load", [_by_the_package, _by_its_own_code])
@pytest.mark.parametrize("name", ["simple", "attention", "hybrid"])
def test_a_folder_saved_by_an_earlier_version_draws_the_same_images(name, load):
    pipeline = load(FOLDERS / name)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.id2label == dict(enumerate(NAMES))
    assert pipeline.class_dropout_prob == 0.1 and pipeline.guidance_scale == 2
    images = pipeline(NAMES, seeds=[0, 0, 0], num_inference_steps=4, guidance_scale=2.0, output_type="pt").images
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    expected = np.load(FOLDERS / name / "images.npy")
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).max() <= 1


def test_a_pipeline_of_an_earlier_versions_code_guides_one_of_todays():
    """Autoguidance reads only what that code has."""
    pipeline, guide = _by_the_package(FOLDERS / "simple"), _by_its_own_code(FOLDERS / "simple")
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"seeds": [0], "num_inference_steps": 2, "output_type": "pt"}
    expected = pipeline(["cross"], guidance_scale=1.0, **arguments).images
    assert torch.equal(pipeline(["cross"], guidance_scale=2.0, guide=guide, **arguments).images, expected)  # by its equal
    assert pipeline(None, guidance_scale=2.0, guide=guide, **arguments).images.shape == expected.shape
    guide.class_dropout_prob = 0
    with pytest.raises(ValueError, match="class_labels=None with this guide"):
        pipeline(None, guidance_scale=2.0, guide=guide, **arguments)


@pytest.mark.parametrize("name", ["simple", "attention", "hybrid"])
def test_a_folder_saved_again_keeps_its_weights_and_settings(name, tmp_path):
    """A newer diffusers may write further settings, so every old one is looked for in the new file."""
    CondDDPMPipeline.from_pretrained(FOLDERS / name).save_pretrained(tmp_path)
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        before, after = (json.loads((folder / file).read_text()) for folder in (FOLDERS / name, tmp_path))
        del before["_diffusers_version"]
        assert before == {key: after.get(key) for key in before}, file
    weights = "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / weights) for folder in (FOLDERS / name, tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
