"""Samples made by any software: a folder of CLASS/*.png, or an .npz -> images with the data set's class ids.

May import: `data`. Next: `evaluate.py` measures them.
"""

import zipfile
from pathlib import Path

import numpy as np

from cond_ddpm.data import CLASSES_FILE, LabelledImages, load_images, local_files

UNKNOWN = -1  # label of a sample whose class is not known


def load_samples(samples: Path, resolution: int) -> LabelledImages:
    """Read samples from an .npz file or a folder. Without labels, every label is -1; an .npz has no class names.

    Raises:
        ValueError: images that are not uint8, pictures that are not of size `resolution`, a file that cannot be read.
    """
    if samples.is_dir():
        _check_pictures(samples, resolution)
        try:
            return load_images(str(samples), resolution=resolution)
        except ValueError as error:
            raise ValueError(f"samples: expected folders CLASS/*.png in {samples}: {error}") from None
    if samples.suffix != ".npz" or not samples.is_file():
        raise ValueError(f"samples: expected a folder of CLASS/*.png or an .npz, got {samples}.")
    try:
        with samples.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive if name in ("images", "arr_0", "class_labels", "arr_1")}
            found = ", ".join(archive)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"samples: expected an .npz, got {samples}, which cannot be read as one ({error}).") from None
    images = arrays.get("images", arrays.get("arr_0"))
    labels = arrays.get("class_labels", arrays.get("arr_1"))
    if images is None:
        raise ValueError(f"samples: expected an array `images` or `arr_0` in {samples}, got {found}.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        span = f", from {images.min():g} to {images.max():g}" if images.size and images.dtype.kind in "iuf" else ""
        raise ValueError(
            f"samples: expected images (N, H, W, C) of type uint8, 0 to 255, got {images.shape} {images.dtype}{span}."
        )
    if labels is None:
        labels = np.full(len(images), UNKNOWN)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"samples: expected a whole number as class label for each of {len(images)} images, got {labels.shape}"
            f" {labels.dtype}."
        )
    return LabelledImages(images.transpose(0, 3, 1, 2), labels.astype(np.int64), [])


def _check_pictures(folder: Path, resolution: int) -> None:
    """Samples are measured as they are, so pictures that would have to be scaled, cropped or converted are refused."""
    from PIL import Image

    for path in (folder / name for name in local_files(folder)[0] if name != CLASSES_FILE):
        try:
            with Image.open(path) as picture:
                size, mode = picture.size, picture.mode
        except OSError:
            raise ValueError(f"samples: expected only pictures, got {path}.") from None
        if size != (resolution, resolution) or mode not in ("L", "RGB"):
            raise ValueError(
                f"samples: expected pictures of {resolution}x{resolution} with 8 bits of grey or RGB, got {path},"
                f" {size[0]}x{size[1]} {mode}."
            )


def with_class_ids(samples: LabelledImages, train: LabelledImages) -> LabelledImages:
    """The same samples, labelled with the class ids of the data set.

    Raises:
        ValueError: another image size, unknown classes, or fewer than two samples.
    """
    if samples.images.shape[1:] != train.images.shape[1:]:
        shapes = ("x".join(map(str, data.images.shape[1:])) for data in (train, samples))
        raise ValueError("samples: expected images of {} (channels, height, width), got {}.".format(*shapes))
    if len(samples) < 2:
        raise ValueError(f"samples: expected two or more, got {len(samples)}.")
    labels = samples.labels
    if samples.class_names:
        unknown = set(samples.class_names) - set(train.class_names)
        if unknown:
            raise ValueError(f"samples: expected the classes {', '.join(train.class_names)}, got {', '.join(unknown)}.")
        labels = np.array([train.class_names.index(samples.class_names[label]) for label in labels])
    known = (labels != UNKNOWN).any()
    if known and (labels.min() < 0 or labels.max() >= len(train.class_names)):
        raise ValueError(
            f"samples: expected labels from 0 to {len(train.class_names) - 1}, got {labels.min()} to {labels.max()}."
        )
    return LabelledImages(samples.images, labels, train.class_names)
