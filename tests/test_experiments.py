"""The queue of experiments: what is taken next, and that a kill loses nothing. No figure of the tiny network is looked at."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, TINY

SCRIPT = ROOT / "benchmarks" / "experiments" / "run.py"
spec = importlib.util.spec_from_file_location("experiments_run", SCRIPT)
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)

TRAIN = {
    "model": "simple",
    "unet": {**TINY, "block_out_channels": [8, 16]},
    "resolution": 8,
    "batch_size": 8,
    "num_validation_images": 8,
    "max_train_steps": 60,
    "checkpointing_steps": 5,
    "num_ema_snapshots": 0,
    "save_images_epochs": 0,
    "report_to": "none",
}
MEASURE = {"num_samples": 12, "subset": 12, "num_inference_steps": 2}


def fill(queue, **experiments):
    queue.mkdir()
    for name, settings in experiments.items():
        (queue / f"{name}.yaml").write_text(yaml.safe_dump(settings))


def test_the_first_trial_that_lacks_a_row_is_next(tmp_path):
    measure = {"few": MEASURE, "many": MEASURE}
    fill(
        tmp_path / "queue",
        later={"order": 2, "seeds": [0], "evaluate": measure},
        sooner={"order": 1, "seeds": [0, 1], "evaluate": measure},
    )
    row = {"experiment": "sooner", "seed": 0, "evaluation": "few"}
    runner.append(tmp_path / "results.jsonl", row)
    trials = runner.open_trials(tmp_path / "queue", tmp_path)
    assert [(name, seed, missing) for name, _, seed, missing in trials] == [
        ("sooner", 0, ["many"]),
        ("sooner", 1, ["few", "many"]),
        ("later", 0, ["few", "many"]),
    ]
    runner.append(tmp_path / "results.jsonl", {**row, "evaluation": "many"})  # rows kept in the checkout count as well
    (tmp_path / "results.jsonl").rename(tmp_path / "queue" / "results.jsonl")
    assert [(trial[0], trial[2]) for trial in runner.open_trials(tmp_path / "queue", tmp_path)] == [
        ("sooner", 1),
        ("later", 0),
    ]


def test_each_experiment_starts_from_a_base_or_a_preset_that_exists():
    queue = SCRIPT.parent
    known = {file.stem for folder in (queue / "bases", ROOT / "configs") for file in folder.glob("*.yaml")}
    for name, settings in runner.experiments(queue):
        assert settings.get("config") in {None, *known}, name


def test_a_row_after_a_half_written_one_is_read(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [{"experiment": "a", "seed": seed, "evaluation": "few"} for seed in (0, 1)]
    runner.append(file, rows[0])
    with file.open("a") as opened:
        opened.write('\n{"experiment": "a", "se')
    runner.append(file, rows[1])
    assert runner.rows(file) == rows


def test_a_trial_that_another_runner_has_ended_is_not_done_again(tmp_path, monkeypatch):
    """It was open when this runner looked, and has its row when this runner holds its lock."""
    fill(tmp_path / "queue", one={"order": 1, "seeds": [0], "evaluate": {"few": MEASURE}})
    looks, calls = [], []
    original = runner.open_trials

    def look(queue, lab):
        found = original(queue, lab)
        if not looks:
            runner.append(lab / "results.jsonl", {"experiment": "one", "seed": 0, "evaluation": "few"})
        looks.append(found)
        return found

    monkeypatch.setattr(runner, "open_trials", look)
    monkeypatch.setattr(runner, "run", lambda *arguments: calls.append(arguments))
    given = SimpleNamespace(queue=tmp_path / "queue", lab=tmp_path, commit=".", watch=False)
    runner.work(given)
    assert len(looks[0]) == 1 and looks[-1] == [] and calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="a child ends with its parent on Linux only")
@pytest.mark.integration
def test_a_killed_queue_goes_on_from_the_checkpoint(tmp_path, shapes_parquet):
    lab, trial = tmp_path / "lab", tmp_path / "lab" / "runs" / "tiny-seed0"
    again = {"samples_of": "few", "subset": 12, "resolution": TRAIN["resolution"]}
    measure = {"few": MEASURE, "again": again}
    fill(tmp_path / "queue", tiny={"order": 1, "seeds": [0], "train": TRAIN, "evaluate": measure})
    command = [sys.executable, SCRIPT, "--queue", tmp_path / "queue", "--lab", lab, "--commit", ".", "--priority", "normal"]
    command = [*map(str, command), "--dataset", str(shapes_parquet)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(trial.glob("checkpoint-[0-9]*")):
        assert first.poll() is None, (lab / "logs" / "tiny-seed0.log").read_text()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (trial / "trained").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "nothing is left to do\n" in done.stdout, done.stdout + (lab / "logs" / "tiny-seed0.log").read_text()[-2000:]
    row, again = runner.rows(lab / "results.jsonl")
    for key in ("step", "num_samples", "guidance_scale", "label_accuracy", "frechet_distance"):
        assert again[key] == row[key]  # the same samples, judged twice
    assert (row["experiment"], row["seed"], row["evaluation"], row["num_samples"]) == ("tiny", 0, "few", 12)
    steps = [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 61))
    assert (lab / "evaluations" / "tiny-seed0" / "few.npz").is_file()
