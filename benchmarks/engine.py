"""What the training engine costs beyond the network: its share of a step, its memory, a checkpoint's time.

    python benchmarks/engine.py overhead --dataset PATH [--config FILE] [--steps 6] [--FLAG VALUE ...]
    python benchmarks/engine.py memory   --dataset PATH [--config FILE] [--steps 6] [--FLAG VALUE ...]

Prints JSON and a Markdown row for RESULTS.md. Both figures are ratios or differences taken in one run: `overhead` of times
within the same steps; `memory` of the peak of a run and the peak of a bare loop over the same network and batch size.
"""

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def overhead(flags: list[str], steps: int) -> dict:
    """Share of a step outside forward, backward and optimizer, from timers put around those three."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    import cond_ddpm.training.loop as loop
    import cond_ddpm.training.state as state
    import cond_ddpm.training.step as step
    from cond_ddpm.cli import parse_train

    spent = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def timed(name, function):
        def call(*arguments, **named):
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    marks = []  # (time, spent so far) at the start of each step

    def draw(*arguments, _original=step.draw_training):
        marks.append((time.perf_counter(), dict(spent)))
        return _original(*arguments)

    original_unet = state.make_unet

    def make_unet(*arguments):
        unet = original_unet(*arguments)
        unet.forward = timed("forward", unet.forward)
        return unet

    state.make_unet, step.draw_training = make_unet, draw
    Accelerator.backward = timed("backward", Accelerator.backward)
    AcceleratedOptimizer.step = timed("optimizer", AcceleratedOptimizer.step)
    spent["checkpoint"] = 0.0
    loop.save_checkpoint = timed("checkpoint", loop.save_checkpoint)  # once, at the end
    with tempfile.TemporaryDirectory() as folder:
        quick = ["--max_train_steps", str(steps), "--output_dir", folder, "--num_validation_images", "200"]
        quick += ["--overwrite_output_dir", "true", "--save_images_epochs", "0"]
        loop.train(parse_train([*flags, *quick]))
    pairs = list(itertools.pairwise(marks))[1:]  # the first step is slower than all others
    whole = [after[0] - before[0] for before, after in pairs]
    parts = [sum(after[1].values()) - sum(before[1].values()) for before, after in pairs]
    shares = [1 - part / step for part, step in zip(parts, whole)]
    return {
        "overhead_median": statistics.median(shares),
        "overhead_max": max(shares),
        "step_seconds_median": statistics.median(whole),
        "checkpoint_seconds": spent["checkpoint"],
        "checkpoint_share_of_500_steps": spent["checkpoint"] / (500 * statistics.median(whole)),
    }


def bare(flags: list[str], steps: int) -> None:
    """The network's need: forward, backward and AdamW on noise, in a process that loads nothing else of ours."""
    import torch

    from cond_ddpm.cli import parse_train
    from cond_ddpm.config import checked_arguments
    from cond_ddpm.models import MODELS

    config = parse_train(flags)
    unet = MODELS[config.model](**checked_arguments(MODELS[config.model], config.unet, "unet", set()))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    sample, labels = torch.randn(config.batch_size, 3, 32, 32), torch.zeros(config.batch_size, dtype=torch.int64)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision in ("bf16", "auto")):
            loss = unet(sample, 5, labels).sample.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def memory(flags: list[str], steps: int) -> dict:
    """Peak resident memory of a whole run (data, averages, validation, samples, checkpoint) and of the bare loop."""

    def peak(command):
        done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(done.pid, 0)
        assert status == 0, command
        return usage.ru_maxrss / 1024

    me = [sys.executable, __file__]
    alone = peak([*me, "bare", "--steps", str(steps), *flags])
    with tempfile.TemporaryDirectory() as folder:
        quick = ["--max_train_steps", str(steps), "--output_dir", folder, "--overwrite_output_dir", "true"]
        quick += ["--num_inference_steps", "5"]
        run = peak([sys.executable, str(ROOT / "train_cond_ddpm.py"), *flags, *quick])
    return {"run_mib": run, "network_mib": alone, "beyond_mib": run - alone}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["overhead", "memory", "bare"])
    parser.add_argument("--steps", type=int, default=6)
    given, flags = parser.parse_known_args()
    if "--config" in flags:  # which must come first
        at = flags.index("--config")
        flags = flags[at : at + 2] + flags[:at] + flags[at + 2 :]
    result = {"overhead": overhead, "memory": memory, "bare": bare}[given.what](flags, given.steps)
    if result:
        import machine

        machine.show([{"what": given.what, **result}])
