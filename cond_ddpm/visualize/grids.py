"""Grids of images with labelled rows and columns.

May import: `visualize.drawing`, the pipeline. Next: `strips.py`, `sweeps.py` and `evaluation.py` draw such grids.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cond_ddpm.visualize.drawing import figure, lettering


def class_grid(
    images: np.ndarray,
    row_names: Sequence[str],
    path: str | Path | io.BytesIO,
    title: str | None = None,
    column_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    inches: float = 0.5,
) -> None:
    """Write a PNG with a labelled row of images for each class, or for anything else that rows and columns stand for.

    Args:
        images: (rows * columns, C, H, W) uint8, row by row.
        row_names: name of each row.
        path: of the PNG.
        title: above the grid.
        column_names: above each column.
        captions: below each image.
        inches: size of an image at 200 pixels an inch; 0.5 gives each pixel of a 32-pixel image about three screen pixels.
    """
    letters = lettering(row_names, column_names or [], [title] if title else [])
    row_names, column_names, titles = letters.groups
    rows, columns = len(row_names), len(images) // len(row_names)
    channels, height, width = images.shape[1:]
    gap = max(1, height // 16)
    row_gap = gap if captions is None else round(0.15 / inches * height * (1 + max(text.count("\n") for text in captions)))
    canvas = np.full((rows * (height + row_gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    corners = [(index // columns * (height + row_gap), index % columns * (width + gap)) for index in range(rows * columns)]
    for (top, left), image in zip(corners, images):
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)

    label_inches = 0.3 + 0.085 * max(len(name) for name in row_names)
    inches_high = canvas.shape[0] / height * inches + (0.3 if titles else 0) + (0.3 if column_names else 0.1)
    with figure(path, (canvas.shape[1] / width * inches + label_inches, inches_high), 200, letters) as drawn:
        axes = drawn.add_subplot()
        axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks([row * (height + row_gap) + height / 2 for row in range(rows)], row_names, parse_math=False)
        centres = [column * (width + gap) + width / 2 for column in range(columns)]
        axes.set_xticks(centres if column_names else [], column_names, parse_math=False, fontsize=8)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        for (top, left), text in zip(corners, captions or ()):
            axes.text(left + width / 2, top + height + gap / 2, text, ha="center", va="top", fontsize=6.5, parse_math=False)
        if titles:
            axes.set_title(titles[0], fontsize=9, parse_math=False)


def to_pixels(samples: torch.Tensor) -> np.ndarray:
    """[-1, 1] -> uint8; values outside, such as those of noise, are clipped."""
    return ((samples.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
