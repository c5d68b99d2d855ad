"""A batch of training as the network sees it.

May import: `visualize.grids`. Nothing is next.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cond_ddpm.visualize.grids import class_grid, to_pixels


def batch_picture(
    images: torch.Tensor,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    class_names: Sequence[str | None],
    path: str | Path | io.BytesIO,
    columns: int = 12,
) -> None:
    """Write a PNG of the first images of a batch, each above what the network gets: the image with the noise of its timestep.

    Args:
        images: (B, C, H, W) in [-1, 1].
        noisy: the same with noise.
        timesteps: (B,).
        class_names: B of them; None where the label was dropped.
        path: of the PNG.
        columns: images shown.
    """
    columns = min(columns, len(images))
    cells = to_pixels(torch.cat([images[:columns], noisy[:columns]]).cpu())
    names = ["no label" if name is None else name for name in class_names[:columns]]
    captions = [*[""] * columns, *(f"t = {t}" for t in timesteps[:columns].tolist())]
    inches = max(0.6, 0.085 * max(map(len, names)))  # so that the names of neighbours do not overlap
    class_grid(np.ascontiguousarray(cells), ["image", "with noise"], path, "the first batch", names, captions, inches)
