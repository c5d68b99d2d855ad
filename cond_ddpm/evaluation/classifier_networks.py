"""The two networks that name the class of an image: one of convolutions, and one that attends over the whole image.

May import: torch. Next: `classifier.py` trains them. Two architectures err in different ways, so that samples which please
one of them by accident do not please the other. Neither is ever used in training a diffusion model.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NUM_FEATURES = 128


def _stride(size: int) -> int:
    """Of the first convolution, so that the rest sees 32 to 63 pixels: its cost does not grow with the size of the images."""
    return max(1, size // 32)


class _Head(nn.Module):
    """(B, width) -> features (B, 128) and logits (B, num_classes + 1); the last class is none of them."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.embed = nn.Linear(width, NUM_FEATURES)
        self.classify = nn.Linear(NUM_FEATURES, num_classes + 1)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.embed(hidden)
        return features, self.classify(F.relu(features))


class _ConvolutionBlock(nn.Module):
    """Half the size, then a residual convolution: (B, in, S, S) -> (B, out, S / 2, S / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.norm1(F.max_pool2d(self.conv1(hidden), 2, ceil_mode=True)))
        return hidden + F.silu(self.norm2(self.conv2(hidden)))


class ConvolutionalClassifier(nn.Module):
    """A small residual network whose first layer is fixed: it whitens patches of pixels (Jordan 2024, arXiv 2404.00498).

    `forward`: images (B, C, S, S) in [-1, 1] -> features (B, 128) and logits (B, num_classes + 1).

    Args:
        num_classes: of the data set.
        image_shape: (C, S, S).
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, ...]):
        super().__init__()
        channels, size = image_shape[0], image_shape[1]
        stride = _stride(size)
        whitened = 8 * channels
        self.whiten = nn.Conv2d(channels, whitened, stride + 1, stride=stride)
        widths = (whitened, 64, 192, 256)
        self.blocks = nn.Sequential(*(_ConvolutionBlock(*pair) for pair in pairwise(widths)))
        self.head = _Head(widths[-1], num_classes)

    @torch.no_grad()
    def prepare(self, images: torch.Tensor) -> None:
        """Make the first layer the principal components of the images' patches, each also negated, at variance 1."""
        side, half = self.whiten.kernel_size[0], self.whiten.out_channels // 2
        patches = F.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1)  # (N, C side^2)
        variances, components = torch.linalg.eigh(torch.cov(patches.T))  # ascending
        filters = (components / (variances + 5e-4).sqrt())[:, -half:].T.unflatten(1, self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.weight.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(self.blocks(F.silu(self.whiten(images))).mean(dim=(2, 3)))


class _AttentionBlock(nn.Module):
    """Self-attention and an MLP, each after a LayerNorm and with a residual: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(self.norm1(tokens)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, width / heads)
        # Products, for torch's own function is slow for few tokens in bfloat16 on CPUs.
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
        tokens = tokens + self.to_out((weights @ value).transpose(1, 2).flatten(2))
        return tokens + self.mlp_out(F.silu(self.mlp_in(self.norm2(tokens))))


class AttentionClassifier(nn.Module):
    """Three convolutions to a quarter of the size, then a transformer over all of its places.

    `forward`, arguments: as of `ConvolutionalClassifier`.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, ...], width: int = 192, layers: int = 4):
        super().__init__()
        channels, size = image_shape[0], image_shape[1]
        stride = _stride(size)
        self.conv1 = nn.Conv2d(channels, 32, stride + 2, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(32, 96, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(96, width, 4, stride=2, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(32), nn.BatchNorm2d(96)
        with torch.no_grad():
            places = self._tokens(torch.zeros(2, *image_shape)).shape[1]
            for norm in (self.norm1, self.norm2):  # else the judge would depend on the random state at this moment
                assert norm.running_mean is not None and norm.running_var is not None  # as in any layer that tracks them
                norm.running_mean.zero_()
                norm.running_var.fill_(1)
        self.positions = nn.Parameter(torch.zeros(places, width))
        self.blocks = nn.Sequential(*(_AttentionBlock(width, width // 32) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = _Head(width, num_classes)

    def prepare(self, images: torch.Tensor) -> None:
        """Nothing: all layers are trained."""

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.norm1(self.conv1(images)))
        hidden = F.silu(self.norm2(self.conv2(hidden)))
        return self.conv3(hidden).flatten(2).transpose(1, 2)  # (B, places, width)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self._tokens(images)
        tokens = self.blocks(tokens + self.positions.to(tokens.dtype))
        return self.head(self.norm(tokens).mean(dim=1))
