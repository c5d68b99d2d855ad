"""Pictures: class grids and loss curves.

May import: nothing of ours; arrays and rows of metrics come in, image files go out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def class_grid(images: np.ndarray, row_names: Sequence[str], path: str | Path, title: str | None = None) -> None:
    """Write a PNG with a labelled row a class.

    Args:
        images: (rows * columns, C, H, W) uint8, row by row.
        row_names: name of each row.
        path: of the PNG.
        title: above the grid.
    """
    from matplotlib.figure import Figure

    rows, columns = len(row_names), len(images) // len(row_names)
    channels, height, width = images.shape[1:]
    gap = max(1, height // 16)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)

    inch = 0.5  # of an image: three screen pixels for each of a 32-pixel image
    label_inches = 0.3 + 0.085 * max(len(name) for name in row_names)
    size = (columns * inch + label_inches, rows * inch + (0.5 if title else 0.1))
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(rows)], row_names, parse_math=False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=9, parse_math=False)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)


def loss_curve(metrics: Sequence[dict], path: str | Path) -> None:
    """Write a PNG of training and validation loss by epoch, from the rows of metrics.csv."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in metrics]
    for key, name in (("train_loss", "training"), ("val_loss", "validation")):
        axes.plot(epochs, [row[key] for row in metrics], label=name, marker="." if len(metrics) < 40 else None)
    best = min(metrics, key=lambda row: row["val_loss"])
    axes.axvline(best["epoch"], color="gray", linewidth=0.8, linestyle=":", label=f"best epoch, {best['epoch']}")
    if max(row["train_loss"] for row in metrics) > 4 * best["val_loss"] > 0:
        axes.set_yscale("log")  # the first epoch would flatten all others
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
