"""The trained model in the repository: it loads by both ways, is whole, and its card says what it was trained on."""

import json

import numpy as np
import pytest
from conftest import ROOT

from cond_ddpm import CondDDPMPipeline, pretrained
from cond_ddpm.cli import main
from cond_ddpm.hub import check

FOLDER = ROOT / "pretrained" / "cifar10"


def test_the_readmes_lines_draw_a_horse():
    """What a horse looks like is for eyes; that it is a picture of 32x32 with some contrast is for this test."""
    image = CondDDPMPipeline.from_pretrained(FOLDER)(class_labels=[7], seeds=[0], num_inference_steps=5).images[0]
    pixels = np.asarray(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels.std() > 10


def test_it_is_found_by_name():
    assert pretrained("cifar10") == FOLDER
    with pytest.raises(ValueError, match="pretrained: expected one of cifar10, got 'imagenet'"):
        pretrained("imagenet")


@pytest.mark.end_to_end
def test_sample_without_a_model_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--class_labels", "horse", "--num_images_per_class", "2", "--num_inference_steps", "2"]
    main(["sample", *flags, "--output", "one.npz"])
    main(["sample", "--model", str(FOLDER), *flags, "--output", "other.npz"])
    one, other = (np.load(tmp_path / name)["images"] for name in ("one.npz", "other.npz"))
    assert one.shape == (2, 32, 32, 3) and (one == other).all()


def test_its_code_is_todays():
    for copy, source in (("", "pipelines/pipeline_cond_ddpm.py"), ("unet", "cond_ddpm/models/cond_unet.py")):
        assert (FOLDER / copy / (ROOT / source).name).read_bytes() == (ROOT / source).read_bytes()


def test_names_reach_the_classes():
    pipeline = CondDDPMPipeline.from_pretrained(FOLDER)
    assert pipeline.label_ids(["airplane", "horse", "truck"]) == [0, 7, 9]


@pytest.mark.end_to_end
def test_it_could_be_published_as_it_is():
    """Loads without this package, samples, has finite weights, and its results are of these weights."""
    assert check(FOLDER) == []


def test_it_is_small_and_says_what_it_was_trained_on():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 16e6
    assert "re-encoded as JPEG" in (FOLDER / "README.md").read_text()
    results = json.loads((FOLDER / "results.json").read_text())
    assert results["training"]["step"] == 5143
    assert results["samples"]["num_images"] == results["held_out_real"]["num_images"] == 10_000
