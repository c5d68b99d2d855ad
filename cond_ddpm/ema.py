"""Moving averages of the weights whose horizon grows with the run, and any other horizon afterwards (Karras 2023, EDM2).

May import: `files`. `training/` updates the averages and keeps snapshots; `cond-ddpm ema` combines them into the
average of another horizon without training.

An average with power-function profile of exponent gamma weighs the weights of step tau in [0, t] by
    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)                                              (EDM2, sec. 3.1)
whose relative width is a fixed share `std` of t, so that it forgets the start of the run, however long the run is.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cond_ddpm.files import steps_of, write


def std_to_gamma(std: float) -> float:
    """Exponent of the profile whose standard deviation is `std` times its length (EDM2, sec. 3.1, solved for gamma).

    Raises:
        ValueError: a std outside (0, 0.288), where 0.2887 = 1 / sqrt(12) is the uniform average over the whole run.
    """
    if not 0 < std < 0.288:
        raise ValueError(f"std: expected a share of the run between 0 and 0.288, got {std}; 0.05 to 0.1 is usual.")
    # std^2 = (g + 1) / ((g + 2)^2 (g + 3))
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


class PowerEMA:
    """Averages of a model's parameters, one for each relative width in `stds`."""

    def __init__(self, parameters: Iterable[torch.Tensor], stds: Iterable[float]):
        parameters = list(parameters)
        self.gammas = {std: std_to_gamma(std) for std in stds}
        self.averages = {std: [p.detach().clone() for p in parameters] for std in self.gammas}

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.Tensor], step: int) -> None:
        """Include the parameters after optimizer step `step`, counted from 1 (EDM2, sec. 3.1)."""
        parameters = list(parameters)
        for std, gamma in self.gammas.items():
            torch._foreach_lerp_(self.averages[std], parameters, 1 - (1 - 1 / step) ** (gamma + 1))


def save_snapshot(ema: PowerEMA, names: Iterable[str], folder: Path, step: int) -> None:
    """Save the averages of this step in half precision, as `step-N.safetensors`.

    Raises:
        OSError: it could not be written; no part of it is left.
    """
    names = list(names)
    tensors = {
        f"{std}/{name}": tensor.half().contiguous()  # safetensors takes no channels_last
        for std, average in ema.averages.items()
        for name, tensor in zip(names, average, strict=True)
    }
    folder.mkdir(exist_ok=True)
    metadata = {"step": str(step), "stds": json.dumps(list(ema.gammas))}
    write(folder / f"step-{step:08d}.safetensors", save(tensors, metadata))


def snapshot_steps(folder: Path) -> list[int]:
    """The steps that have a snapshot, in increasing order.

    Raises:
        ValueError: there are none.
    """
    steps = list(steps_of(folder.glob("step-*.safetensors"), ".safetensors").values())
    if not steps:
        raise ValueError(f"{folder}: expected step-N.safetensors, found none; train with --num_ema_snapshots 20 or so.")
    return steps


def combine_snapshots(folder: Path, std: float, step: int | None = None) -> tuple[dict[str, torch.Tensor], float]:
    """Weights averaged with relative width `std` up to `step`, as a least-squares combination of the snapshots.

    Args:
        folder: the folder of the `step-N.safetensors` files.
        std: relative width, in (0, 0.288).
        step: the step at which the average ends, that of a snapshot; None is the last.

    Returns:
        The weights, float32, and the share of the requested profile that the snapshots cannot express (0 is exact).

    Raises:
        ValueError: no snapshots, a step that has none, a std out of range, a snapshot that cannot be read.
    """
    files = {step: folder / f"step-{step:08d}.safetensors" for step in snapshot_steps(folder)}
    last = max(files) if step is None else step
    if last not in files:
        raise ValueError(f"step: expected one of the snapshots {', '.join(map(str, files))}, got {last}.")
    opened = {t: _open(path) for t, path in files.items() if t <= last}
    basis = [(t, s, std_to_gamma(s)) for t, (_, stds) in opened.items() for s in stds]
    gamma = std_to_gamma(std)

    products = np.array([[_inner_product(ta, ga, tb, gb) for tb, _, gb in basis] for ta, _, ga in basis])
    targets = np.array([_inner_product(t, g, last, gamma) for t, _, g in basis])
    shares = np.linalg.lstsq(products, targets, rcond=1e-10)[0]  # EDM2, sec. 3.2: the best fit of the profiles
    wanted = _inner_product(last, gamma, last, gamma)
    rest = wanted - 2 * shares @ targets + shares @ products @ shares
    shares /= shares.sum()  # an average of constant weights is that constant

    weights: dict[str, torch.Tensor] = {}
    for (t, s, _), share in zip(basis, shares):
        file, _ = opened[t]
        for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
            if name.startswith(f"{s}/"):
                part = file.get_tensor(name).float() * float(share)
                key = name.partition("/")[2]
                weights[key] = part if key not in weights else weights[key] + part
    return weights, float(np.sqrt(max(rest, 0) / wanted))


def _open(path: Path) -> tuple[safe_open, list[float]]:
    """A snapshot, and the relative widths of the averages in it."""
    try:
        file = safe_open(path, "pt")
        return file, [float(std) for std in json.loads(file.metadata()["stds"])]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{path}: expected a snapshot of the run's averages, got a file that cannot be read ({error}); move it away:"
            " the other snapshots are enough."
        ) from None


def _inner_product(ta: int, ga: float, tb: int, gb: float) -> float:
    """Integral over tau of the product of two profiles, up to the shorter one's end."""
    short, long, g_short, g_long = (ta, tb, ga, gb) if ta <= tb else (tb, ta, gb, ga)
    return (g_short + 1) * (g_long + 1) / ((g_short + g_long + 1) * long) * (short / long) ** g_long
