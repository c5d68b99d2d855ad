"""What is chosen by the pictures where the user has not: their size, how they become square, and whether to mirror them.

May import: `config, data.images, data.survey`. Each function returns a value and, in words, the reason for it. Next:
`report.py`.
"""

import re

import numpy as np

from cond_ddpm.config.data import Fit
from cond_ddpm.data.images import LabelledImages
from cond_ddpm.data.survey import Survey

_RESOLUTIONS = (16, 32, 64)  # of twice the size, a step takes four times as long
_USUAL = 32
_SQUARE = 1.05  # the ratio of the sides up to which a picture counts as square
_SIDES = re.compile(r"(?<![a-z])(left|right|east|west|clockwise|anticlockwise|counterclockwise|links|rechts)(?![a-z])", re.I)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # turnLeft -> turn Left
# A mirrored image is unlike its class if it is farther from the others than the image itself is: by chance half of them are.
# In mnist5k 98% are, in CIFAR-10 52%.
_UNLIKE, _DEVIATIONS = 0.65, 3.0
_MOST_COMPARED = 4000


def choose_fit(survey: Survey) -> tuple[Fit, str]:
    """crop or pad; never stretch, which changes proportions."""
    sizes = survey.sizes[survey.readable]
    oblong = sizes.max(1) > _SQUARE * sizes.min(1)
    if not oblong.any():
        return "crop", "the pictures are square"
    plain = survey.plain[survey.readable][oblong].mean()
    kept = np.median(sizes[oblong].min(1) / sizes[oblong].max(1))
    which = f"{oblong.mean():.0%} of the pictures are not square"
    if plain >= 0.5:
        return "pad", f"{which}, and {plain:.0%} of those have an edge of one colour, which borders continue"
    return "crop", f"{which}, of which the centre is kept, {kept:.0%} of the median one; pad keeps all"


def choose_resolution(survey: Survey, fit: str) -> tuple[int, str]:
    """The height and width that are nearest to those of the median picture."""
    sizes = survey.sizes[survey.readable]
    side = float(np.median(sizes.max(1) if fit == "pad" else sizes.min(1))) if len(sizes) else _USUAL
    chosen = min(_RESOLUTIONS, key=lambda resolution: abs(np.log(resolution / max(side, 1))))
    larger = f"; {2 * chosen} would show more, and take four times as long" if side >= 1.5 * chosen else ""
    return chosen, f"the {'longer' if fit == 'pad' else 'shorter'} side of the median picture is {side:.0f}{larger}"


def choose_flip(data: LabelledImages) -> tuple[bool, str]:
    """Whether to mirror half of the images."""
    if not data.flippable:
        return False, "the classes are named like digits or letters, which mean something else in a mirror"
    sides = [name for name in data.class_names if _SIDES.search(_CAMEL.sub(" ", name))]
    if sides:
        return False, f"the class {sides[0]!r} is named after a side"
    share, count = mirrored_unlike(data)
    deviations = (share - 0.5) / (0.5 / np.sqrt(count)) if count else 0.0
    what = f"{share:.0%} of {count:,} mirrored images are less like the others of their class than the images themselves are"
    if share > _UNLIKE and deviations > _DEVIATIONS:
        return False, f"{what}, as letters and signs are"
    return True, f"{what}, and by chance half of them are" if count else "no class has enough images to say otherwise"


def mirrored_unlike(data: LabelledImages) -> tuple[float, int]:
    """The share of images whose mirror image is farther from the other images of the class, and of how many images that is.

    The distance is the mean to the three nearest others, over pixels of about 16x16 grey images of the same mean. Images that
    are their own mirror images count half.
    """
    if not len(data):
        return 0.5, 0
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:_MOST_COMPARED])
    block = max(1, data.images.shape[-1] // 16)
    size = data.images.shape[-1] // block
    grey = data.images[rows].astype(np.float32).mean(1)[:, : size * block, : size * block]
    small = grey.reshape(-1, size, block, size, block).mean((2, 4))
    small -= small.mean((1, 2), keepdims=True)
    farther = []
    for label in np.unique(data.labels[rows]):
        images = small[data.labels[rows] == label]
        if len(images) > 3:
            plain, mirrored = (_distance_to_others(images, seen) for seen in (images, images[..., ::-1]))
            farther.append(np.where(np.isclose(plain, mirrored, rtol=1e-3), 0.5, mirrored > plain))
    found = np.concatenate(farther) if farther else np.zeros(0)
    return (float(found.mean()), len(found)) if len(found) else (0.5, 0)


def _distance_to_others(images: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of each of `seen` (N, S, S), which are `images` or their mirror images: the mean distance to the 3 nearest others."""
    flat, flat_seen = images.reshape(len(images), -1), seen.reshape(len(images), -1)
    squares = (flat_seen**2).sum(1)[:, None] - 2 * flat_seen @ flat.T + (flat**2).sum(1)
    np.fill_diagonal(squares, np.inf)
    return np.sqrt(np.partition(squares, 3, axis=1)[:, :3].clip(min=0)).mean(1)
