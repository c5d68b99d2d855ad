"""Draws the networks as they are when they run: `python docs/architecture.py` writes docs/images/network-*.svg.

Nothing in these drawings is written by hand but the colours. An image is put through each network. Hooks note the blocks that
it passes, in their order, with the shapes of their outputs; and a function mode notes where an earlier output is used again,
which is a skip connection.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from cond_ddpm.models import MODELS, cond_unet, forward_flop

_COLOURS = {
    "convolution": "#8da0cb",
    "residual block": "#66c2a5",
    "residual block and attention": "#fc8d62",
    "transformer block": "#e78ac3",
    "change of size": "#bdbdbd",
}


@dataclass
class Trace(TorchFunctionMode):
    """The parts that an image passes, and which outputs are used again later: pairs of their numbers."""

    parts: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)  # kind; channels, height, width
    skips: list[tuple[int, int]] = field(default_factory=list)
    outputs: dict[int, int] = field(default_factory=dict)  # identity of a tensor -> number of the part that made it
    kept: list[torch.Tensor] = field(default_factory=list)  # so that no identity is used twice
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if not self.inside and getattr(function, "__name__", "") in ("cat", "add"):
            tensors = args[0] if isinstance(args[0], (list, tuple)) else args
            used = [self.outputs[id(tensor)] for tensor in tensors if id(tensor) in self.outputs]
            self.skips += [(part, len(self.parts)) for part in used if part < len(self.parts) - 1]
        return function(*args, **(kwargs or {}))

    def watch(self, module: torch.nn.Module, kind: str) -> None:
        def before(*_) -> None:
            self.inside = True

        def after(_, inputs, output) -> None:
            self.inside = False
            self.outputs[id(output)] = len(self.parts)
            self.kept.append(output)
            shape = tuple(output.shape[1:])
            if len(shape) == 2:  # tokens, of a square
                side = round(shape[0] ** 0.5)
                shape = (shape[1], side, side)
            self.parts.append((kind, shape))

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def trace(unet: torch.nn.Module) -> Trace:
    """What an image passes in a network."""
    found = Trace()
    for name, module in unet.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, cond_unet._ResidualBlock):
            found.watch(module, "residual block" + (" and attention" if module.attention is not None else ""))
        elif isinstance(module, cond_unet._TransformerBlock):
            found.watch(module, "transformer block")
        elif last in ("conv_in", "conv_out"):
            found.watch(module, "convolution")
        elif last in ("resample", "down", "up"):
            found.watch(module, "change of size")
    config = unet.config
    with torch.no_grad(), found:
        unet(torch.zeros(1, config.in_channels, config.sample_size, config.sample_size), 0, torch.zeros(1, dtype=torch.int64))
    return found


def draw(name: str, path: Path) -> None:
    """A box for each part: as high as its feature map, as wide as its channels are many."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    unet = MODELS[name]().eval()
    found = trace(unet)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        drawn = Figure(figsize=(11, 3), layout="constrained")
        axes = drawn.add_subplot()
        x, places = 0.0, []
        for kind, (channels, height, _) in found.parts:
            width = 1 + channels / 64
            axes.add_patch(
                Rectangle((x, -height / 2), width, height, facecolor=_COLOURS[kind], edgecolor="black", linewidth=0.6)
            )
            places.append((x, x + width, height))
            x += width + 1.2
        for one, other in itertools.pairwise(places):
            axes.annotate("", (other[0], 0), (one[1], 0), arrowprops={"arrowstyle": "->", "linewidth": 0.7})
        levels: dict[float, float] = {}  # height of a box -> that of the next line above it
        for source, target in sorted(found.skips, key=lambda pair: pair[1] - pair[0]):
            start, end = (sum(places[part][:2]) / 2 for part in (source, target))
            top = places[source][2] / 2
            line = levels[top] = levels.get(top, top) + 1.6
            axes.plot([start, start, end], [top, line, line], color="#777777", linewidth=0.8)
            axes.annotate(
                "",
                (end, top),
                (end, line),
                arrowprops={"arrowstyle": "->", "linewidth": 0.8, "color": "#777777", "shrinkA": 0},
            )
        last = None
        for (left, right, height), (_, shape) in zip(places, found.parts):
            if shape != last:
                text = f"{shape[0]}\n{shape[1]}x{shape[2]}"
                axes.text((left + right) / 2, -height / 2 - 1, text, ha="center", va="top", fontsize=7)
            last = shape
        top = max(height for _, _, height in places)
        axes.set_xlim(-1, x)
        axes.set_ylim(-top / 2 - 6, top / 2 + 6)
        axes.axis("off")
        flop = forward_flop(unet) / 1e9
        axes.set_title(
            f"{type(unet).__name__}: {parameters / 1e6:.2f} million parameters, {flop:.2f} GFLOP an image", fontsize=10
        )
        kinds = [kind for kind in _COLOURS if any(part[0] == kind for part in found.parts)]
        drawn.legend(
            handles=[Patch(facecolor=_COLOURS[kind], edgecolor="black", linewidth=0.6, label=kind) for kind in kinds],
            loc="outside lower center",
            ncols=len(kinds),
            fontsize=8,
            frameon=False,
        )
        drawn.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    for name in MODELS:
        draw(name, Path(__file__).parent / "images" / f"network-{name}.svg")
