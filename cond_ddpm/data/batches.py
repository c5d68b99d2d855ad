"""The order of the images in an epoch, and the batches that the network sees.

May import: `data.images, data.augmentation`. Next in the data flow: `diffusion.py` adds noise to a batch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cond_ddpm.data.augmentation import augment
from cond_ddpm.data.images import LabelledImages

if TYPE_CHECKING:  # imported when the first batch is made
    import torch


@dataclass(frozen=True)
class Batch:
    """What the network sees: images (B, C, H, W) float32 in [-1, 1] and class_labels (B,) int64."""

    images: "torch.Tensor"
    class_labels: "torch.Tensor"
    augment_labels: "torch.Tensor | None" = None  # (B, AUGMENT_DIM): how the images were changed; None if none can have been


def epoch_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """`indices` in the order of an epoch: a function of (seed, epoch), so that a resumed run continues in the same order."""
    return np.random.default_rng((seed, epoch)).permutation(indices)


def balanced_order(indices: np.ndarray, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many of `indices`, but each class of `labels` (of these indices) equally often, within one.

    The images of a class are repeated only when all of them have had their turn.
    """
    rng = np.random.default_rng((seed, epoch))
    classes = rng.permutation(np.unique(labels))  # the first ones are drawn once more, if the classes do not divide the number
    chosen = []
    for place, label in enumerate(classes):
        of_class, count = indices[labels == label], (len(indices) + len(classes) - 1 - place) // len(classes)
        rounds = -(-count // len(of_class))
        chosen.append(np.concatenate([rng.permutation(of_class) for _ in range(rounds)])[:count])
    return rng.permutation(np.concatenate(chosen))


def make_batch(
    data: LabelledImages,
    indices: np.ndarray,
    flip: np.ndarray | None = None,
    augmentation: np.ndarray | None = None,
    *,
    device="cpu",
) -> Batch:
    """The images at `indices`, normalised for the network.

    Args:
        data: what they are taken from.
        indices: (B,).
        flip: bool, (B,): which of them are mirrored.
        augmentation: float32, (B, AUGMENT_DIM): how they are changed, of which the network is told (`augmentation.py`).
        device: of the result.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    images = data.images[indices]
    if flip is not None:
        images[flip] = images[flip][..., ::-1]
    # The inverse, in the pipeline, is the `denormalize` of the same class.
    pixels = VaeImageProcessor.normalize(torch.from_numpy(images).to(device).float() / 255)
    class_labels = torch.from_numpy(data.labels[indices]).to(device)
    if augmentation is None:
        return Batch(pixels, class_labels)
    return Batch(augment(pixels, augmentation), class_labels, torch.from_numpy(augmentation).to(device))
