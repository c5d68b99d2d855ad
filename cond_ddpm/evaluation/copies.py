"""Whether samples are copies of training images: how many are nearer to one than 99% of real images are to other real ones.

May import: `data, evaluation.statistics, hub, visualize`. Next: `evaluate.py` puts what is found into results.json, and
`metrics.py` reports the median distance.

Nearness is the distance to the nearest training image divided by the mean distance to the next four. The distance alone would
not do: a smooth image is near to many training images, and even a copy of a detailed one is farther away than that.

The real images are the held-out ones and, where these are fewer than 1,000, training images too, each compared with all
others, for which it is as new as a held-out image is. Five held-out images alone could not tell a share of 30% from chance.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cond_ddpm.data import nearest_images
from cond_ddpm.evaluation.statistics import NEIGHBOURS, Tally
from cond_ddpm.hub.measured import most_of
from cond_ddpm.visualize import class_grid

QUANTILE = 0.01  # the share of real images that may be nearer to another one than the threshold
_DOUBLED = 0.1  # below this, another image is hardly different; one such of few would hide all copies, and is left out
_ENOUGH = 1000  # real images, from which training images are not needed beside the held-out ones
_NEXT = 4  # training images, after the nearest one, to which its distance is compared
_WORST = 10  # pairs in the picture
_BLOCK = 100


class Nearest(NamedTuple):
    """The training images that are nearest to each of N images, nearest first: (N, K) each, as of `nearest_images`."""

    rows: np.ndarray
    mirrored: np.ndarray
    distances: np.ndarray


def nearest_training_images(images: np.ndarray, training_images: np.ndarray) -> Nearest:
    """Search those that nearness is made of, K = 5, or as many as there are.

    Of images that are equal one is searched: the next four of a picture that occurs five times are as near as the nearest.
    """
    return _search(images, training_images, 1 + _NEXT)


def nearest_others(training_images: np.ndarray, num_held_out: int) -> Nearest | None:
    """As many training images as are wanted beside the held-out ones, each searched among the others.

    None if enough are held out, or there are too few to search.
    """
    count = min(max(0, _ENOUGH - num_held_out), len(training_images))
    chosen = training_images[np.sort(np.random.default_rng(0).permutation(len(training_images))[:count])]
    found = _search(chosen, training_images, 2 + _NEXT) if count else None
    if found is None or found.distances.shape[1] < 2 + _NEXT:
        return None
    return Nearest(*(part[:, 1:] for part in found))  # without the image itself


def _search(images: np.ndarray, training_images: np.ndarray, count: int) -> Nearest:
    first: dict[bytes, int] = {}
    for row, image in enumerate(training_images):
        first.setdefault(blake2b(image.tobytes(), digest_size=16).digest(), row)
    rows = np.array(list(first.values()))
    starts = range(0, len(images), _BLOCK)
    parts = [nearest_images(images[n : n + _BLOCK], training_images, count, rows) for n in starts]
    return Nearest(*(np.concatenate(part) for part in zip(*parts)))


def find_copies(
    samples: Tally,
    held_out: Tally,
    training: Tally,
    nearest: Nearest,
    of_held_out: Nearest,
    of_others: Nearest | None,
    training_images: np.ndarray,
    class_names: Sequence[str],
    picture: Path,
) -> dict[str, Any]:
    """The record `copies` of results.json; and the worst pairs, samples and training images, as a picture.

    Args:
        samples, held_out: statistics of samples and of held-out real images; their first images are taken.
        training: statistics of training images, whose features are searched.
        nearest, of_held_out: the training images nearest to those of `samples`, and to those of `held_out`; among the images
            that are searched for the latter must not be the held-out images themselves.
        of_others: from `nearest_others`.
        training_images: (M, C, H, W) uint8, those that `nearest` was searched in.
        class_names: of the data set.
        picture: of the PNG.
    """
    images, labels = samples.images[:NEIGHBOURS].numpy(), samples.image_rows[:NEIGHBOURS, 1].numpy()
    found: dict[str, Any] = {"quantile": QUANTILE, "num_samples": len(images)}
    if min(nearest.distances.shape[1], of_held_out.distances.shape[1]) > _NEXT:
        scores, real = nearness(nearest.distances), nearness(of_held_out.distances)
        if of_others is not None:
            real = np.concatenate([real, nearness(of_others.distances)])
        if (real >= _DOUBLED).any():
            found["pixels"] = {"searched": len(training_images), **_shares(scores, real, labels, class_names)}
        _draw(images, labels, class_names, training_images, scores, nearest, picture)
    kept = training.kept.float().unique(dim=0)
    if len(kept) > _NEXT:
        features, real_features = (tally.kept[tally.rows < NEIGHBOURS] for tally in (samples, held_out))
        scores, real = (_nearness_of_features(part, kept) for part in (features, real_features))
        if len(kept) > 1 + _NEXT and of_others is not None:
            some = training.kept[: len(of_others.distances)]  # in an order that is random already
            real = np.concatenate([real, _nearness_of_features(some, kept, skip=1)])
        of_features = labels[samples.image_rows[:NEIGHBOURS, 0].numpy() < samples.subset]
        if (real >= _DOUBLED).any():
            found["features"] = {"searched": len(training.kept), **_shares(scores, real, of_features, class_names)}
    return found


def warn_of_copies(copies: dict[str, Any]) -> list[str]:
    """A sentence for pixels and for features, if more samples are near to a training image than chance explains."""
    warnings = []
    for name in ("pixels", "features"):
        if name in copies:
            share, by_chance, num_real = (copies[name][key] for key in ("share", "by_chance", "num_real"))
            deviation = (by_chance * (1 - by_chance) / copies["num_samples"]) ** 0.5
            if share > 3 * by_chance and share > by_chance + 3 * deviation:
                warnings.append(
                    f"{share:.0%} of the samples are nearer to a training image, in {name}, than"
                    f" {most_of(QUANTILE, num_real)} real images are to other real ones; by chance"
                    f" {by_chance:.0%} would be: the model copies training images."
                )
    return warnings


def nearness(distances: np.ndarray) -> np.ndarray:
    """Distances (N, K) to the K nearest, nearest first -> (N,): the first over the mean of the others; 0 for a copy."""
    return distances[:, 0] / distances[:, 1:].mean(1).clip(min=1e-12)


def _shares(scores: np.ndarray, real: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The share of samples whose score is below the threshold that `real` sets, overall and in each class."""
    doubled = real < _DOUBLED
    real = real[~doubled]
    rank = int(QUANTILE * (len(real) - 1))  # from 0
    threshold = float(np.sort(real)[rank])
    nearer = scores < threshold
    classes = {
        name: float(nearer[labels == label].mean()) for label, name in enumerate(class_names) if (labels == label).any()
    }
    return {
        "share": float(nearer.mean()),
        # A further real image is as likely to be in any of the n + 1 places among n of them; `rank` + 1 are below this score.
        "by_chance": (rank + 1) / (len(real) + 1),
        "num_real": len(real),
        "threshold": threshold,
        "doubled_real": int(doubled.sum()),
        "classes": classes,
    }


def _nearness_of_features(features: torch.Tensor, others: torch.Tensor, skip: int = 0) -> np.ndarray:
    """(N,), to different `others`; with `skip` 1, without the nearest, which is the image itself."""
    parts = [torch.cdist(part.float(), others) for part in features.split(_BLOCK)]
    return nearness(torch.cat([part.topk(skip + 1 + _NEXT, largest=False).values for part in parts]).numpy()[:, skip:])


def _draw(images, labels, class_names, training_images, scores, nearest: Nearest, picture: Path) -> None:
    worst = np.argsort(scores, kind="stable")[:_WORST]
    shown = [training_images[nearest.rows[row, 0]][..., :: -1 if nearest.mirrored[row, 0] else 1] for row in worst]
    names = [class_names[labels[row]] if labels[row] >= 0 else "" for row in worst]
    captions = [*[""] * len(worst), *(f"{scores[row]:.2f}" for row in worst)]
    title = "the nearest pairs; an exact copy has 0"
    cells = np.stack([*images[worst], *shown])
    class_grid(cells, ["sample", "training image"], picture, title, names, captions, inches=0.8)
