"""The metrics: distances between statistics of samples and of real images, each a function of its own.

May import: `evaluation.statistics`. A new metric is a function here and a line in `compute_metrics`. Next: `report.py`
writes the metrics into results.json.
"""

import math
from typing import Any

import numpy as np
import torch

from cond_ddpm.evaluation.statistics import Moments, Tally


def compute_metrics(tally: Tally, real: Tally, class_names: list[str], distances: np.ndarray) -> dict:
    """All metrics of the images in `tally`, compared with the real images.

    Args:
        tally: statistics of the images to be judged.
        real: statistics of the real images.
        class_names: of the data set.
        distances: (N, K) of images to their nearest training images, mirrored or not, nearest first.
    """
    count, dim = int(tally.all.count), tally.extractor.dim
    found: dict[str, Any] = {
        "num_images": count,
        "frechet_distance": frechet_distance(tally.all, real.all),
        "frechet_distance_infinite": None,
    }
    if min(int(group.count) for group in tally.groups) >= 4 * dim:  # with fewer, distances are not linear in 1 / N
        found["frechet_distance_infinite"] = extrapolated_distance(tally.groups, real.all)
    found["kernel_distance"], found["kernel_distance_error"] = kernel_distance(tally.kept, real.kept)
    found["precision"], found["recall"] = precision_and_recall(tally.kept, real.kept)
    found["subset"] = [len(tally.kept), len(real.kept)]
    if tally.extractor.name == "inception":
        found["inception_score"] = inception_score(tally.probabilities, tally.entropy.item(), count)
    judged = bool(tally.confusion.any())
    if judged:
        # Samples may please one judge by accident, so the lower accuracy is the one that counts.
        accuracies = [confusion.trace().item() / count for confusion in tally.confusion]
        found["label_accuracy"] = accuracies[tally.strictest]
        found["label_accuracies"] = dict(zip(tally.extractor.judges, accuracies))
        confusion = tally.confusion[tally.strictest]
        found["recognised_as_no_class"] = confusion[:, -1].sum().item() / count
    # The median: copies are much nearer to a training image than new images are.
    found["nearest_training_distance"] = float(np.median(distances[:, 0]))
    found["classes"] = {}
    for label, name in enumerate(class_names if tally.classes else ()):
        number = int(tally.classes[label].count)
        row: dict[str, float] = {"num_images": number}
        if number > 1:
            row["frechet_distance"] = frechet_distance(tally.classes[label], real.classes[label])
        if judged and confusion[label].any():
            row["accuracy"] = (confusion[label, label] / confusion[label].sum()).item()
        found["classes"][name] = row
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def frechet_distance(one: Moments, other: Moments) -> float:
    """Distance between the Gaussians with these moments (Heusel 2017, eq. 6): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    The last trace is computed as the nuclear norm of C^(1/2) C'^(1/2), which is exact even for singular covariances.
    """
    (mean, covariance), (other_mean, other_covariance) = one.mean_and_covariance(), other.mean_and_covariance()
    root = torch.linalg.svdvals(_square_root(covariance) @ _square_root(other_covariance)).sum()
    distance = ((mean - other_mean) ** 2).sum() + covariance.trace() + other_covariance.trace() - 2 * root
    return max(0.0, distance.item())


def _square_root(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def extrapolated_distance(groups: list[Moments], real: Moments) -> float:
    """Fréchet distance extrapolated to infinitely many samples, by a line in 1 / N (Chong & Forsyth 2020).

    Args:
        groups: moments of disjoint random parts of the samples, about equal in size.
        real: moments of the real images.

    Raises:
        ValueError: fewer than two groups.
    """
    if len(groups) < 2:
        raise ValueError(f"groups: expected two or more, got {len(groups)}.")
    inverses, distances = [], []
    for size in range(1, len(groups) + 1):
        for start in range(0, len(groups) - size + 1, size):  # disjoint unions of `size` groups
            part = groups[start]
            for group in groups[start + 1 : start + size]:
                part = part + group
            inverses.append(1 / part.count.item())
            distances.append(frechet_distance(part, real))
    return float(np.polyfit(inverses, distances, 1)[1])


def kernel_distance(features: torch.Tensor, real: torch.Tensor, block: int = 1000) -> tuple[float, float]:
    """KID (Binkowski 2018, sec. 4): the unbiased squared MMD for the kernel (x y / dim + 1)^3.

    Args:
        features, real: (N, dim) and (M, dim).
        block: number of features of each that are compared at a time; of a set of fewer, all.

    Returns:
        Mean over the blocks, and its standard error, which is NaN for a single block.
    """
    sizes = min(block, len(features)), min(block, len(real))
    estimates = []
    for number in range(min(len(features) // sizes[0], len(real) // sizes[1])):
        x, y = (part[number * size : (number + 1) * size].double() for part, size in zip((features, real), sizes))
        kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
        within = sum((part.sum() - part.trace()) / (len(part) * (len(part) - 1)) for part in (kernel(x, x), kernel(y, y)))
        estimates.append((within - 2 * kernel(x, y).mean()).item())
    spread = float(np.std(estimates, ddof=1)) / math.sqrt(len(estimates)) if len(estimates) > 1 else math.nan
    return float(np.mean(estimates)), spread


def precision_and_recall(features: torch.Tensor, real: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples in the real manifold, and of real images in the manifold of samples (Kynkaanniemi 2019, eq. 1 to 3).

    A manifold is the union of the balls around its points, each with the distance to the k-th nearest neighbour as its radius.
    """
    return _covered(features, real, neighbours), _covered(real, features, neighbours)


def _covered(points: torch.Tensor, manifold: torch.Tensor, neighbours: int, block: int = 2000) -> float:
    neighbours, manifold = min(neighbours, len(manifold) - 1), manifold.float()
    radii = torch.cat(
        [
            torch.cdist(part, manifold).kthvalue(neighbours + 1, dim=1).values  # the nearest is the point itself
            for part in manifold.split(block)
        ]
    )
    covered = sum(int((torch.cdist(part, manifold) <= radii).any(dim=1).sum()) for part in points.float().split(block))
    return covered / len(points)


def inception_score(probabilities_sum: torch.Tensor, entropy_sum: float, count: int) -> float:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans 2016, sec. 4), over all images at once.

    Args:
        probabilities_sum: sum over images of p(y | x), (classes,).
        entropy_sum: sum over images of sum_y p(y | x) log p(y | x).
        count: number of images.
    """
    marginal = probabilities_sum / count
    return math.exp(entropy_sum / count - (marginal * marginal.clamp(min=1e-30).log()).sum().item())
