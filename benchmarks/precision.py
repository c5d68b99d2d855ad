"""What bf16 gives on a CPU that has it, and what it costs where it is emulated: why `mixed_precision: auto` chooses.

    python benchmarks/precision.py [PRESET ...] [--batch_size 16] [--rounds 5]

Forward and backward of a preset's network in fp32 and in bf16, in turn, in one process with one thread: the medians of the
processor's time, which other programs disturb less than the clock's, and of the ratios of each turn. Each preset is measured
as the hardware is, and with oneDNN and ATen kept to AVX2 by their environment variables, as they are on most laptops.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

LIMITS = {
    "none": {},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "the same, ATEN_CPU_CAPABILITY=avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def measure(preset: str, batch_size: int, rounds: int) -> dict:
    """Seconds of a step and their ratio, as this process's environment has it."""
    import torch

    from cond_ddpm.config import TrainConfig
    from cond_ddpm.config.flags import read_yaml
    from cond_ddpm.config.presets import presets
    from cond_ddpm.hardware import precision_for
    from cond_ddpm.training.state import make_unet

    torch.set_num_threads(1)
    config = TrainConfig(**read_yaml(presets()[preset]))
    shape = (1 if config.dataset == "mnist5k" else 3, 32, 32)
    unet = make_unet(config, shape, 10).train()
    sample, labels = torch.randn(batch_size, *shape), torch.arange(batch_size) % 10

    def step(half: bool) -> float:
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = unet(sample, 500, labels).sample.float().square().mean()
        loss.backward()
        unet.zero_grad()
        return time.process_time() - started

    turns = [(step(False), step(True)) for _ in range(rounds + 1)][1:]  # without the first, which allocates
    fp32, bf16 = (statistics.median(times) for times in zip(*turns))
    times_as_fast = [one / other for one, other in turns]
    return {
        "fp32, s": fp32,
        "bf16, s": bf16,
        "bf16, times as fast": statistics.median(times_as_fast),
        "from": min(times_as_fast),
        "to": max(times_as_fast),
        "auto is": precision_for(torch.device("cpu")),
    }


def main(presets: list[str], batch_size: int, rounds: int) -> None:
    import machine

    rows = []
    for preset in presets:
        for limit, environment in LIMITS.items():
            command = [sys.executable, __file__, preset, "--batch_size", batch_size, "--rounds", rounds, "--here"]
            done = subprocess.run(
                [*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, check=True
            )
            rows.append({"preset": preset, "limit": limit, **json.loads(done.stdout)})
            print(rows[-1], flush=True)
    machine.show(rows, versions=machine.versions(), batch_size=batch_size, rounds=rounds, threads=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["quickstart", "hybrid_cifar10_cpu"], metavar="PRESET")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.presets[0], given.batch_size, given.rounds)))
    else:
        main(given.presets, given.batch_size, given.rounds)
