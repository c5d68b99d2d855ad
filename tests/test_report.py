"""The report of a run: one page with all that the folder has, safe to open, also of older runs and of foreign results."""

import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TINY_HYBRID
from PIL import Image

from cond_ddpm.cli import main
from cond_ddpm.config import TrainConfig
from cond_ddpm.visualize import batch_picture, run_report, training_curve

pytestmark = pytest.mark.end_to_end


class _Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.images, self.titles, self.text, self.tags, self.tag = [], [], "", set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        if self.tag == "h2" and data.strip():
            self.titles.append(data)
        if self.tag != "style":
            self.text += data


@pytest.fixture(scope="module")
def trained(shapes_parquet, tmp_path_factory):
    from cond_ddpm.training import train

    config = TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        unet=TINY_HYBRID,
        batch_size=16,
        num_validation_images=16,
        num_epochs=2,
        save_images_epochs=1,
        num_inference_steps=2,
        num_images_per_class=1,
        output_dir=str(tmp_path_factory.mktemp("report") / "run"),
        report_to="none",
    )
    return train(config)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


RESULTS = {
    "protocol": {"dataset": "shapes", "features": "classifier", "num_inference_steps": 20, "guidance_scale": 2.0},
    "samples": {
        "num_images": 2000,
        "frechet_distance": 3.25,
        "label_accuracy": 0.875,
        "classes": {"<b>cross</b>": {"accuracy": 0.5, "frechet_distance": 1.5}, "disc": "not an object"},
    },
    "held_out_real": {"frechet_distance": 0.06, "label_accuracy": None, "classes": {"<b>cross</b>": {"accuracy": 0.9}}},
    "copies": {"pixels": {"share": 0.0225, "by_chance": 0.01}},
    "usefulness": {"accuracy": {"samples": 0.715, "real": 0.9}},
    "warnings": ["<script>alert(1)</script>"],
}


def test_training_writes_it_with_all_its_pictures_inside(run):
    page = _Page(run / "report.html")
    assert page.titles == ["What the network saw", "Samples", "Losses", "Evaluation", "The run"]
    assert len(page.images) == 2 + 1 + 2 + 1  # the batch and the data, the pipeline's samples, two epochs, the losses
    for image in page.images:
        assert len(image["alt"]) > 15
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
    assert "has not been measured" in page.text and "cond-ddpm evaluate --model" in page.text
    assert not page.tags & {"script", "link", "iframe"} and "http" not in (run / "report.html").read_text()
    with Image.open(run / "first_batch.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_a_command_writes_it_anew_with_what_was_measured(run, capsys):
    (run / "pipeline" / "results.json").write_text(json.dumps(RESULTS))
    (run / "other.json").write_text("[1]")  # a file of the user's
    shutil.copy(run / "loss.png", run / "pipeline" / "results-confusion.png")
    shutil.copy(run / "loss.png", run / "pipeline" / "guidance.png")
    assert main(["report", "--run", str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")
    page = _Page(run / "report.html")
    assert page.titles == ["What the network saw", "Samples", "Losses", "Guidance", "Evaluation", "The run"]
    for text in ("87.5%", "2.2%", "71.5%", "50.0%", "90.0%", "3.25", "not known", "<b>cross</b>", "<script>alert(1)</script>"):
        assert text in page.text  # as text
    assert "b" in page.tags and "script" not in page.tags and "has not been measured" not in page.text
    assert any(image["alt"].startswith("Confusion") for image in page.images)


def test_a_run_of_an_earlier_version(run):
    """Without what later versions write, and one that has only its pipeline."""
    for name in ("first_batch.png", "data.png", "data.txt", "metrics.jsonl", "report.html"):
        (run / name).unlink()
    assert _Page(run_report(run)).titles == ["Samples", "Losses", "Evaluation", "The run"]
    for path in run.iterdir():
        if path.name != "pipeline":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert _Page(run_report(run)).titles == ["Samples", "Losses", "Evaluation", "The run"]


def test_another_folder_is_refused(tmp_path, capsys):
    assert main(["report", "--run", str(tmp_path)]) == 1
    assert "expected a run folder, with a config.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_curve_of_many_steps_and_of_one(tmp_path):
    steps = [{"step": step, "loss": 1 / step, "learning_rate": 0.001} for step in range(1, 1000)]
    del steps[7]["learning_rate"]  # somebody edited the file
    for rows in (steps, [*steps[:1], {"step": 1, "val_loss": 0.5}]):
        training_curve(rows, tmp_path / "curve.png")
        assert np.asarray(Image.open(tmp_path / "curve.png")).std() > 5


def test_the_batch_is_shown_above_its_noise(tmp_path):
    images, noisy = torch.full((3, 1, 8, 8), -0.2), torch.full((3, 1, 8, 8), 0.6)  # grey values of 102 and 204
    batch_picture(images, noisy, torch.tensor([1, 20, 300]), ["cross", None, "disc"], tmp_path / "batch.png")
    picture = np.asarray(Image.open(tmp_path / "batch.png").convert("L"))
    upper, lower = (np.argwhere(picture == value).mean(axis=0) for value in (102, 204))
    assert upper[0] < lower[0] - 20 and abs(upper[1] - lower[1]) < 3
