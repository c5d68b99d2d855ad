"""The stages for a machine with a GPU (`make gpu`), proven on the CPU by their tiny mode."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


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
    assert json.loads((tmp_path / "kept/results.json").read_text())["protocol"]["num_samples"] == 64


@pytest.mark.integration
def test_what_was_measured_is_not_measured_again(tmp_path):
    (row,) = _stage("throughput", tmp_path).keys() - {"seconds"}
    before = (tmp_path / "kept" / "throughput.json").read_bytes()
    assert _stage("throughput", tmp_path)[row] and (tmp_path / "kept" / "throughput.json").read_bytes() == before


@pytest.mark.parametrize("handler, code", [("signal.SIG_DFL", -15), ("signal.SIG_IGN", -9), ("lambda *_: exit(7)", 7)])
def test_a_program_is_stopped_in_time(handler, code):
    """Told to, or else killed."""
    program = f"import signal, time; signal.signal(signal.SIGTERM, {handler}); print('ready', flush=True); time.sleep(600)"
    assert gpu.Limit(0.05).run([sys.executable, "-c", program])[0] == code
    assert gpu.Limit(1).run([sys.executable, "-c", "print('done')"]) == (0, "done\n")


def test_what_cannot_be_carried_is_an_error(tmp_path):
    (tmp_path / "small").write_bytes(bytes(1000))
    assert gpu.check_kept(tmp_path) == "0.0 MB in 1 files, the largest of 0.0 MB"
    (tmp_path / "large").write_bytes(bytes(15_000_001))
    with pytest.raises(SystemExit, match=r"at most 60 MB in files of at most 15 MB, got 15.0 MB; .*large \(15.0 MB\)"):
        gpu.check_kept(tmp_path)


@pytest.mark.slow
def test_a_training_is_stopped_in_time(tmp_path):
    """One that would take an hour; what it has is kept."""
    found = _stage("train", tmp_path, "--minutes", "0.8")
    assert not found["over"] and found["step"] > 0
    assert (tmp_path / "kept" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.slow
def test_the_tests_for_a_gpu_work(tmp_path):
    found = _stage("tests", tmp_path)
    assert found["PASSED"] > 10 and not found.keys() & {"FAILED", "ERROR"}
