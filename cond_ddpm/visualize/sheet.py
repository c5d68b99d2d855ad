"""The contact sheet of a data set: its images as a network sees them.

May import: `data, visualize.grids`. Nothing is next.
"""

import io
from pathlib import Path

import numpy as np

from cond_ddpm.data import LabelledImages
from cond_ddpm.visualize.grids import class_grid


def contact_sheet(
    data: LabelledImages, random_flip: bool, path: str | Path | io.BytesIO, columns: int = 12, rows: int = 40
) -> None:
    """Write a PNG with a row for each of the first `rows` classes: images evenly spaced among those of the class.

    Args:
        data: the images.
        random_flip: whether half of them are mirrored in training; then every second column is.
        path: of the PNG.
        columns: images of each class; the places that a class has none for are left white.
    """
    cells: list[np.ndarray] = []
    names: list[str] = []
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    columns = max(1, min(columns, int(counts.max(initial=0))))
    for label, name in enumerate(data.class_names[:rows]):
        of_class = np.flatnonzero(data.labels == label)
        chosen = of_class[np.linspace(0, len(of_class) - 1, min(columns, len(of_class))).astype(int)]
        shown = np.full((columns, *data.images.shape[1:]), 255, np.uint8)
        shown[: len(chosen)] = data.images[chosen]
        if random_flip:
            shown[1::2] = shown[1::2, ..., ::-1]
        cells.append(shown)
        names.append(f"{name} ({counts[label]:,})")
    mirrored = ["", "mirrored"] * columns
    more = f"; {rows} of {len(data.class_names)} classes" if len(data.class_names) > rows else ""
    size = "x".join(map(str, data.images.shape[2:]))
    title = f"seen by the network, {size}{more}"
    class_grid(np.concatenate(cells), names, path, title, mirrored[:columns] if random_flip else None)
