"""Statistics of features, folded in batch by batch, and the distances between them.

May import: nothing of ours; features come in. Next: `evaluate.py` puts the figures into results.json.
"""

import math

import numpy as np
import torch


class Moments:
    """Number, sum and sum of outer products of features, in float64: all that a Frechet distance needs."""

    def __init__(self, dim: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> None:
        """Fold in (B, dim)."""
        features = features.double().cpu()
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer += features.T @ features

    def __add__(self, other: "Moments") -> "Moments":
        both = Moments(len(self.sum))
        both.load({name: tensor + other.tensors()[name] for name, tensor in self.tensors().items()})
        return both

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"count": self.count, "sum": self.sum, "outer": self.outer}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.count, self.sum, self.outer = tensors["count"].clone(), tensors["sum"].clone(), tensors["outer"].clone()

    def mean_and_covariance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(dim,) and the unbiased (dim, dim).

        Raises:
            ValueError: fewer than two features.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"statistics: expected two or more images, got {count}.")
        mean = self.sum / count
        return mean, (self.outer - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Between the Gaussians of the same mean and covariance (Heusel 2017, eq. 6): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    The last trace is the nuclear norm of C^(1/2) C'^(1/2), exact also where covariances are singular.
    """
    (mean, covariance), (other_mean, other_covariance) = one.mean_and_covariance(), other.mean_and_covariance()
    root = torch.linalg.svdvals(_square_root(covariance) @ _square_root(other_covariance)).sum()
    distance = ((mean - other_mean) ** 2).sum() + covariance.trace() + other_covariance.trace() - 2 * root
    return max(0.0, distance.item())


def _square_root(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def extrapolated_distance(groups: list[Moments], reference: Moments) -> float:
    """FD as if of infinitely many samples (Chong & Forsyth 2020): a line in 1 / N through FDs of parts of the samples.

    Args:
        groups: disjoint random parts of the samples, of about equal size.
        reference: of the real images.

    Raises:
        ValueError: fewer than two groups.
    """
    if len(groups) < 2:
        raise ValueError(f"groups: expected two or more, got {len(groups)}.")
    inverses, distances = [], []
    for size in range(1, len(groups) + 1):
        for start in range(0, len(groups) - size + 1, size):  # disjoint parts of this many groups
            part = groups[start]
            for group in groups[start + 1 : start + size]:
                part = part + group
            inverses.append(1 / part.count.item())
            distances.append(frechet_distance(part, reference))
    return float(np.polyfit(inverses, distances, 1)[1])


def kernel_distance(features: torch.Tensor, reference: torch.Tensor, block: int = 1000) -> tuple[float, float]:
    """KID (Binkowski 2018, sec. 4): the unbiased squared MMD of the kernel (x y / dim + 1)^3; mean and standard error.

    Args:
        features, reference: (N, dim) and (M, dim); blocks of `block` of each are compared, as many as there are.
        block: images in a block.
    """
    size = min(block, len(features), len(reference))
    estimates = []
    for start in range(0, min(len(features), len(reference)) - size + 1, size):
        x, y = features[start : start + size].double(), reference[start : start + size].double()
        kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        estimates.append((within - 2 * xy.mean()).item())
    spread = float(np.std(estimates, ddof=1)) / math.sqrt(len(estimates)) if len(estimates) > 1 else math.nan
    return float(np.mean(estimates)), spread


def precision_and_recall(features: torch.Tensor, reference: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples within the real manifold, and of real images within the samples' (Kynkaanniemi 2019, eq. 1 to 3).

    A manifold is the union of the balls around its points that reach to their k-th nearest neighbour.
    """
    return _covered(features, reference, neighbours), _covered(reference, features, neighbours)


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
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans 2016, sec. 4), from sums over images; one split.

    Args:
        probabilities_sum: of p(y | x), (classes,).
        entropy_sum: of sum p log p.
        count: of images.
    """
    marginal = probabilities_sum / count
    return math.exp(entropy_sum / count - (marginal * marginal.clamp(min=1e-30).log()).sum().item())
