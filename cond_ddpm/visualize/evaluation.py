"""Pictures of an evaluation: the nearest training images, and which classes a classifier confuses.

May import: `data, visualize.drawing, visualize.grids`. Nothing is next.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cond_ddpm.data import nearest_images
from cond_ddpm.visualize.drawing import figure, lettering
from cond_ddpm.visualize.grids import class_grid


def nearest_neighbours(
    images: np.ndarray, names: Sequence[str], training_images: np.ndarray, path: str | Path, columns: int = 5
) -> np.ndarray:
    """Each sample and the training images nearest to it, mirrored or not: a check for memorisation.

    Args:
        images: samples, (N, C, H, W) uint8, one for each row.
        names: of the rows.
        training_images: (M, C, H, W) uint8.
        path: of the PNG.
        columns: number of neighbours shown.

    Returns:
        The distances, (N, columns): root mean square difference over pixels, on the scale of 0 to 255.

    Raises:
        ValueError: more columns than training images.
    """
    if columns > len(training_images):
        raise ValueError(f"columns: expected at most the {len(training_images)} training images, got {columns}.")
    indices, mirrored, distances = nearest_images(images, training_images, columns)
    row_images, captions = [], []
    for image, row_indices, row_mirrored, row_distances in zip(images, indices, mirrored, distances):
        neighbours = training_images[row_indices]
        row_images += [image, *(near[..., ::-1] if flip else near for near, flip in zip(neighbours, row_mirrored))]
        captions += ["", *(f"{distance:.1f}" for distance in row_distances)]
    column_names = ["sample", "nearest", *(f"{rank}." for rank in range(2, columns + 1))]
    title = "nearest training images (RMS difference)"
    class_grid(np.stack(row_images), names, path, title, column_names, captions, inches=0.6)
    return distances


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Write a PNG of the confusion matrix: which share of each requested class is recognised as which class.

    Args:
        confusion: (K, K + 1) counts: requested class, recognised class; the last column is of images of no class.
        class_names: K of them.
        path: of the PNG.
    """
    letters = lettering(class_names)
    (names,) = letters.groups
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = 1.5 + 0.42 * len(names)
    with figure(path, (size, size), 150, letters) as drawn:
        axes = drawn.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(names))
        axes.set_xticks(range(len(names) + 1), [*names, "none"], rotation=45, ha="right", parse_math=False, fontsize=8)
        axes.set_yticks(ticks, names, parse_math=False, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005 and len(names) <= 30:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_xlabel("recognised class")
        axes.set_ylabel("requested class")
        accuracy = np.trace(confusion) / confusion.sum()
        axes.set_title(f"{accuracy:.1%} of {confusion.sum()} recognised as requested", fontsize=9)
