"""One of several processes is killed or hangs, or the network between two machines is cut: the others end, and say so."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, TINY, make_pipeline, make_unet, one_thread_each

from cond_ddpm.config import TrainConfig
from cond_ddpm.training import train

SILENCE = 3  # seconds after which a process is given up, in these tests
# What the processes run: with FAULT=NAME, the one of that rank sends itself the signal in the middle of the 13th step, or of
# the third batch of samples.
SCRIPT = """
import os, sys, time
import cond_ddpm.sampling as sampling, cond_ddpm.training.loop as loop
from cond_ddpm.cli import main

def faulty(function):
    calls = []
    def call(*given, **named):
        calls.append(1)
        time.sleep(float(os.environ.get("SECONDS_A_STEP", 0)))
        if len(calls) == FAULT_AT and os.environ.get("RANK") == os.environ.get("FAULT_RANK"):
            os.kill(os.getpid(), int(os.environ["FAULT"]))
        return function(*given, **named)
    return call

FAULT_AT = 13 if sys.argv[1] == "train" else 3
loop.train_step = faulty(loop.train_step)
if "FAULT" in os.environ:
    sampling.eager_if_not_compiled = faulty(sampling.eager_if_not_compiled)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def config(shapes_parquet, tmp_path):
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="attention",
        unet={**TINY, "block_out_channels": [8, 16]},
        batch_size=16,
        mixed_precision="no",
        num_validation_images=16,
        max_train_steps=20,
        learning_rate=6e-4,  # what processes may differ by was found with this one
        save_images_epochs=0,
        checkpointing_steps=5,
        report_to="none",
        num_cpu_threads=1,
        output_dir=str(tmp_path / "run"),
    )


def _flags(config):
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None and name != "unet"}
    given |= {f"unet.{name}": json.dumps(value) for name, value in config.unet.items()}
    return ["train", *(f"--{name}={value}" for name, value in given.items())]


def _launch(tmp_path, flags, processes=2, launcher=None, **env):
    """Start it on several processes of this machine, or by the given launcher."""
    import datasets

    (tmp_path / "run.py").write_text(SCRIPT)
    launcher = launcher or [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command = [*launcher, tmp_path / "run.py", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), **env}
    env = {"COND_DDPM_PROCESS_TIMEOUT": str(SILENCE), "OMP_NUM_THREADS": "1", **env}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=ROOT, env=env, preexec_fn=one_thread_each(processes), **pipes)


def _end(launched):
    """What it printed, once it has ended. torchrun would give a stopped process half a minute: it is killed at once."""
    launcher = psutil.Process(launched.pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        while launched.poll() is None:
            workers = launcher.children(recursive=True)
            stopped = [worker for worker in workers if worker.status() == psutil.STATUS_STOPPED]
            if stopped and len(workers) == len(stopped):
                for worker in stopped:
                    worker.kill()
            time.sleep(0.1)
    return launched.communicate(timeout=600)[0]


def _losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], [row["val_loss"] for row in rows if "val_loss" in row]


def _assert_same_course(run, whole):
    for found, expected in zip(_losses(run), _losses(whole)):
        assert len(found) == len(expected)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "number, rank, resumed_on",
    [
        (signal.SIGKILL, 1, 2),
        (signal.SIGSTOP, 1, 1),
        pytest.param(signal.SIGKILL, 0, 4, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.integration
def test_a_process_that_dies_or_hangs_ends_the_others(config, tmp_path, number, rank, resumed_on):
    """They say which one it is; the run goes on from its last checkpoint, on any number of processes, in the same course."""
    whole = train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    printed = _end(_launch(tmp_path, _flags(config), FAULT=str(int(number)), FAULT_RANK=str(rank)))
    assert f"error: process {rank} of 2 (counted from 0, on " in printed, printed
    assert " has not answered for " in printed
    resumed = dataclasses.replace(config, resume_from_checkpoint="latest")
    if resumed_on == 1:
        train(resumed)
    else:
        printed = _end(_launch(tmp_path, _flags(resumed), resumed_on))
        assert "error" not in printed, printed
    _assert_same_course(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@pytest.mark.integration
def test_sampling_ends_too_and_says_why(tmp_path, number):
    make_pipeline(make_unet()).save_pretrained(tmp_path / "model")
    flags = ["sample", "--model", tmp_path / "model", "--class_labels", "cross", "--num_images_per_class", "24"]
    flags += ["--num_inference_steps", "2", "--batch_size", "2", "--output", tmp_path / "out"]
    printed = _end(_launch(tmp_path, flags, FAULT=str(int(number)), FAULT_RANK="1"))
    assert "error: process 1 of 2 (counted from 0, on " in printed, printed


@pytest.fixture
def machines():
    """Two network namespaces that a virtual link joins, as two machines: how to run a command in each; and to set the link."""
    names = [f"cond-ddpm-{os.getpid()}-{rank}" for rank in (0, 1)]
    links = [f"cd{os.getpid()}{end}" for end in "ab"]

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
            for rank, (name, link) in enumerate(zip(names, links)):
                ip("-n", name, "address", "add", f"10.211.0.{rank + 1}/24", "dev", link)
                for device in ("lo", link):
                    ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
        yield (
            [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={link}"] for name, link in zip(names, links)],
            lambda state: ip("-n", names[0], "link", "set", links[0], state),
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.integration
def test_two_machines_follow_the_course_of_one_also_after_their_network_was_cut(config, tmp_path, machines):
    """`accelerate launch --num_machines 2`. When the link is cut, each end names the process of the other one."""
    inside, set_link = machines
    whole = train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    (tmp_path / "accelerate.yaml").write_text((ROOT / "docs" / "accelerate_2_cpus.yaml").read_text())

    def launch(config, **env):
        flags = ["--config_file", tmp_path / "accelerate.yaml", "--num_machines", "2", "--num_processes", "2"]
        flags += ["--main_process_ip", "10.211.0.1", "--main_process_port", "29500"]
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--machine_rank"]
        commands = [[*inside[rank], *accelerate, rank] for rank in (0, 1)]
        return [_launch(tmp_path, _flags(config), launcher=command, **env) for command in commands]

    started = launch(config, SECONDS_A_STEP="0.2")
    written = tmp_path / "run" / "metrics.jsonl"
    while not (written.exists() and '\n{"step": 7, ' in written.read_text()):
        assert all(one.poll() is None for one in started), [one.communicate()[0] for one in started]
        time.sleep(0.1)
    set_link("down")
    printed = [one.communicate(timeout=600)[0] for one in started]
    for rank in (0, 1):
        assert f"error: process {1 - rank} of 2 (counted from 0, on " in printed[rank], printed[rank]
    set_link("up")
    started = launch(dataclasses.replace(config, resume_from_checkpoint="latest"))
    printed = [one.communicate(timeout=600)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], printed
    _assert_same_course(tmp_path / "run", whole)
