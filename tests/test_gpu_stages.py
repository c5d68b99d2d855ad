"""The stages for a machine with a GPU (`make gpu`), proven on the CPU by their tiny mode."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def _stage(name, tmp_path, *flags, work="work"):
    command = [sys.executable, "benchmarks/gpu.py", name, "--tiny", "--output", tmp_path / "kept", "--work", tmp_path / work]
    done = subprocess.run([*map(str, command), *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept: " in done.stdout
    return json.loads((tmp_path / "kept" / f"{name}.summary.json").read_text())


@pytest.mark.integration
def test_training_and_evaluation_go_on_from_what_is_kept(tmp_path):
    """On a machine that has nothing but the kept folder, the training goes on from the step that it had reached."""
    first = _stage("train", tmp_path, "--", "--max_train_steps", "4")
    assert first["step"] == 4 and first["over"]
    sizes = {path: path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 60e6 and max(sizes.values()) < 15e6
    assert _stage("train", tmp_path, "--", "--max_train_steps", "8", work="another machine")["step"] == 8
    losses = [json.loads(line) for line in (tmp_path / "another machine/run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses if "loss" in row] == [5, 6, 7, 8]
    found = _stage("evaluate", tmp_path, "--", "--num_inference_steps", "2", work="a third")
    assert found["over"] and 0 <= found["label_accuracy"] <= 1
    training = json.loads((tmp_path / "kept/results.json").read_text())["protocol"]
    assert training["num_samples"] == 64


@pytest.mark.integration
def test_a_stage_ends_in_time_and_goes_on(tmp_path):
    """A training that would take an hour is stopped, and what it has is kept; what was measured is not measured again."""
    found = _stage("train", tmp_path, "--minutes", "0.7")
    assert not found["over"] and found["step"] > 0 and found["seconds"] < 42
    assert (tmp_path / "kept" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    (row,) = _stage("throughput", tmp_path).keys() - {"seconds"}
    before = (tmp_path / "kept" / "throughput.json").read_bytes()
    assert _stage("throughput", tmp_path)[row] and (tmp_path / "kept" / "throughput.json").read_bytes() == before


@pytest.mark.slow
def test_the_tests_for_a_gpu_work(tmp_path):
    found = _stage("tests", tmp_path)
    assert found["PASSED"] > 10 and not found.keys() & {"FAILED", "ERROR"}
