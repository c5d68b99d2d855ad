"""Why the networks' layers are what they are: alternatives at the hybrid's shapes, bf16, forward and backward, on this CPU.

    python benchmarks/layers.py [--repeats 15]

Each pair in turn; the ratio of the medians of the alternative's time and of what is used. Prints JSON and Markdown rows.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import machine  # noqa: E402

from cond_ddpm.models.cond_unet import _attend  # noqa: E402


def products(query, key, value):
    """What `_attend` does where it does not call torch's own."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def leaf(*shape: int, channels_last: bool = False) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.bfloat16)
    return (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_()


def seconds(call, inputs) -> float:
    started = time.perf_counter()
    output = call(*inputs)
    torch.autograd.grad(output, inputs, torch.ones_like(output))
    return time.perf_counter() - started


def pairs() -> dict:
    """What: (the alternative, its inputs, what is used, its inputs)."""
    tokens, map16, half = leaf(64, 64, 256), leaf(64, 64, 16, 16), leaf(64, 64, 16, 16, channels_last=True)
    heads = {side: [leaf(count, 2 if side > 8 else 4, side**2, 64) for _ in range(3)] for side, count in ((8, 64), (16, 32))}
    big = [leaf(8, 1, 1024, 64) for _ in range(3)]
    weight = torch.ones(64, dtype=torch.bfloat16)
    group_norm = lambda x: F.group_norm(x, 16, weight, weight)  # noqa: E731
    kernel, kernel_last = leaf(64, 64, 3, 3), leaf(64, 64, 3, 3, channels_last=True)
    convolve = lambda x, w: F.conv2d(x, w, padding=1)  # noqa: E731
    split = [leaf(64, 4, 64, 64)]
    return {
        "attention at 8x8: torch's SDPA over two products": (F.scaled_dot_product_attention, heads[8], _attend, heads[8]),
        "attention at 16x16": (F.scaled_dot_product_attention, heads[16], _attend, heads[16]),
        "attention at 32x32 (where SDPA is used)": (F.scaled_dot_product_attention, big, products, big),
        "MLP: GELU (tanh) over SiLU": (lambda x: F.gelu(x, approximate="tanh"), [tokens], F.silu, [tokens]),
        "QK-norm: RMSNorm over LayerNorm": (
            lambda x: F.rms_norm(x, (64,), eps=1e-6),
            split,
            lambda x: F.layer_norm(x, (64,)),
            split,
        ),
        "GroupNorm: channels_last over contiguous": (group_norm, [half], group_norm, [map16]),
        "3x3 convolution: channels_last over contiguous": (convolve, [half, kernel_last], convolve, [map16, kernel]),
    }


def main(repeats: int) -> None:
    rows = []
    for name, (other, other_inputs, used, used_inputs) in pairs().items():
        times = {"other": [], "used": []}
        for _ in range(repeats + 2):
            times["other"].append(seconds(other, other_inputs))
            times["used"].append(seconds(used, used_inputs))
        rows.append({"what": name, "ratio": statistics.median(times["other"][2:]) / statistics.median(times["used"][2:])})
    machine.show(rows, versions=machine.versions())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    main(**vars(parser.parse_args()))
