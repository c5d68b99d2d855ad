"""Changes of training images of which the network is told, so that its samples do not have them (EDM, Karras 2022, app. F.2).

May import: nothing of ours. `diffusion.py` draws how each image is changed; `batches.py` changes it; the network gets the same
numbers as `augment_labels`. For a sample they are zero.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # imported when the first batch is made
    import torch

_SHIFT = 1 / 8  # standard deviation, as a share of the image's side (EDM)
_ENLARGE = 0.2  # standard deviation of the binary logarithm of the factor (EDM)
_TURN = math.pi / 12  # standard deviation of the angle. EDM turns by any angle, which takes more training to learn.


def augment(images: "torch.Tensor", amounts: np.ndarray) -> "torch.Tensor":
    """Images (B, C, H, W), changed as `amounts` (B, 5) say; those whose amounts are all zero stay as they are.

    The amounts: 1 for the mirror image; shifts to the right and down, binary logarithm of the enlargement, and turn clockwise,
    each in standard deviations. What comes in from outside is the image's own reflection.
    """
    import torch
    import torch.nn.functional as F

    changes = amounts.any(1)
    if not changes.any():
        return images
    rows = torch.from_numpy(np.flatnonzero(changes)).to(images.device)
    mirrored, right, down, enlarged, turned = torch.from_numpy(amounts[changes]).to(images.device).unbind(1)
    factor, angle = torch.exp2(-_ENLARGE * enlarged), _TURN * turned
    cos, sin, sign = factor * angle.cos(), factor * angle.sin(), 1 - 2 * mirrored
    x, y = -2 * _SHIFT * right, -2 * _SHIFT * down  # the image's side is 2 in the coordinates of the grid
    # Where in the image each pixel of the result comes from: shift, turn and enlarge about the centre, mirror, all inverted.
    first = torch.stack([sign * cos, sign * sin, sign * (cos * x + sin * y)], dim=1)
    second = torch.stack([-sin, cos, cos * y - sin * x], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images[rows].shape), align_corners=False)
    changed = F.grid_sample(images[rows], grid, padding_mode="reflection", align_corners=False)
    return images.index_put((rows,), changed)
