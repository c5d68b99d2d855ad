"""The study and the search, on tiny pictures: what they write, and that they go on where they were killed."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from cond_ddpm.cli import main
from cond_ddpm.config.experiments import StudyConfig, TuneConfig
from cond_ddpm.config.flags import parse
from cond_ddpm.experiments.study import study
from cond_ddpm.experiments.tune import tune

BASE = {
    "resolution": 8,
    "unet": {"block_out_channels": [8, 16], "layers_per_block": 1, "pos_dim": 16},
    "batch_size": 16,
    "num_validation_images": 16,
    "num_inference_steps": 2,
    "num_images_per_class": 1,
    "report_to": "none",
    "checkpointing_steps": 2,
}
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture
def base(shapes_parquet):
    return {**BASE, "dataset": str(shapes_parquet)}


def _study(folder, base):
    return StudyConfig(
        output_dir=str(folder),
        base=base,
        models={"plain": {"model": "simple", "num_epochs": 4}, "with attention": {"model": "attention", "num_epochs": 2}},
        evaluate={"num_samples": 12, "subset": 12},
        sampling=SAMPLING,
        evaluations=2,
    )


@pytest.mark.end_to_end
def test_study_measures_each_model_along_its_course(base, tmp_path, monkeypatch):
    from cond_ddpm.training import train

    trained = []

    def counted(config):
        trained.append(config.output_dir)
        if len(trained) == 2:
            raise KeyboardInterrupt  # the second model is never begun
        return train(config)

    config = _study(tmp_path, base)
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr("cond_ddpm.experiments.study.train", counted)
        study(config)
    monkeypatch.setattr("cond_ddpm.experiments.study.train", train)
    study(config)  # goes on with the second
    first = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "plain", tmp_path / "with attention")]
    assert [run["config"]["model"] for run in first] == ["simple", "attention"]

    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    moments = [("plain", "10"), ("plain", "20"), ("with attention", "5"), ("with attention", "10")]
    assert [(row["model"], row["step"]) for row in rows] == moments
    assert [float(row["epochs"]) for row in rows] == [2, 4, 1, 2]
    assert float(rows[1]["training_flop"]) == 2 * float(rows[0]["training_flop"]) > 1e6
    for row in rows:
        output = tmp_path / row["model"] / "evaluations" / f"step-{row['step']}.json"
        found = json.loads(output.read_text())
        assert float(row["frechet_distance"]) == found["samples"]["frechet_distance"]
        assert found["training"]["batch_size"] == 16
        assert found["training"]["step"] == int(row["step"])
    assert len({row["frechet_distance"] for row in rows}) == 4
    table = (tmp_path / "study.md").read_text()
    assert table.count("\n| ") == 6 and "real images, held out" in table and "12 samples against 87 real images" in table
    for name in ("study.png", "samples.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/evaluations/*.json")}
    monkeypatch.setattr("cond_ddpm.experiments.study.train", None)
    study(config)  # all is done: nothing is trained or measured again
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    study(dataclasses.replace(config, sampling={**SAMPLING, "guidance_scale": 3.0}))  # measured again, in another way
    assert all(stamp != path.stat().st_mtime_ns for path, stamp in stamps.items())
    with pytest.raises(ValueError, match="expected the settings it was trained with, got other batch_size"):
        study(dataclasses.replace(config, base={**base, "batch_size": 8}))


@pytest.mark.end_to_end
def test_study_by_the_command_line(base, tmp_path, capsys):
    """Also where training chooses the batch size. Learning guidance costs one forward pass more for each image."""
    del base["batch_size"]
    models = {"one": {"max_train_steps": 2, "model_guidance_scale": 2.0}}
    settings = {"output_dir": str(tmp_path / "out"), "base": base, "models": models}
    settings |= {"evaluate": {"num_samples": 6}, "sampling": SAMPLING, "evaluations": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    assert main(["study", "--config", str(tmp_path / "study.yaml")]) == 0
    assert "| one | " in capsys.readouterr().out
    training = json.loads((tmp_path / "out" / "one" / "pipeline" / "results.json").read_text())["training"]
    (row,) = csv.DictReader((tmp_path / "out" / "study.csv").read_text().splitlines())
    assert training["guided_from"] == 1 and float(row["training_flop"]) == training["training_flop"]
    assert float(row["epochs"]) == pytest.approx(training["images_seen"] / training["num_images"], abs=0.01)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"models": {"one": {"bach_size": 1}}}, "models.one: expected settings of training, got bach_size"),
        ({"models": {}}, "models: expected one or more"),
        ({"models": ["one"]}, r"models: expected names and values, got \['one'\]"),
        ({"models": {"one": {"use_ema": False}}}, "models.one: expected use_ema"),
        ({"models": {"one": {"batch_size": 0}}}, "batch_size: expected 1 or more"),
        ({"evaluate": {"dataset": "x"}}, "evaluate: expected"),
        ({"evaluate": {"num_samples": 1}}, "num_samples: expected 2 or more"),
        pytest.param(
            {"evaluate": {"num_samples": "x"}},
            "evaluate.num_samples: expected a whole number, 2 or more, or null, got 'x'",
            marks=pytest.mark.hostile(22),
        ),
        pytest.param(
            {"evaluate": {"features": 3}}, "evaluate.features: expected a text, got 3", marks=pytest.mark.hostile(22)
        ),
        pytest.param({"evaluate": {3: 3}}, "evaluate: expected .*, got 3", marks=pytest.mark.hostile(22)),
        pytest.param({"models": {"one": "x"}}, "models.one: expected settings", marks=pytest.mark.hostile(22)),
        pytest.param({"models": {"one": {1: 2}}}, "models.one: expected settings", marks=pytest.mark.hostile(22)),
        pytest.param(
            {"models": {1: {}}}, "models: expected names that folders can have, got 1", marks=pytest.mark.hostile(20)
        ),
        pytest.param({"models": {"../x": {}}}, "models: expected names that folders can have", marks=pytest.mark.hostile(20)),
        pytest.param(
            {"sampling": {"num_inference_steps": "x"}},
            "sampling.num_inference_steps: expected a whole number",
            marks=pytest.mark.hostile(22),
        ),
        pytest.param(
            {"sampling": {"guidance_interval": 3}},
            "sampling.guidance_interval: expected 2 values, each a number",
            marks=pytest.mark.hostile(22),
        ),
        ({"sampling": {"num_inference_step": 3}}, "sampling: expected"),
        ({"evaluations": "3"}, "evaluations: expected a whole number, 1 or more, got '3'"),
        ({"evaluations": 0}, "evaluations: expected 1 or more"),
        ({"trials": 3}, "config: expected a YAML file of settings, .* got trials; there are output_dir, base, evaluate"),
    ],
)
def test_study_settings_that_do_not_fit(changes, words, tmp_path, capsys):
    settings = {"output_dir": "x", "base": {}, "models": {"one": {}}, **changes}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        main(["study", "--config", str(tmp_path / "study.yaml")])
    _, error = capsys.readouterr().err.splitlines()
    assert re.search(words, error)


def test_presets_of_study_and_search():
    runs = parse(StudyConfig, ["--config", str(ROOT / "configs/study.yaml")]).runs()
    assert runs["simple"].num_epochs == 4 * runs["attention"].num_epochs  # the study's ratio
    assert {runs[name].model for name in runs} == {"simple", "attention"}
    assert parse(TuneConfig, ["--config", str(ROOT / "configs/tune.yaml")]).trials == 12
    for name in ("study", "tune"):
        first = (ROOT / f"configs/{name}.yaml").read_text().splitlines()[0]
        assert first == f"# cond-ddpm {name} --config configs/{name}.yaml"


def _tune(folder, base, **settings):
    search = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "unet.layers_per_block": [1, 2]}
    search |= {"unet.block_out_channels": [[8, 16], [16, 16]]}
    fixed = {**base, "num_epochs": 2, "save_images_epochs": 0, "num_ema_snapshots": 0}
    return TuneConfig(**{"output_dir": str(folder), "base": fixed, "search": search, "trials": 3, **settings})


@pytest.mark.end_to_end
def test_search_goes_on_where_it_was_killed(base, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from cond_ddpm.training import train

    calls = []

    def killed_in_the_second(config, on_epoch):
        calls.append(config.output_dir)
        if len(calls) == 2:
            train(config.__class__(**{**vars(config), "max_train_steps": 2}), on_epoch)  # half a trial
            raise SystemExit(137)
        return train(config, on_epoch)

    config = _tune(tmp_path, base)
    with pytest.raises(SystemExit):
        monkeypatch.setattr("cond_ddpm.experiments.tune.train", killed_in_the_second)
        tune(config)
    owner = tmp_path / "trial-1.owner"
    host, process, began = json.loads(owner.read_text())
    owner.write_text(json.dumps([host, process, began - 1]))  # as if of an earlier process of that number, which is gone
    went_on = []
    counted = lambda settings, on_epoch: went_on.append(settings.output_dir) or train(settings, on_epoch)  # noqa: E731
    monkeypatch.setattr("cond_ddpm.experiments.tune.train", counted)
    folder = tune(config)
    assert went_on[0] == str(tmp_path / "trial-1") and len(went_on) == 2  # the same trial, from its checkpoint
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    finished = [row for row in rows if row["state"] in ("complete", "pruned")]
    assert len(finished) == 3 and [row["state"] for row in rows].count("fail") == 1
    best = yaml.safe_load((folder / "best.yaml").read_text())
    least = min((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["val_loss"]))
    assert best["learning_rate"] == float(least["learning_rate"])
    assert best["unet"]["block_out_channels"] == json.loads(least["unet.block_out_channels"])
    for name in ("history", "slice"):
        assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 5
    before = (folder / "trials.csv").read_text()
    monkeypatch.setattr("cond_ddpm.experiments.tune.train", None)
    tune(config)  # all trials are done
    assert (folder / "trials.csv").read_text() == before


@pytest.mark.hostile(14)
def test_a_full_disk_during_a_search_is_one_line(base, tmp_path, monkeypatch):
    errors = pytest.importorskip("sqlalchemy.exc")
    full = errors.OperationalError("INSERT INTO trials", {}, OSError("database or disk is full"))
    monkeypatch.setattr("optuna.create_study", lambda **_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"storage: the trials could not be .*: database or disk is full; once they") as raised:
        tune(_tune(tmp_path, base))
    assert "\n" not in str(raised.value)


@pytest.mark.end_to_end
def test_search_by_distance_and_a_setting_that_does_not_fit(base, tmp_path):
    """A batch of 500 is larger than the data set: that trial fails, the search does not."""
    pytest.importorskip("optuna")

    settings = {"search": {"batch_size": [16, 500]}, "trials": 1, "objective": "frechet_distance", "seed": 2}
    settings |= {"evaluate": {"num_samples": 6, "subset": 6}, "sampling": SAMPLING, "storage": f"journal:{tmp_path}/journal"}
    folder = tune(_tune(tmp_path / "out", base, **settings))
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {row["state"] for row in rows}
    assert "complete" in found and found <= {"complete", "fail"}
    best = next(row for row in rows if row["state"] == "complete")
    results = json.loads((folder / f"trial-{best['trial']}/results.json").read_text())
    assert float(best["frechet_distance"]) == results["samples"]["frechet_distance"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"objective": "beauty"}, "objective: expected one of val_loss, frechet_distance, got 'beauty'"),
        ({"search": {"bach_size": [1]}}, "unet.NAME to search, got bach_size"),
        ({"search": {"unet": [{}]}}, "and unet.NAME to search, got unet"),
        ({"search": {"learning_rate.x": [1]}}, "got learning_rate.x"),
        ({"search": {"prediction_type": ["epsilon"]}}, "expected nothing that changes what val_loss means"),
        ({"search": {"dropout": [1]}}, "got dropout"),
        ({"search": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "low above 0 with log"),
        ({"search": {"batch_size": {"low": 1}}}, "search.batch_size: expected a list of choices, or low and high"),
        ({"trials": 0}, "trials: expected 1 or more, got 0"),
    ],
)
def test_search_settings_that_do_not_fit(changes, words):
    settings = {"output_dir": "x", "base": {}, "search": {"batch_size": [8, 16]}, **changes}
    with pytest.raises(ValueError, match=words):
        TuneConfig(**settings)


@pytest.mark.end_to_end
def test_a_search_in_which_nothing_fits_ends(base, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    calls = []

    def fails(settings, on_epoch):
        calls.append(settings)
        raise ValueError("no such layer")

    monkeypatch.setattr("cond_ddpm.experiments.tune.train", fails)
    with pytest.raises(ValueError, match="all 3 trials failed, the last by: no such layer"):
        tune(_tune(tmp_path, base, trials=10))
    assert len(calls) == 3 and "Traceback" not in capsys.readouterr().err


BAD_MEASUREMENT = [
    ({"sampling": {"num_inference_steps": 5000}}, "sampling: num_inference_steps: expected 1 to 1000"),
    (
        {"sampling": {"guidance_scale": 1.0, "guidance_rescale": 0.5}},
        "sampling: guidance_scale: expected a value other",
    ),
    ({"sampling": {"sampler": "unipc", "timestep_spacing": "quadratic"}}, "sampling: timestep_spacing: expected a scheduler"),
    ({"evaluate": {"features": "vgg"}}, "evaluate: features: expected one of classifier, inception, dinov2"),
    ({"evaluate": {"weights": "x"}}, "evaluate: weights: expected none with the classifier"),
    ({"evaluate": {"test_split": "valid"}}, "evaluate: .*expected a data set with a split 'valid'"),
]


@pytest.mark.parametrize("changes, words", BAD_MEASUREMENT)
@pytest.mark.end_to_end
def test_what_measuring_would_refuse_is_refused_before_training(changes, words, base, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    for module in ("study", "tune"):
        monkeypatch.setattr(f"cond_ddpm.experiments.{module}.train", None)
    with pytest.raises(ValueError, match=words):
        study(dataclasses.replace(_study(tmp_path, base), **changes))
    with pytest.raises(ValueError, match=f"search: expected some trials whose settings fit, but none would: {words}"):
        tune(_tune(tmp_path, base, objective="frechet_distance", **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"unet": {"pos_dm": 3}}, "unet.pos_dm: expected an argument of SimpleUNet2DModel"),
        ({"dataset": "./nowhere"}, "dataset: expected a Hub id"),
    ],
)
def test_the_last_model_is_looked_at_before_the_first_is_trained(changes, words, base, tmp_path, monkeypatch):
    monkeypatch.setattr("cond_ddpm.experiments.study.train", None)
    models = {"first": {"model": "simple"}, "last": {"model": "simple", **changes}}
    with pytest.raises((ValueError, OSError), match=words):
        study(dataclasses.replace(_study(tmp_path, base), models=models))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"base": {"push_to_hub": True}}, "none would: base.push_to_hub, hub_model_id: expected both or neither"),
        ({"base": {"learning_rate": -1}}, "none would: base.learning_rate: expected more than 0, got -1.0"),
        ({"base": {"unet": [1]}}, r"none would: base.unet: expected names and values, got \[1\]"),
        ({"search": {"batch_size": [8, 0]}}, "search.batch_size: expected 1 or more, got 0"),
        (
            {"search": {"batch_size": {"low": 0.5, "high": 8}}},
            "search.batch_size: expected a whole number, 1 or more, or null, got 0.5",
        ),
        ({"search": {"batch_size": {"low": "a", "high": 8}}}, "search.batch_size: expected numbers, low < high"),
        ({"search": {1: [2]}}, "search: expected settings of training, .* got 1"),
    ],
)
def test_a_search_in_which_every_trial_would_fail_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TuneConfig(**{"output_dir": "x", "base": {}, "search": {"batch_size": [8, 16]}, **changes})


def test_a_search_of_two_trials_that_both_fail_gives_the_reason(base, tmp_path, monkeypatch):
    pytest.importorskip("optuna")

    def fails(settings, on_epoch):
        raise FloatingPointError("loss: expected a finite number")

    monkeypatch.setattr("cond_ddpm.experiments.tune.train", fails)
    with pytest.raises(ValueError, match="all 2 trials failed, the last by: loss: expected a finite number"):
        tune(_tune(tmp_path, base, trials=2))


@pytest.mark.hostile(20)
def test_names_of_models_are_text_in_the_table():
    from cond_ddpm.experiments.study import _markdown

    figures = {"num_images": 9, "frechet_distance": 1.0}
    quoted = {
        "num_samples": 12,
        "split_images": 9,
        "split": "<a>",
        "features": "x",
        "scheduler": "y",
        "num_inference_steps": 2,
    }
    quoted |= {"guidance_scale": 1, "seed": 0}
    last = {"samples": {**figures, "num_images": 12}, "held_out_real": figures, "protocol": quoted, "warnings": ["of [x](y)"]}
    table = _markdown([{"model": "a|b <!-- c"}], last)
    assert not set(table) & set("<[") and len({line.count("|") for line in table.splitlines()[:4]}) == 1
    assert "real images, held out (9 of them)" in table  # beside 12 samples
