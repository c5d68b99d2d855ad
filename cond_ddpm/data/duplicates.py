"""Pictures that occur more than once, exactly or nearly, within a split and across two.

May import: `data.survey`. Next: `report.py` says what was found.
"""

import numpy as np

from cond_ddpm.data.survey import Survey, similar_pairs

# From which correlation on two images are nearly the same. Of the test images of CIFAR-10, 157 are then nearly the same as a
# training image, and none of them is of another class; by eye, 286 are (Barz & Denzler 2020).
_CORRELATION = 0.9
# Images of a class may be much alike, such as those of the digit 1. From that many on, the class's mean is subtracted first.
_KNOWN_CLASS = 20
_BLOCK = 2000


def exact_duplicates(one: Survey, other: Survey | None = None) -> list[tuple[int, int]]:
    """Pictures with the same pixels: pairs of a row and the first such row before it; or else the first one in `other`."""
    within = other is None
    searched = one if other is None else other
    first: dict[int, int] = {}
    for row in searched.readable.tolist():
        first.setdefault(int(searched.pixels[row]), row)
    pairs = [(row, first.get(int(one.pixels[row]))) for row in one.readable.tolist()]
    return [(row, found) for row, found in pairs if found is not None and not (within and found == row)]


def near_duplicates(one: Survey, images: np.ndarray) -> list[tuple[int, int]]:
    """Pictures that are nearly the same, but not exactly: pairs of a row and the most similar row before it.

    Those are pictures with similar perceptual hashes whose images (N, C, H, W) correlate. So neither brightness nor contrast
    counts, but a mirrored picture is another one.
    """
    return _most_alike(one.similar, one, images, one, images)


def near_duplicates_across(one: Survey, images: np.ndarray, other: Survey, other_images: np.ndarray) -> list[tuple[int, int]]:
    """The same of two splits: pairs of a row of `one` and the most similar row of `other`."""
    pairs = similar_pairs(one.hashes, other.hashes, one.readable, other.readable)
    return _most_alike(pairs, one, images, other, other_images)


def _most_alike(
    pairs: np.ndarray, one: Survey, images: np.ndarray, other: Survey, other_images: np.ndarray
) -> list[tuple[int, int]]:
    """Of pairs (P, 2) of rows of `one` and `other`, for each row of `one` the one whose images correlate most."""
    pairs = pairs[one.pixels[pairs[:, 0]] != other.pixels[pairs[:, 1]]]
    means = np.zeros((len(other.class_names), *images.shape[1:]), np.float32)
    for label in np.unique(other.labels[pairs[:, 1]]):
        of_class = np.flatnonzero(other.labels == label)
        if len(of_class) >= _KNOWN_CLASS:
            means[label] = other_images[of_class].mean(0)
    best: dict[int, tuple[float, int]] = {}
    for start in range(0, len(pairs), _BLOCK):
        rows, befores = pairs[start : start + _BLOCK].T
        mean = means[other.labels[befores]]
        correlations = _correlations(images[rows] - mean, other_images[befores] - mean)
        for row, before, correlation in zip(rows.tolist(), befores.tolist(), correlations.tolist()):
            if correlation >= _CORRELATION:
                best[row] = max(best.get(row, (0.0, 0)), (correlation, before))
    return [(row, before) for row, (_, before) in sorted(best.items())]


def _correlations(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each image (N, C, H, W) with the other at its place, (N,)."""
    one, two = (part.reshape(len(part), -1) for part in (images, others))
    one, two = one - one.mean(1, keepdims=True), two - two.mean(1, keepdims=True)
    return (one * two).sum(1) / np.sqrt((one**2).sum(1) * (two**2).sum(1)).clip(min=1e-12)
