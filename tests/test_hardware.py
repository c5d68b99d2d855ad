"""What `mixed_precision: auto` stands for, and networks that cannot be compiled."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, TINY, make_pipeline, make_unet

import cond_ddpm.hardware as hardware
import cond_ddpm.processes
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.experiments import StudyConfig
from cond_ddpm.config.flags import read_yaml
from cond_ddpm.config.presets import presets
from cond_ddpm.experiments.study import _train
from cond_ddpm.hardware import precision_for
from cond_ddpm.sampling import generate
from cond_ddpm.training import train
from cond_ddpm.training.checkpoint import checkpoints, load_checkpoint


@pytest.mark.parametrize(
    "can, limit, expected",
    [
        ({"avx512_bf16": True}, None, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": True}, "ALL", "bf16"),
        ({"avx512_bf16": True}, "AVX512_CORE_BF16", "bf16"),
        ({"avx512_bf16": True}, "avx2", "no"),
        ({"avx512_f": True, "avx512_bf16": False}, None, "no"),
        ({"avx2": True}, None, "no"),
        ({"neon": True, "bf16": True}, None, "no"),  # ARM has not been tried
        (None, None, "no"),  # an older torch
    ],
)
def test_auto_on_a_cpu(monkeypatch, can, limit, expected):
    if can is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision_for(torch.device("cpu")) == expected


@pytest.mark.parametrize("capability, expected", [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "no")])
def test_auto_on_a_gpu(monkeypatch, capability, expected):
    """Volta and Turing have fast fp16, and bf16 from Ampere on; what is emulated is not fast."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or capability >= (8, 0)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_for(torch.device("cuda")) == expected
    assert precision_for(torch.device("mps")) == "no"


@pytest.fixture
def config(shapes_parquet, tmp_path):
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="simple",
        unet={**TINY, "block_out_channels": [8, 16]},
        batch_size=16,
        num_validation_images=16,
        max_train_steps=4,
        lr_scheduler="constant",
        mixed_precision="auto",
        save_images_epochs=0,
        num_ema_snapshots=0,
        checkpointing_steps=2,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


def _last(run):
    tensors, *_ = load_checkpoint(checkpoints(run)[0])
    return tensors["unet"]


@pytest.mark.end_to_end
def test_a_run_keeps_the_precision_that_it_began_with(config, monkeypatch, tmp_path):
    """Where it resumes on other hardware, and where the preset asked for bf16 when it began."""
    monkeypatch.setattr(cond_ddpm.processes, "precision_for", lambda device: "bf16")
    whole = train(config)
    resolved = json.loads((whole / "config.json").read_text())
    assert (resolved["config"]["mixed_precision"], resolved["resolved"]["mixed_precision"]) == ("auto", "bf16")
    assert json.loads((whole / "pipeline" / "results.json").read_text())["training"]["mixed_precision"] == "bf16"
    assert load_checkpoint(checkpoints(whole)[0])[3]["mixed_precision"] == "bf16"
    half = dataclasses.replace(config, output_dir=str(tmp_path / "half"), max_train_steps=2, mixed_precision="bf16")
    train(half)
    monkeypatch.setattr(cond_ddpm.processes, "precision_for", lambda device: "no")
    with pytest.warns(UserWarning, match="auto stays bf16, with which the run began; this hardware is fastest with no"):
        train(dataclasses.replace(config, output_dir=half.output_dir, resume_from_checkpoint="latest"))
    first, second = _last(whole), _last(half.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)
    new = dataclasses.replace(config, output_dir=str(tmp_path / "new"), max_train_steps=1, resume_from_checkpoint="latest")
    train(new)  # there is none yet
    assert json.loads((new.folder / "config.json").read_text())["resolved"]["mixed_precision"] == "no"


def test_a_study_that_was_done_with_the_preset_of_before_is_done(tmp_path):
    config = StudyConfig(**read_yaml(presets()["study"]))
    for name, settings in config.runs().items():
        assert settings.mixed_precision == "auto"
        (tmp_path / name).mkdir()
        done = {**dataclasses.asdict(settings), "mixed_precision": "bf16"}
        (tmp_path / name / "done.json").write_text(json.dumps(done))
        _train(settings, name, tmp_path / name)  # or else it would train for an hour


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile, whose compiler fails."""

    def fails(graph, inputs):
        raise RuntimeError("no working compiler found")

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend=fails))
    monkeypatch.setattr(hardware, "_FAILED", [])
    yield
    torch.compiler.set_stance("default")


@pytest.mark.end_to_end
def test_a_network_that_cannot_be_compiled_is_trained_without(config, no_compiler, tmp_path):
    config = dataclasses.replace(config, mixed_precision="no")
    with pytest.warns(UserWarning, match="cannot be compiled here and runs without") as caught:
        compiled = train(dataclasses.replace(config, compile=True, output_dir=str(tmp_path / "compiled")))
    assert sum("cannot be compiled" in str(one.message) for one in caught) == 1
    torch.compiler.set_stance("default")
    first, second = _last(train(config)), _last(compiled)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_network_that_cannot_be_compiled_draws_without(no_compiler):
    pipeline = make_pipeline(make_unet("simple"))
    expected = generate(pipeline, NAMES, [0, 1, 2], num_inference_steps=2)
    pipeline.unet.compile()
    assert hardware.is_compiled(pipeline.unet)
    with pytest.warns(UserWarning, match="cannot be compiled here and runs without") as caught:
        assert np.array_equal(generate(pipeline, NAMES, [0, 1, 2], num_inference_steps=2), expected)
    assert sum("cannot be compiled" in str(one.message) for one in caught) == 1
    assert not hardware.is_compiled(pipeline.unet)


def test_other_errors_of_a_compiled_network_are_raised():
    pipeline = make_pipeline(make_unet("simple"))
    pipeline.unet.compile(backend="eager")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="num_inference_steps"):
        generate(pipeline, [0], [0], num_inference_steps=0)


@pytest.mark.integration
def test_without_a_compiler_on_the_machine(shapes_parquet, tmp_path):
    """The real compiler of torch, which finds no other: one warning, and the run is there."""
    (tmp_path / "empty").mkdir()
    nothing = {"PATH": str(tmp_path / "empty"), "CXX": "no-such-compiler", "CC": "no-such-compiler"}
    env = {**os.environ, **nothing, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "always", "-m", "cond_ddpm.cli"]
    small = ["--dataset", shapes_parquet, "--resolution", "8", "--batch_size", "16", "--num_validation_images", "16"]
    small += ["--unet.size", "tiny", "--max_train_steps", "3", "--report_to", "none", "--output_dir", "run"]
    small += ["--num_inference_steps", "2"]
    arguments = ["train", "--config", "hybrid_cifar10_cpu", *small]
    done = subprocess.run([*command, *map(str, arguments)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be compiled here and runs without") == 1, done.stderr
    assert "install one (g++, clang or Visual Studio), or leave out compile" in done.stderr
    assert (tmp_path / "run" / "pipeline" / "README.md").is_file()
