"""Samples made by any software: a folder of CLASS/*.png or an .npz -> images with the data set's class ids.

May import: `data`. Next: `evaluate.py` measures them.
"""

import zipfile
from pathlib import Path

import numpy as np

from cond_ddpm.data import CLASSES_FILE, LabelledImages, load_images, local_files

UNKNOWN = -1  # label of a sample of which no class is told


def given_samples(samples: Path, resolution: int) -> LabelledImages:
    """Samples from a file or a folder; labels are -1 and `class_names` empty where there are none.

    Raises:
        ValueError: not uint8 images, pictures of another size than `resolution`, a file that cannot be read.
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
        with np.load(samples) as archive:
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
    """Nothing is to be scaled, cropped or converted: these are the samples."""
    from PIL import Image

    for path in (folder / name for name in local_files(folder)[0] if name != CLASSES_FILE):
        try:
            with Image.open(path) as picture:
                size, mode = picture.size, picture.mode
        except OSError:
            raise ValueError(f"samples: expected pictures only, got {path}.") from None
        if size != (resolution, resolution) or mode not in ("L", "RGB"):
            raise ValueError(
                f"samples: expected pictures of {resolution}x{resolution} with 8 bits of grey or RGB, got {path},"
                f" {size[0]}x{size[1]} {mode}."
            )


def matched(given: LabelledImages, train: LabelledImages) -> LabelledImages:
    """The samples with the data set's class ids.

    Raises:
        ValueError: another size, other classes, fewer than two samples.
    """
    if given.images.shape[1:] != train.images.shape[1:]:
        shapes = ("x".join(map(str, data.images.shape[1:])) for data in (train, given))
        raise ValueError("samples: expected images of {} (channels, height, width), got {}.".format(*shapes))
    if len(given) < 2:
        raise ValueError(f"samples: expected two or more, got {len(given)}.")
    labels = given.labels
    if given.class_names:
        unknown = set(given.class_names) - set(train.class_names)
        if unknown:
            raise ValueError(f"samples: expected the classes {', '.join(train.class_names)}, got {', '.join(unknown)}.")
        labels = np.array([train.class_names.index(given.class_names[label]) for label in labels])
    known = (labels != UNKNOWN).any()
    if known and (labels.min() < 0 or labels.max() >= len(train.class_names)):
        raise ValueError(
            f"samples: expected labels from 0 to {len(train.class_names) - 1}, got {labels.min()} to {labels.max()}."
        )
    return LabelledImages(given.images, labels, train.class_names)
