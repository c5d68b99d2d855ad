"""Statistics of a stream of images, folded in batch by batch; their size does not grow with the number of images.

May import: `evaluation.extractors`. Next: `metrics.py` computes the metrics from them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cond_ddpm.evaluation.extractors import Extractor

VERSION = 3  # of what a Tally holds; statistics cached by another version are computed again
GROUPS = 6  # disjoint parts of the images, from which the Fréchet distance is extrapolated to infinitely many
NEIGHBOURS = 1000  # how many images to find the nearest training image of


class Moments:
    """Number, sum and sum of outer products of features, in float64: all that a Fréchet distance needs."""

    def __init__(self, dim: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> None:
        """Fold in features (B, dim)."""
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


class Tally:
    """All statistics that the metrics need.

    Args:
        extractor: turns images into features.
        num_classes: of the data set.
        subset: how many images, from the first on, to keep the features of, for KID, precision and recall.
        image_shape: (C, H, W).
        num_images: how many images, from the first on, to keep.
    """

    _TENSORS = ("confusion", "probabilities", "entropy", "rows", "kept", "image_rows", "images")

    def __init__(
        self,
        extractor: Extractor,
        num_classes: int,
        subset: int,
        image_shape: tuple[int, ...],
        num_images: int = NEIGHBOURS,
    ):
        self.extractor, self.num_classes, self.subset, self.num_images = extractor, num_classes, subset, num_images
        dim = extractor.dim
        self.groups = [Moments(dim) for _ in range(GROUPS)]
        fits_in_memory = num_classes * dim**2 * 8 <= 1e9
        self.classes = [Moments(dim) for _ in range(num_classes if fits_in_memory else 0)]
        # Judge, requested class, recognised class; the last is none of them.
        self.confusion = torch.zeros(len(extractor.judges), num_classes, num_classes + 1, dtype=torch.int64)
        self.probabilities, self.entropy = torch.zeros(0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        self.rows, self.kept = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim)
        self.image_rows = torch.zeros(0, 2, dtype=torch.int64)  # row of the image among all, label
        self.images = torch.zeros((0, *image_shape), dtype=torch.uint8)

    def update(self, rows: Sequence[int], images: np.ndarray, labels: Sequence[int] | np.ndarray | None) -> None:
        """Fold in images (B, C, H, W) uint8, with their rows among all images and the requested classes, if known."""
        features, logits = self.extractor.extract(images)
        features, row_ids = features.float().cpu(), torch.as_tensor(rows)
        if not features.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity; check the extractor's weights.")
        for group in range(GROUPS):
            in_group = row_ids // self.num_classes % GROUPS == group  # labels take turns, so each group has all classes
            self.groups[group].update(features[in_group])
        label_ids = None if labels is None else torch.as_tensor(labels)
        if label_ids is not None:
            for label in label_ids.unique().tolist() if self.classes else ():
                self.classes[label].update(features[label_ids == label])
        if logits is not None and self.extractor.judges and label_ids is not None:
            for confusion, recognised in zip(self.confusion, logits.cpu().argmax(2)):
                pairs = label_ids * confusion.shape[1] + recognised
                confusion += torch.bincount(pairs, minlength=confusion.numel()).view_as(confusion)
        elif logits is not None and not self.extractor.judges:
            log_p = logits.cpu().double().log_softmax(1)
            self.probabilities = (self.probabilities if len(self.probabilities) else 0) + log_p.exp().sum(0)
            self.entropy += (log_p.exp() * log_p).sum()
        few = row_ids < self.subset
        self.rows, self.kept = torch.cat([self.rows, row_ids[few]]), torch.cat([self.kept, features[few]])
        few = row_ids < self.num_images
        label_ids = torch.full_like(row_ids, -1) if label_ids is None else label_ids
        self.image_rows = torch.cat([self.image_rows, torch.stack([row_ids[few], label_ids[few]], dim=1)])
        self.images = torch.cat([self.images, torch.from_numpy(np.ascontiguousarray(images))[few]])

    def tensors(self) -> dict[str, torch.Tensor]:
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        for prefix, moments in self._moments():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in moments.tensors().items()}
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> "Tally":
        for name in self._TENSORS:
            setattr(self, name, tensors[name])
        for prefix, moments in self._moments():
            moments.load({name: tensors[f"{prefix}.{name}"] for name in moments.tensors()})
        return self

    def _moments(self) -> list[tuple[str, Moments]]:
        return [(f"{kind}.{i}", moments) for kind in ("groups", "classes") for i, moments in enumerate(getattr(self, kind))]

    def merge(self, other: "Tally") -> None:
        """Add the statistics of another process."""
        self.groups = [own + others for own, others in zip(self.groups, other.groups)]
        self.classes = [own + others for own, others in zip(self.classes, other.classes)]
        self.confusion = self.confusion + other.confusion
        self.entropy = self.entropy + other.entropy
        if not len(self.probabilities):
            self.probabilities = torch.zeros_like(other.probabilities)
        if len(other.probabilities):
            self.probabilities = self.probabilities + other.probabilities
        for rows, values in (("rows", "kept"), ("image_rows", "images")):
            both = torch.cat([getattr(self, rows), getattr(other, rows)])
            order = (both if both.ndim == 1 else both[:, 0]).argsort()
            setattr(self, rows, both[order])
            setattr(self, values, torch.cat([getattr(self, values), getattr(other, values)])[order])

    @property
    def strictest(self) -> int:
        """The judge that recognises the fewest images as of the requested class."""
        return int(self.confusion[:, :, :-1].diagonal(dim1=1, dim2=2).sum(1).argmin())

    @property
    def all(self) -> Moments:
        return sum(self.groups[1:], self.groups[0])
