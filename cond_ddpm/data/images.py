"""Labelled images as arrays, their fingerprint, and the images held out for validation.

May import: `fingerprints`. Next: `batches.py` makes batches of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cond_ddpm.fingerprints import SHORT, sha256

_VALIDATION_SEED = 0  # not the run's seed, so that runs with different seeds hold out the same images


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, H, W) uint8, their labels (N,) int64 in [0, len(class_names)), and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def flippable(self) -> bool:
        """Whether a mirrored image still belongs to its class. Digits and letters, named by one character, do not."""
        return not all(len(name) == 1 or name.isdecimal() for name in self.class_names)


def data_fingerprint(data: LabelledImages) -> str:
    """16 hexadecimal digits that identify the pixels, labels and class names, whatever the data set is called.

    Caches and checkpoints recognise data by it. It reads the images in blocks, so that memory-mapped ones stay on disk.
    """

    def blocks() -> Iterator[Any]:
        yield json.dumps([data.images.shape, data.class_names]).encode()
        yield np.ascontiguousarray(data.labels)
        for start in range(0, len(data), 5000):
            yield np.ascontiguousarray(data.images[start : start + 5000])

    return sha256(blocks())[:SHORT]


def hold_out(data: LabelledImages, num_validation_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images for training and for validation: the same for every run on the same data, whatever its seed.

    Raises:
        ValueError: more than half of the images would be held out.
    """
    if num_validation_images * 2 > len(data):
        raise ValueError(
            f"num_validation_images: expected at most half of the {len(data)} training images, got"
            f" {num_validation_images}; hold out fewer."
        )
    shuffled = np.random.default_rng(_VALIDATION_SEED).permutation(len(data))
    return np.sort(shuffled[num_validation_images:]), np.sort(shuffled[:num_validation_images])
