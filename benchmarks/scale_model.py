"""How long a training step takes on many GPUs: a formula, and the table of docs/scale_model.md. It needs no GPU.

    python benchmarks/scale_model.py                       # the table, with the assumptions below
    python benchmarks/scale_model.py --peak_tflops 312 --utilisation 0.3 --network_gbytes 25

A step of N processes, each with b of the B images, has

    compute     b * 3 * (FLOP of a forward pass of an image) / (peak * utilisation); backward costs two forward passes
    all-reduce  2 (N - 1) / N * (4 bytes a parameter) / bandwidth + 2 (N - 1) * latency: a ring
    random      B * (numbers of an image) / rate: each process draws those of the whole batch
    host        Python and launches + 2 (N - 1) * latency of TCP: at each step the processes agree whether to stop

The all-reduce overlaps with a share of the backward pass. The host works ahead of the GPU, so the slower of the two counts.
"""

import argparse
import dataclasses
from collections.abc import Iterator

IMAGE = 3 * 32 * 32  # numbers
SIZES = ("s", "m", "l")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the prediction assumes. The defaults stand for 8 H100 in a machine, and a 400 Gbit/s adapter for each of them."""

    peak_tflops: float = 989.0  # bf16, dense, as its maker says
    utilisation: float = 0.15  # of it, by networks of this kind: an assumption, which decides the step's time
    local_gbytes: float = 300.0  # a second, in each direction, between the GPUs of a machine
    network_gbytes: float = 40.0  # a second, in each direction, from each GPU to another machine
    local_latency: float = 5e-6  # seconds, for each of the 2 (N - 1) parts of a ring
    network_latency: float = 15e-6
    per_machine: int = 8
    overlap: float = 0.7  # the share of the backward pass within which gradients can travel
    launch_seconds: float = 0.025  # the host's time for a step: Python and starting the GPU's work
    host_latency: float = 40e-6  # seconds, of TCP between hosts
    numbers_a_second: float = 2e11  # normal numbers that a GPU draws


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a step, and of its parts."""

    compute: float
    all_reduce: float
    exposed: float  # the part of the all-reduce that the backward pass does not hide
    random: float
    host: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.exposed + self.random, self.host)

    @property
    def limit(self) -> str:
        """What takes the time, besides the computation."""
        if self.host > self.compute + self.exposed + self.random:
            return "host"
        return max(("compute", "exposed", "random"), key=lambda name: getattr(self, name))


def ring_seconds(processes: int, num_bytes: float, bandwidth: float, latency: float) -> float:
    """Of an all-reduce: each of N processes sends, and receives, 2 (N - 1) parts of 1 / N of the bytes."""
    return 2 * (processes - 1) * (num_bytes / processes / bandwidth + latency)


def predict(parameters: float, forward_flop: float, batch: int, processes: int, machine: Machine) -> Step:
    """A step of a batch of so many images over all processes together.

    Args:
        parameters: of the network; their gradients travel in float32.
        forward_flop: of one image.
    """
    compute = batch / processes * 3 * forward_flop / (machine.peak_tflops * 1e12 * machine.utilisation)
    local = processes <= machine.per_machine
    bandwidth = 1e9 * (machine.local_gbytes if local else machine.network_gbytes)
    latency = machine.local_latency if local else machine.network_latency
    all_reduce = ring_seconds(processes, 4 * parameters, bandwidth, latency)
    exposed = max(0.0, all_reduce - machine.overlap * compute * 2 / 3)
    host = machine.launch_seconds + ring_seconds(processes, 16, 1e9, machine.host_latency if not local else 1e-5)
    return Step(compute, all_reduce, exposed, batch * IMAGE / machine.numbers_a_second, host)


def networks() -> Iterator[tuple[str, float, float]]:
    """(size, parameters, FLOP of a forward pass of one 32x32x3 image) of the package's networks."""
    import torch

    from cond_ddpm.models import HybridUNet2DModel, forward_flop

    for size in SIZES:
        with torch.device("meta"):
            unet = HybridUNet2DModel(size=size)
        yield size, sum(p.numel() for p in unet.parameters()), forward_flop(unet)


def table(machine: Machine) -> str:
    lines = ["| size | GPUs | images a GPU | batch | ms a step | images/s | efficiency | slowest part |", "|---" * 8 + "|"]
    for size, parameters, flop in networks():
        for each, whole in ((256, None), (None, 4096)):
            for processes in (1, 8, 64, 1024):
                batch = each * processes if each else whole
                step = predict(parameters, flop, batch, processes, machine)
                alone = predict(parameters, flop, batch // processes if each else batch, 1, machine)
                efficiency = batch / step.seconds / processes / ((each or batch) / alone.seconds)
                cells = [size, processes, batch // processes, batch, f"{step.seconds * 1e3:.1f}"]
                cells += [f"{batch / step.seconds:,.0f}", f"{efficiency:.2f}", step.limit]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Machine):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    print(table(Machine(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
