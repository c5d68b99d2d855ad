"""Which images are nearest to a given one: how copies of training images are found among samples.

May import: nothing of ours. Next: `visualize.nearest_neighbours` draws them, and `evaluation.metrics` reports their distance.
"""

import numpy as np

_BLOCK = 5000  # images compared at a time, which bounds the memory


def nearest_images(
    images: np.ndarray, others: np.ndarray, count: int, searched: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `images` (N, C, H, W) uint8, the `count` nearest of `others` (M, C, H, W), mirrored or not, nearest first.

    Args:
        images, others: what is compared.
        count: how many of `others`, or all of them if there are fewer.
        searched: the indices of the `others` that are searched, rising; all if not given.

    Returns:
        Three arrays (N, count): indices into `others`, whether the mirrored image is the nearer one, and the distances, which
        are the root mean square difference over pixels, on the scale of 0 to 255.
    """
    import torch

    samples = torch.from_numpy(np.array(images, np.float32)).flatten(1)
    candidates = []  # for each block: squared distances, rows and mirrored, each (N, <= count)
    for flip in (False, True):
        for start in range(0, len(others if searched is None else searched), _BLOCK):
            part = slice(start, start + _BLOCK)
            block = others[part if searched is None else searched[part]]
            pixels = torch.from_numpy(np.array(block[..., ::-1] if flip else block, np.float32)).flatten(1)
            squares = (samples**2).sum(1)[:, None] - 2 * samples @ pixels.T + (pixels**2).sum(1)
            values, rows = squares.topk(min(count, len(block)), largest=False)
            candidates.append((values, rows + start, torch.full_like(rows, flip)))
    squares, rows, flips = (torch.cat(parts, dim=1) for parts in zip(*candidates))
    order = squares.argsort(dim=1, stable=True)
    indices, mirrored = (part.gather(1, order).numpy() for part in (rows, flips))
    # An image may be a candidate twice, as it is and mirrored: the nearer one counts.
    is_first = np.array([[row not in candidate[:i] for i, row in enumerate(candidate)] for candidate in indices])
    chosen = np.array([np.flatnonzero(first)[:count] for first in is_first])
    indices, mirrored = (np.take_along_axis(part, chosen, axis=1) for part in (indices, mirrored))
    mirrored = mirrored.astype(bool)
    indices = indices if searched is None else searched[indices]
    nearest = others[indices]  # (N, count, C, H, W)
    nearest = np.where(mirrored[:, :, None, None, None], nearest[..., ::-1], nearest)
    # Recomputed from the differences, because the squares above are differences of large sums, and so lose precision.
    distances = np.sqrt(((nearest.astype(np.float64) - images[:, None]) ** 2).mean(axis=(2, 3, 4)))
    return indices, mirrored, distances
