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
# What is held out of each class: a share, but at least a few images, and never more than a quarter of a class.
_SHARE, _FEW, _MOST_OF_CLASS, _MOST = 0.05, 3, 0.25, 1000


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, H, W) uint8, their labels (N,) int64 in [0, len(class_names)), and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray) -> "LabelledImages":
        """Those at these indices, or where a mask is true."""
        return LabelledImages(self.images[chosen], self.labels[chosen], self.class_names)

    @property
    def flippable(self) -> bool:
        """Whether a mirrored image still belongs to its class. Digits and letters, named by one character, do not."""
        return not all(len(name) == 1 or name.isdecimal() for name in self.class_names)


def joined(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """The images of both, of the same classes."""
    images, labels = (np.concatenate(pair) for pair in ((one.images, other.images), (one.labels, other.labels)))
    return LabelledImages(images, labels, one.class_names)


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


def hold_out(data: LabelledImages, num_validation_images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images for training and for validation: the same for every run on the same data, whatever its seed.

    Args:
        data: what is split.
        num_validation_images: how many to hold out, at random from all; None for a share of each class (`share_of_classes`).

    Raises:
        ValueError: more than half of the images would be held out; or each class has too few of them to hold one out.
    """
    if num_validation_images is None:
        return _hold_out_of_classes(data)
    if num_validation_images * 2 > len(data):
        raise ValueError(
            f"num_validation_images: expected at most half of the {len(data)} training images, got"
            f" {num_validation_images}; hold out fewer, or leave it out to hold out a twentieth of each class."
        )
    shuffled = np.random.default_rng(_VALIDATION_SEED).permutation(len(data))
    return np.sort(shuffled[num_validation_images:]), np.sort(shuffled[:num_validation_images])


def share_of_classes(counts: np.ndarray) -> np.ndarray:
    """How many images to hold out of each class, of which there are `counts`: 5%, but at least 3, and at most a quarter.

    If these are more than 1,000, they are reduced to 1,000 in proportion.
    """
    shares = np.minimum(np.maximum(np.rint(counts * _SHARE), _FEW), np.floor(counts * _MOST_OF_CLASS)).astype(np.int64)
    if shares.sum() > _MOST:
        exact = shares * (_MOST / shares.sum())
        shares = np.floor(exact).astype(np.int64)
        most_cut = np.argsort(shares - exact, kind="stable")
        shares[most_cut[: _MOST - shares.sum()]] += 1
    return shares


def _hold_out_of_classes(data: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    shares = share_of_classes(counts)
    if not shares.any():
        raise ValueError(
            f"dataset: expected a class of 4 images or more, of which some can be held out for validation, got at most"
            f" {counts.max(initial=0)} in a class; add images."
        )
    held_out = []
    for label, share in enumerate(shares):
        of_class = np.flatnonzero(data.labels == label)
        held_out.append(np.random.default_rng((_VALIDATION_SEED, label)).permutation(of_class)[:share])
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(data)), val), val
