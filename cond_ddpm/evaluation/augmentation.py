"""What the classifiers see in training: real images varied in place, colour and sharpness, and images that show nothing.

May import: torch. Next: `classifier.py` trains on both.
A classifier that sees only real images names the class of a texture as surely as that of an object. So a part of each batch
loses its shapes and keeps its textures and colours, and belongs to no class (as in Ge 2021, arXiv 2110.14189).
All functions take images (B, C, H, W) in [-1, 1] and return as many; their random choices are torch's.
"""

import math

import torch
import torch.nn.functional as F


def varied(images: torch.Tensor) -> torch.Tensor:
    """The same objects elsewhere, in other colours; a fifth of the images blurred and a fifth noisy."""
    images = recoloured(shifted(images))
    blurry, noisy = torch.randperm(len(images), device=images.device).tensor_split(5)[:2]
    images[blurry] = blurred(images[blurry], _uniform(0.4, 1.2))
    deviation = torch.rand(len(noisy), 1, 1, 1, device=images.device) / 4
    images[noisy] = (images[noisy] + deviation * torch.randn_like(images[noisy])).clamp(-1, 1)
    return images


def destroyed(images: torch.Tensor) -> torch.Tensor:
    """Images without objects: parts exchanged (with sharp or soft seams), bent, with scrambled phases, far too blurred."""
    images = images.clone()
    exchanged, softened, bent, scrambled, blurry = torch.randperm(len(images), device=images.device).tensor_split(5)
    images[exchanged] = _displaced(images[exchanged], int(_uniform(3, 7)), 1.2, "nearest")
    images[softened] = blurred(_displaced(images[softened], int(_uniform(3, 7)), 1.2, "nearest"), _uniform(0.5, 1.0))
    images[bent] = _displaced(images[bent], int(_uniform(4, 8)), 0.8, "bicubic")
    images[scrambled] = _scrambled(images[scrambled])
    images[blurry] = blurred(images[blurry], images.shape[-1] / 32 * _uniform(3, 5))
    return images


def shuffled(images: torch.Tensor, parts: int = 4) -> torch.Tensor:
    """Each image cut into `parts` x `parts` patches, which change places at random: no shape larger than a patch is left.

    Raises:
        ValueError: a size that is not a multiple of `parts`.
    """
    batch, channels, height, width = images.shape
    if height % parts or width % parts:
        raise ValueError(f"parts: expected a divisor of the size {height}x{width}, got {parts}.")
    tall, wide = height // parts, width // parts
    patches = images.view(batch, channels, parts, tall, parts, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, parts**2, device=images.device).argsort(1)
    patches = patches[torch.arange(batch, device=images.device)[:, None], order].unflatten(1, (parts, parts))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def blurred(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """By a Gaussian with that standard deviation in pixels."""
    radius = min(math.ceil(2.5 * deviation), images.shape[-1] - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel, channels = kernel / kernel.sum(), images.shape[1]
    images = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    images = F.conv2d(images, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(images, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image shifted by up to an eighth of its size and padded by reflection."""
    batch, _, height, width = images.shape
    margin, device = height // 8, images.device
    padded = F.pad(images, (margin, margin, margin, margin), mode="reflect").permute(0, 2, 3, 1)
    tops, lefts = (torch.randint(0, 2 * margin + 1, (batch, 1), device=device) for _ in range(2))
    rows, columns = tops + torch.arange(height, device=device), lefts + torch.arange(width, device=device)
    image = torch.arange(batch, device=device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def recoloured(images: torch.Tensor) -> torch.Tensor:
    """Half of the images with another brightness, contrast, saturation and colour cast."""
    device, batch = images.device, len(images)
    between = lambda low, high, channels=1: low + (high - low) * torch.rand(batch, channels, 1, 1, device=device)  # noqa: E731
    changed = images
    if images.shape[1] == 3:
        grey = images.mean(1, keepdim=True)
        changed = (grey + (images - grey) * between(0, 1.6)) * between(0.7, 1.3, 3)
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * between(0.6, 1.4) + between(-0.3, 0.3)
    return torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, changed, images).clamp(-1, 1)


def _displaced(images: torch.Tensor, cells: int, distance: float, mode: str) -> torch.Tensor:
    """Each cell of a grid shows another place of the image: with "nearest" by hard seams, with "bicubic" bent smoothly.

    Args:
        cells: of the grid, in each direction.
        distance: how far away the place may be, where the image's size is 2.
    """
    batch, _, height, width = images.shape
    if not batch:  # torch's sampling takes no empty batch
        return images
    offsets = distance * (2 * torch.rand(batch, 2, cells, cells, device=images.device) - 1)
    offsets = F.interpolate(offsets, size=(height, width), mode=mode)
    same = torch.eye(2, 3, device=images.device).expand(batch, 2, 3)
    places = F.affine_grid(same, [batch, 1, height, width], align_corners=False) + offsets.permute(0, 2, 3, 1)
    interpolation = "nearest" if mode == "nearest" else "bilinear"
    return F.grid_sample(images, places, mode=interpolation, padding_mode="reflection", align_corners=False)


def _scrambled(images: torch.Tensor) -> torch.Tensor:
    """Waves of the same strengths at other places: the phases of the Fourier transform are moved at random."""
    if not len(images):  # nor do its transforms
        return images
    noise = torch.fft.rfft2(torch.randn_like(images[:, :1]))
    moved = torch.fft.rfft2(images) * noise / noise.abs()
    return torch.fft.irfft2(moved, s=images.shape[-2:]).clamp(-1, 1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()
