"""What is kept of a stream of images while they are measured: it does not grow with their number.

May import: `evaluate.extractors`, `evaluate.metrics`. Next: `evaluate.py` turns tallies into figures.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cond_ddpm.evaluate.extractors import Extractor
from cond_ddpm.evaluate.metrics import Moments

GROUPS = 6  # disjoint parts of the images, from which FD is extrapolated to infinitely many
NEIGHBOURS = 1000  # images whose nearest training image is looked for


class Tally:
    """All that is kept of a stream of images: it does not grow with their number."""

    def __init__(self, extractor: Extractor, num_classes: int, subset: int, image_shape: tuple[int, int, int]):
        self.extractor, self.num_classes, self.subset = extractor, num_classes, subset
        dim = extractor.dim
        self.groups = [Moments(dim) for _ in range(GROUPS)]
        by_class = num_classes if num_classes * dim**2 * 8 <= 1e9 else 0
        self.classes = [Moments(dim) for _ in range(by_class)]
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # asked for, seen
        self.probabilities, self.entropy = torch.zeros(0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        self.rows, self.kept = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim)
        self.image_rows = torch.zeros(0, 2, dtype=torch.int64)  # place among all, label
        self.images = torch.zeros((0, *image_shape), dtype=torch.uint8)

    def update(self, rows: Sequence[int], images: np.ndarray, labels: Sequence[int] | None) -> None:
        """Fold in images (B, C, H, W) uint8, by their place among all, with the classes asked for."""
        features, logits = self.extractor.extract(images)
        features, rows = features.float().cpu(), torch.as_tensor(rows)
        if not features.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity; are the extractor's weights whole?")
        for group in range(GROUPS):
            mine = rows // self.num_classes % GROUPS == group  # each with images of all classes, where labels take turns
            self.groups[group].update(features[mine])
        if labels is not None:
            labels = torch.as_tensor(labels)
            for label in labels.unique().tolist() if self.classes else ():
                self.classes[label].update(features[labels == label])
        if logits is not None:
            log_p = logits.cpu().double().log_softmax(1)
            self.probabilities = (self.probabilities if len(self.probabilities) else 0) + log_p.exp().sum(0)
            self.entropy += (log_p.exp() * log_p).sum()
            if self.extractor.names_classes and labels is not None:
                pairs = labels * self.num_classes + log_p.argmax(1)
                self.confusion += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.confusion)
        few = rows < self.subset
        self.rows, self.kept = torch.cat([self.rows, rows[few]]), torch.cat([self.kept, features[few]])
        few = rows < NEIGHBOURS
        labels = torch.full((len(rows),), -1) if labels is None else labels
        self.image_rows = torch.cat([self.image_rows, torch.stack([rows[few], labels[few]], dim=1)])
        self.images = torch.cat([self.images, torch.from_numpy(np.ascontiguousarray(images))[few]])

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("confusion", "probabilities", "entropy", "rows", "kept", "image_rows", "images")
        tensors = {name: getattr(self, name) for name in names}
        for what in ("groups", "classes"):
            for number, moments in enumerate(getattr(self, what)):
                tensors |= {f"{what}.{number}.{name}": tensor for name, tensor in moments.tensors().items()}
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> "Tally":
        for name in ("confusion", "probabilities", "entropy", "rows", "kept", "image_rows", "images"):
            setattr(self, name, tensors[name])
        for what in ("groups", "classes"):
            for number, moments in enumerate(getattr(self, what)):
                moments.load({name: tensors[f"{what}.{number}.{name}"] for name in moments.tensors()})
        return self

    def merge(self, other: "Tally") -> None:
        """Add another process's."""
        self.groups = [mine + its for mine, its in zip(self.groups, other.groups)]
        self.classes = [mine + its for mine, its in zip(self.classes, other.classes)]
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
    def all(self) -> Moments:
        return sum(self.groups[1:], self.groups[0])
