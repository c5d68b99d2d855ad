"""`cond_ddpm.train` and `cond_ddpm.evaluate` do what the commands of the same names do."""

import dataclasses
import importlib
import json

import pytest
import yaml
from conftest import TINY

import cond_ddpm
from cond_ddpm import EvaluateConfig, TrainConfig
from cond_ddpm.cli import main
from cond_ddpm.evaluation import classifier


@pytest.mark.end_to_end
def test_python_and_the_commands_train_and_measure_the_same(shapes_parquet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier, "RECIPE", classifier.Recipe(epochs=0, min_images_seen=640))
    settings = {
        "dataset": str(shapes_parquet),
        "resolution": 8,
        "model": "simple",
        "unet": {**TINY, "block_out_channels": [8, 16]},
        "batch_size": 16,
        "num_validation_images": 16,
        "max_train_steps": 2,
        "num_inference_steps": 2,
        "num_images_per_class": 1,
        "report_to": "none",
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    epochs, measured = [], {}
    runs = {name: tmp_path / name / "run" for name in ("python", "command")}
    assert cond_ddpm.train(TrainConfig(**settings, output_dir=runs["python"]), epochs.append) == runs["python"]
    assert [row["step"] for row in epochs] == [2]
    assert main(["train", "--config", str(tmp_path / "settings.yaml"), "--output_dir", str(runs["command"])]) == 0
    for name in ("unet/diffusion_pytorch_model.safetensors", "samples.png"):
        assert len({(run / "pipeline" / name).read_bytes() for run in runs.values()}) == 1, name

    for name, run in runs.items():
        sampling = {"num_samples": 12, "num_inference_steps": 2, "batch_size": 4}
        given = {"model": run / "pipeline", "dataset": shapes_parquet, "output": run / "pipeline" / "results.json", **sampling}
        if name == "python":
            returned = cond_ddpm.evaluate(EvaluateConfig(**given))
        else:
            capsys.readouterr()
            assert main(["evaluate", *(f"--{key}={value}" for key, value in given.items())]) == 0
            assert str(given["output"]) in capsys.readouterr().out
        measured[name] = json.loads(given["output"].read_text())
        assert "Fréchet distance" in (run / "pipeline" / "README.md").read_text()
        assert "Fréchet distance" in (run / "report.html").read_text()
    assert json.loads(json.dumps(returned)) == measured["python"]
    for one in measured.values():
        del one["seconds"], one["training"], one["protocol"]["model"]
    assert measured["python"] == measured["command"]


def test_evaluate_stays_a_function_whatever_is_imported():
    importlib.import_module("cond_ddpm.evaluation.evaluate")
    assert callable(cond_ddpm.evaluate) and cond_ddpm.evaluate is not cond_ddpm.evaluation.evaluate.evaluate


def test_a_wrong_setting_is_the_line_that_the_command_prints(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"num_samples: expected 2 or more, got 1") as raised:
        EvaluateConfig(model="model", dataset="data", output=tmp_path / "results.json", num_samples=1)
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "model", "--dataset", "data", "--output", "results.json", "--num_samples", "1"])
    assert str(raised.value) in capsys.readouterr().err


def test_paths_may_be_paths(tmp_path):
    config = TrainConfig(dataset=tmp_path, output_dir=tmp_path / "run")
    assert (config.dataset, config.output_dir) == (str(tmp_path), str(tmp_path / "run"))
    with pytest.raises(ValueError, match="train_split: expected a text, got PosixPath"):
        dataclasses.replace(config, train_split=tmp_path)
