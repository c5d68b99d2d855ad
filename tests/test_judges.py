"""How far judges are trusted, what samples are useful for, and which guidance is chosen."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import NAMES, TINY, shapes
from PIL import Image

from cond_ddpm import CondDDPMPipeline, commands
from cond_ddpm.config.training import TrainCommandConfig, TrainConfig
from cond_ddpm.data import LabelledImages, hold_out
from cond_ddpm.evaluation import classifier, guidance, usefulness
from cond_ddpm.evaluation.classifier import Recipe, get_classifier, new_judge
from cond_ddpm.evaluation.guidance import choose_guidance
from cond_ddpm.evaluation.real_images import RealImages, images_for_usefulness, labels_of_samples
from cond_ddpm.evaluation.trust import least_accuracy, why_not_trusted, wilson_interval, withhold
from cond_ddpm.evaluation.usefulness import measure_usefulness
from cond_ddpm.hub.measured import judge_text, usefulness_text
from cond_ddpm.training import train

CPU = torch.device("cpu")


def _shapes(count, seed, size=16):
    images, labels = shapes(count, size, seed)
    noise = np.random.default_rng(seed).integers(-20, 20, images.shape)
    pixels = np.clip(images + noise, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return LabelledImages(pixels, labels.astype(np.int64), list(NAMES))


# How far a judge is trusted


def test_few_images_are_learned_in_as_many_steps():
    """At least 625; and of many images the recipe is what it was, as the names of the shipped judges depend on it."""
    recipe = Recipe()
    found = {count: (recipe.batch_size(count), recipe.steps(count)) for count in (60, 1280, 2000, 4000, 50_000)}
    assert found == {60: (40, 640), 1280: (40, 640), 2000: (64, 625), 4000: (128, 625), 50_000: (128, 5000)}


def test_the_interval_by_hand():
    """Of 10 trials all succeed: Wilson's lower bound is n / (n + z^2). For many trials, it is Gauss's."""
    assert wilson_interval(1.0, 10) == pytest.approx((10 / (10 + 1.96**2), 1.0))
    low, high = wilson_interval(0.8, 100_000)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.8 * 0.2 / 100_000) ** 0.5, rel=1e-3)
    assert wilson_interval(0.0, 5)[0] == 0


def _record(accuracy, tested):
    interval = list(wilson_interval(accuracy, tested))
    return {"held_out_accuracy": accuracy, "held_out_accuracy_interval": interval, "tested_images": tested}


def test_a_judge_is_trusted_halfway_between_chance_and_all():
    assert least_accuracy(2) == 0.75 and least_accuracy(10) == pytest.approx(0.55)
    assert why_not_trusted({"one": _record(0.9, 1000), "other": _record(0.8, 1000)}, 2) is None
    reason = why_not_trusted({"one": _record(0.9, 1000), "other": _record(0.8, 20)}, 2)  # as good, but who knows
    assert reason.startswith(
        "the other classifier recognises 80% of 20 real images that it was not trained on, so between 58%"
    )
    assert "to be trusted with 2 classes it must be above 75%" in reason
    text = judge_text({"held_out_accuracy": 0.8, "judges": {"other": _record(0.8, 20)}})
    assert text == "80.0% accuracy on unseen real images (58.4% to 91.9% with 95% confidence, by 20 of them)"


def test_figures_of_a_judge_that_is_not_trusted_are_null():
    metrics = {"label_accuracy": 1.0, "precision": 0.5, "classes": {"a": {"num_images": 3, "accuracy": 1.0}}}
    withhold(metrics)
    assert metrics["label_accuracy"] is None and metrics["precision"] == 0.5
    assert metrics["classes"] == {"a": {"num_images": 3, "accuracy": None}}


@pytest.mark.end_to_end
def test_few_held_out_images_are_not_all_that_a_judge_is_tested_on(tmp_path, monkeypatch):
    """By cross-fitting, each image is tested by a network that did not see it, and the file says how many were."""
    monkeypatch.setattr(classifier, "RECIPE", Recipe(epochs=0, min_images_seen=1280))
    data, few, many = _shapes(90, 0), _shapes(12, 1), _shapes(300, 2)
    trained, original = [], classifier.trained_network
    monkeypatch.setattr(classifier, "least_accuracy", lambda classes: 0.9)  # 12 images leave it open
    monkeypatch.setattr(
        classifier, "trained_network", lambda name, part, *rest: trained.append(part) or original(name, part, *rest)
    )
    judge = get_classifier("convolutional", data, few, tmp_path)
    assert judge.tested == 102 and judge.accuracy > 0.8 and judge.interval == wilson_interval(judge.accuracy, 102)
    assert [len(part) for part in trained] == [90, 68, 68, 68]
    for part in trained[1:]:  # as many of each class
        assert np.ptp(np.bincount(part.labels)) <= 1
    monkeypatch.setattr(classifier, "least_accuracy", lambda classes: 0.5)  # now they do not
    assert new_judge("convolutional", data, few, CPU).tested == 12 and len(trained) == 5
    again = get_classifier("convolutional", data, few, tmp_path)  # from the file
    assert len(trained) == 5 and dataclasses.replace(again, network=judge.network) == judge
    monkeypatch.setattr(classifier, "least_accuracy", lambda classes: 0.999)
    assert new_judge("convolutional", data, many, CPU).tested == 300 and len(trained) == 6


@pytest.mark.end_to_end
def test_a_judge_of_sides_does_not_see_them_mirrored():
    """Bright on the left or on the right: mirrored, each would be the other, and the judge right by chance."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    images = rng.integers(0, 100, (240, 1, 16, 16), np.uint8)
    images[labels == 0, :, :, :8] += 100
    images[labels == 1, :, :, 8:] += 100
    sides = LabelledImages(images, labels, ["turnLeft", "turnRight"])
    part, rest = np.arange(200), np.arange(200, 240)
    network = classifier.trained_network(
        "convolutional", sides.part(part), CPU, Recipe(destroyed=0, epochs=0, min_images_seen=1280)
    )
    assert classifier.accuracy(network, sides.part(rest), CPU) > 0.9


# What samples are useful for


@pytest.mark.end_to_end
def test_useful_samples_are_told_from_useless_ones(monkeypatch):
    """Samples that are real images are as useful as these; with labels by chance they are not, but do less harm beside."""
    monkeypatch.setattr(usefulness, "_RECIPE", Recipe(destroyed=0, epochs=0, min_images_seen=1280))
    real, more, held_out = _shapes(120, 0), _shapes(150, 1), _shapes(150, 2)
    found = measure_usefulness(more, real, held_out, CPU)
    assert found["num_images"] == 120 and found["num_held_out"] == 150 and found["steps"] == 1280 // 32
    assert min(found["accuracy"].values()) > 0.9
    chance = LabelledImages(more.images, np.random.default_rng(0).permutation(more.labels), more.class_names)
    found = measure_usefulness(chance, real, held_out, CPU)["accuracy"]
    assert found["samples"] < 0.6 and found["real"] > 0.9 and found["samples"] < found["both"]


def test_usefulness_is_tested_on_images_that_the_model_was_not_trained_on():
    whole = _shapes(120, 0)
    real = RealImages(whole.part(np.arange(12, 120)), whole.part(np.arange(12)), whole, "a tenth")
    for number in (None, 9):
        kept, held_out = hold_out(whole, number)
        training = {
            "num_images": len(kept),
            "num_validation_images": len(held_out),
            "config": {"num_validation_images": number},
        }
        train_part, test_part, seen = images_for_usefulness(real, training)
        assert not seen and np.array_equal(test_part.images, whole.images[held_out])
        assert np.array_equal(train_part.images, whole.images[kept])
    other = training | {"num_images": 1000}  # trained on other data
    for unknown in (other, None, "not known"):
        assert images_for_usefulness(real, unknown) == (real.train, real.held_out, True)
    with_test = RealImages(whole, _shapes(30, 1), whole, "test")
    assert images_for_usefulness(with_test, other) == (whole, with_test.held_out, False)


def test_samples_are_of_as_many_of_each_class_as_the_real_images_that_they_are_compared_with():
    def real(*counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        return LabelledImages(np.zeros((len(labels), 1, 4, 4), np.uint8), labels, [f"class {n}" for n in range(len(counts))])

    assert labels_of_samples(real(500, 480, 510), 7) == [0, 1, 2, 0, 1, 2, 0]
    labels = np.array(labels_of_samples(real(900, 100), 1000))
    assert np.bincount(labels).tolist() == [900, 100]
    for counts in (
        (2000, 1000),
        (5000, 1000),
        (11_000, 1000),
    ):  # all six groups of `statistics.Tally` have their share of each
        labels = np.array(labels_of_samples(real(*counts), 3000))
        rare = [labels[np.arange(3000) // 2 % 6 == group].mean() for group in range(6)]
        assert np.allclose(rare, counts[1] / sum(counts), rtol=0.35)
        assert 0 < labels[:100].mean() < 0.5  # and so has a beginning, such as the search of a guidance draws
    assert min(np.bincount(labels_of_samples(real(5000, 2, 998), 1000), minlength=3)) >= 9


def test_usefulness_in_words():
    found = {
        "accuracy": {"samples": 0.5, "real": 0.75, "both": 0.8},
        "accuracy_std": {"samples": 0.01, "real": 0.0, "both": 0.02},
    }
    text = usefulness_text({**found, "num_images": 100, "num_held_out": 50, "steps": 400, "seeds": 3})
    assert "of 50.0% (+- 1.0%) if trained on samples, of 75.0% (+- 0.0%) if trained on as many real images" in text


# Which guidance is chosen


@pytest.fixture
def config(shapes_parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "RECIPE", Recipe(epochs=0, min_images_seen=640))
    monkeypatch.setattr(guidance, "RECIPE", classifier.RECIPE)
    monkeypatch.setattr(guidance, "SCALES", (1.0, 4.0, 8.0))
    monkeypatch.setattr(guidance, "_MOST", 60)
    monkeypatch.setattr(guidance, "cache_folder", lambda: tmp_path)
    return TrainCommandConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="simple",
        unet={**TINY, "block_out_channels": [8, 16]},
        batch_size=16,
        max_train_steps=2,
        checkpointing_steps=0,
        save_images_epochs=0,
        num_ema_snapshots=0,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


def _clock(seconds=0.001):
    """So much passes between two looks at it."""
    ticks = itertools.count()
    return lambda: next(ticks) * seconds


@pytest.mark.end_to_end
def test_the_best_guidance_becomes_the_default_before_the_card_is_written(config, monkeypatch):
    monkeypatch.setattr(guidance, "why_not_trusted", lambda *given: None)
    said = []

    def choose(run, seconds):
        assert not (run / "pipeline" / "README.md").exists() and seconds > 0
        said.append(choose_guidance(run, config, 4000, _clock()))

    run = train(config, on_trained=choose)
    results = json.loads((run / "pipeline" / "results.json").read_text())
    found = results["guidance"]
    rows = {row["guidance_scale"]: row for row in found["scales"]}
    assert 0 < found["seconds"] < 0.05 * 4000  # by the clock that was handed in
    assert list(rows) == [1, 4, 8] and {row["num_images"] for row in rows.values()} == {60}
    assert found["chosen"] == min(rows, key=lambda scale: rows[scale]["kernel_distance"])
    assert CondDDPMPipeline.from_pretrained(run / "pipeline").guidance_scale == found["chosen"]
    card = (run / "pipeline" / "README.md").read_text()
    assert said[0].startswith(f"guidance_scale {found['chosen']:g} was chosen after the training among 1, 4, 8")
    assert "![quality of the samples against their guidance scale](guidance.png)" in card and "was chosen after" in card
    for folder in (run, run / "pipeline"):
        with Image.open(folder / "guidance.png") as opened:
            assert opened.size[0] > 500
    assert choose_guidance(run, config, 4000, _clock()) is None  # it is chosen


@pytest.mark.end_to_end
def test_guidance_is_not_chosen_by_a_judge_that_is_not_trusted_nor_without_time(config, monkeypatch):
    run = train(config)
    assert choose_guidance(run, config, 119) is None
    assert "too little to train a judge" in choose_guidance(run, config, 120, _clock(10))
    monkeypatch.setattr(guidance, "why_not_trusted", lambda *given: "nobody knows")
    assert choose_guidance(run, config, 4000, _clock()) == "guidance_scale stays 1: nobody knows"
    monkeypatch.setattr(guidance, "why_not_trusted", lambda *given: None)
    assert "too little to draw 48 samples" in choose_guidance(run, config, 120, _clock(10))  # the judge is there by now
    load = guidance.load_real_images

    def all_trained_on(*given):
        real = load(*given)
        return dataclasses.replace(real, held_out=real.whole.part(np.arange(0)))

    monkeypatch.setattr(guidance, "load_real_images", all_trained_on)
    assert choose_guidance(run, config, 4000, _clock()) is None
    assert not (run / "guidance.png").exists()


@pytest.mark.parametrize(
    "settings, chooses",
    [
        ({}, True),
        ({"choose_guidance": False}, False),
        ({"guidance_scale": 2.0}, False),  # it is the user's
        ({"guidance_scale": 2.0, "choose_guidance": True}, True),
    ],
)
def test_who_chooses_guidance(config, settings, chooses, monkeypatch, capsys):
    """Also train_cond_ddpm.py calls this command. What goes wrong after the training does not lose it. From Python too."""
    import cond_ddpm.training

    def trained(config, on_epoch, on_trained):
        if on_trained is not None:
            on_trained("run", 1000.0)
        return "run"

    def refusing(error):
        def refuse(*given):
            raise error

        return refuse

    monkeypatch.setattr(cond_ddpm.training, "train", trained)
    config = dataclasses.replace(config, **settings)
    for called in (
        lambda: commands.train(config),
        lambda: cond_ddpm.train(config.part(TrainConfig), choose_guidance=config.choose_guidance),
    ):
        # torch has no class for the memory of a CPU, only these words.
        for error, words in (
            (ValueError("no pictures"), "no pictures"),
            (RuntimeError("DefaultCPUAllocator: 9 bytes"), "out of memory"),
        ):
            monkeypatch.setattr(guidance, "choose_guidance", refusing(error))
            assert called() in ("run folder: run", "run")
            assert (f"guidance_scale was not chosen: {words}" in capsys.readouterr().out) == chooses
