"""Training throughput of our networks and the peers', with each one's share of the machine's matrix-multiply peak.

    python benchmarks/training.py [--batch_size 64] [--rounds 5] [--compile] [--networks NAME ...]

Every network in turn, round after round, in one process: forward and backward in bf16 autocast, AdamW (fused), the same
data. `--compile` measures each one compiled and in channels_last as well. Prints JSON and Markdown rows for RESULTS.md.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import machine  # noqa: E402
import peers  # noqa: E402

from cond_ddpm.models import count_flop  # noqa: E402

PEER = {"ours simple": "diffusers simple", "ours attention": "diffusers attention", "lucidrains": "diffusers attention"}


class Contender:
    def __init__(self, name: str, batch_size: int, compiled: bool):
        self.name, self.batch_size, self.compiled = name, batch_size, compiled
        self.network = peers.make(name)
        generator = torch.Generator().manual_seed(0)
        self.sample = torch.randn(batch_size, 3, 32, 32, generator=generator)
        self.timestep = torch.randint(0, 1000, (batch_size,), generator=generator)
        self.class_labels = torch.randint(0, 10, (batch_size,), generator=generator)
        one = (self.sample[:1], self.timestep[:1], self.class_labels[:1])
        self.flop = count_flop(lambda: self.network(*one))
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())
        if compiled:
            self.network.to(memory_format=torch.channels_last)
            self.network.compile()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.rates, self.shares = [], []

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            prediction = self.network(self.sample, self.timestep, self.class_labels)
        (prediction.float() - self.sample).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, steps: int) -> None:
        peak = machine.matmul_flops()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        seconds = time.perf_counter() - started
        peak = (peak + machine.matmul_flops()) / 2  # of just before and just after: the machine's speed drifts
        self.rates.append(steps * self.batch_size / seconds)
        self.shares.append(3 * self.flop * self.rates[-1] / peak)


def main(batch_size: int, rounds: int, compile: bool, networks: list[str]) -> None:
    contenders = [Contender(name, batch_size, False) for name in networks]
    if compile:
        contenders += [Contender(name, batch_size, True) for name in networks]
    for contender in contenders:  # the first steps are slower than all others; compiled ones by a minute
        contender.step()
        contender.step()
    for _ in range(rounds):
        for contender in contenders:
            contender.measure(steps=2)
    by_name = {(contender.name, contender.compiled): contender for contender in contenders}
    rows = []
    for contender in contenders:
        row = {
            "network": contender.name + (", compiled, channels_last" if contender.compiled else ""),
            "M parameters": contender.parameters / 1e6,
            "GFLOP forward": contender.flop / 1e9,
            "images/s": statistics.median(contender.rates),
        }
        for compiled in (False, True):
            peer = by_name.get((PEER.get(contender.name), compiled))
            ratios = [ours / theirs for ours, theirs in zip(contender.rates, peer.rates)] if peer else []
            row["over compiled peer" if compiled else "over peer"] = statistics.median(ratios) if ratios else ""
        row["share of bf16 matmul peak"] = statistics.median(contender.shares)
        rows.append(row)
    machine.show(rows, versions=machine.versions("denoising-diffusion-pytorch"), batch_size=batch_size, rounds=rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--networks", nargs="+", default=list(peers.NETWORKS), choices=list(peers.NETWORKS))
    main(**vars(parser.parse_args()))
