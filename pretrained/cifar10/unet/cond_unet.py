"""The class-conditional UNets. This file is published beside their weights.

May import: the standard library, torch and diffusers, by absolute names; nothing of this package, so that it works alone.
Next in the data flow: in training the prediction goes to the loss in `cond_ddpm/diffusion.py`, in sampling to the scheduler
in `pipelines/pipeline_cond_ddpm.py`.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


def _group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as possible: at most 32, each of at least 4 channels (as in EDM, Karras 2022)."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _set_to_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _num_heads(channels: int, head_dim: int) -> int:
    """The number of heads with `head_dim` channels each. Fewer channels than that form a single head."""
    if head_dim < 1:
        raise ValueError(f"attention_head_dim: expected a positive whole number, got {head_dim}.")
    if channels > head_dim and channels % head_dim:
        raise ValueError(
            f"block_out_channels: expected a multiple of attention_head_dim={head_dim} where there is attention, got"
            f" {channels}; change block_out_channels or attention_head_dim."
        )
    return max(1, channels // head_dim)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) V (Vaswani 2017, eq. 1); all are (B, heads, HW, d).

    torch's own function is made for GPUs and long sequences. On CPUs in bfloat16 it takes 3.4 times as long as the products
    below for 8x8 pixels, 1.6 times for 16x16 and 0.9 times for 32x32 (`benchmarks/layers.py`).
    """
    if query.device.type != "cpu" or query.dtype == torch.float32 or query.shape[2] >= 32**2:
        return F.scaled_dot_product_attention(query, key, value)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, HW, HW)
    return weights.softmax(dim=-1) @ value


class _SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a feature map, with a residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.num_heads = _num_heads(channels, head_dim)
        self.norm = _group_norm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = sample.shape
        tokens = self.norm(sample).flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = self.to_qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, HW, 3, heads, C / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, HW, C / heads)
        attended = _attend(query, key, value)
        tokens = self.to_out(attended.transpose(1, 2).flatten(2))  # (B, HW, C)
        return sample + tokens.transpose(1, 2).reshape(batch, channels, height, width)


class _ResidualBlock(nn.Module):
    """Two convolutions; the embedding scales and shifts the normalised input of the second (ADM, Dhariwal 2021, sec. 3).

    Self-attention follows, unless `attention_head_dim` is None.
    """

    def __init__(
        self, in_channels: int, out_channels: int, pos_dim: int, dropout: float, attention_head_dim: int | None = None
    ):
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to_scale_shift = nn.Linear(pos_dim, 2 * out_channels)
        self.norm2 = _group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = None if attention_head_dim is None else _SelfAttention(out_channels, attention_head_dim)

    def forward(self, sample: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(sample)))
        scale, shift = self.to_scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)  # each (B, out, 1, 1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        hidden = self.skip(sample) + self.conv2(self.dropout(F.silu(hidden)))
        return hidden if self.attention is None else self.attention(hidden)


def _squared_relu(hidden: torch.Tensor) -> torch.Tensor:
    """max(0, x)^2 (Primer, So 2021, sec. 3)."""
    return F.relu(hidden).square()


# Greater numbers are of a damaged file. They would overflow, or make layers until the memory is full.
_MOST = {"sample_size": 2**15, "layers_per_block": 2**10, "transformer_layers": 2**10}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "squared_relu": _squared_relu}


class _TransformerBlock(nn.Module):
    """Self-attention and an MLP over tokens; the embedding shifts, scales and gates both (DiT, Peebles 2023, sec. 3.2).

    The gates start at zero. Queries and keys are normalised (Dehghani 2023, sec. 2), so that their products stay small at
    any learning rate. On CPUs in bfloat16, SiLU takes a third of the time of GELU, LayerNorm a quarter of that of RMSNorm.
    """

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, pos_dim: int, dropout: float, activation: str):
        super().__init__()
        self.num_heads = _num_heads(width, head_dim)
        self.activation = _ACTIVATIONS[activation]
        self.to_film = nn.Linear(pos_dim, 6 * width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, mlp_ratio * width)
        self.dropout = nn.Dropout(dropout)
        self.mlp_out = nn.Linear(mlp_ratio * width, width)

    def forward(self, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        width = tokens.shape[2]
        film = self.to_film(embedding)[:, None].chunk(6, dim=2)  # each (B, 1, width)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = film
        hidden = torch.addcmul(shift, F.layer_norm(tokens, (width,)), 1 + scale)  # (B, HW, width)
        qkv = self.to_qkv(hidden).unflatten(2, (3, self.num_heads, -1))  # (B, HW, 3, heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, HW, head_dim)
        query, key = (F.layer_norm(x, x.shape[-1:]) for x in (query, key))
        attended = _attend(query, key, value)
        tokens = torch.addcmul(tokens, gate, self.to_out(attended.transpose(1, 2).flatten(2)))
        hidden = torch.addcmul(mlp_shift, F.layer_norm(tokens, (width,)), 1 + mlp_scale)
        return torch.addcmul(tokens, mlp_gate, self.mlp_out(self.dropout(self.activation(self.mlp_in(hidden)))))


class _Stage(nn.Module):
    """The residual blocks of one resolution, and the convolution that leads to the next one (None at the last)."""

    def __init__(self, blocks: list[_ResidualBlock], resample: nn.Conv2d | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


class _CondUNet2DModel(ModelMixin, ConfigMixin):
    """What the networks have in common: embeddings, checks, and the conversion between images and patches.

    A network derives from it. Its `__init__`, under `@register_to_config`, takes at least the arguments of
    `SimpleUNet2DModel`, calls `_check_config` and `_build_embedding`, makes its layers, and starts with an output of zero. Its
    `_predict` turns patches and the embedding into patches.
    """

    _no_split_modules: ClassVar[list[str]] = ["_ResidualBlock", "_TransformerBlock"]  # for device_map="auto" and offloading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, output_loading_info: bool = False, **kwargs):
        """As in diffusers, except that a missing tensor is an error. (diffusers would leave it at random values.)

        Raises:
            ValueError: the file lacks a tensor of the network.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"])
        if missing:
            more = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
            raise ValueError(
                f"{pretrained_model_name_or_path}: expected weights with every tensor of {cls.__name__}, got a file without"
                f" {', '.join(missing[:3])}{more}; save or download them again."
            )
        return (model, info) if output_loading_info else model

    def _build_embedding(self) -> None:
        pos_dim = self.config.pos_dim
        self.time_proj = Timesteps(pos_dim // 4, flip_sin_to_cos=True, downscale_freq_shift=0)  # computed in forward
        self.time_embedding = TimestepEmbedding(pos_dim // 4, pos_dim)
        self.class_embedding = nn.Embedding(self.config.num_classes + 1, pos_dim)  # the last row is the null label
        # What was done to a training image (EDM, Karras 2022, app. F.2). Nothing was done to a sample, which adds nothing.
        self.augment_embedding = nn.Linear(self.config.augment_dim, pos_dim, bias=False) if self.config.augment_dim else None
        if self.augment_embedding is not None:
            _set_to_zero(self.augment_embedding)

    def _check_config(self) -> None:
        config = self.config
        positive = ("sample_size", "in_channels", "out_channels", "num_classes", "layers_per_block", "patch_size")
        for name in (*positive, "transformer_layers", "mlp_ratio"):
            if config.get(name, 1) < 1:
                raise ValueError(f"{name}: expected a positive whole number, got {getattr(config, name)}.")
        for name, most in _MOST.items():
            if config.get(name, 1) > most:
                raise ValueError(f"{name}: expected at most {most}, got {getattr(config, name)}.")
        if not config.block_out_channels or min(config.block_out_channels) < 1:
            raise ValueError(
                "block_out_channels: expected a positive number of channels for each resolution, such as (64, 128, 128), got"
                f" {config.block_out_channels}."
            )
        if config.pos_dim < 8 or config.pos_dim % 8:
            raise ValueError(f"pos_dim: expected a multiple of 8, got {config.pos_dim}.")
        if config.augment_dim < 0:
            raise ValueError(f"augment_dim: expected 0 or a positive whole number, got {config.augment_dim}.")
        if not 0 <= config.dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {config.dropout}.")
        factor = config.patch_size * 2 ** (len(config.block_out_channels) - 1)
        if config.sample_size % factor:
            raise ValueError(
                f"sample_size: expected a multiple of {factor} (patch_size {config.patch_size} and"
                f" {len(config.block_out_channels) - 1} halvings), got {config.sample_size}; resize the images, or give fewer"
                " block_out_channels or a smaller patch_size."
            )

    def _check_inputs(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> None:
        size, null_label = self.config.sample_size, self.config.num_classes
        expected = (self.config.in_channels, size, size)
        if sample.ndim != 4 or tuple(sample.shape[1:]) != expected:
            raise ValueError(
                f"sample: expected shape (batch, {', '.join(map(str, expected))}), got {tuple(sample.shape)};"
                " resize or convert the images, or make a model for their shape."
            )
        if class_labels is None:
            raise ValueError(
                f"class_labels: expected {sample.shape[0]} labels, got None; give a class for each image, or {null_label} (the"
                " null label, config.num_classes) for an unconditional prediction."
            )
        if class_labels.shape != sample.shape[:1] or class_labels.dtype != torch.int64:
            raise ValueError(
                f"class_labels: expected shape ({sample.shape[0]},) and dtype torch.int64, got"
                f" {tuple(class_labels.shape)} and {class_labels.dtype}; give a whole number for each image."
            )
        augmented = None if augment_labels is None else tuple(augment_labels.shape)
        if augmented not in (None, (sample.shape[0], self.config.augment_dim)) or (augmented and not self.config.augment_dim):
            raise ValueError(
                f"augment_labels: expected shape ({sample.shape[0]}, {self.config.augment_dim}), with augment_dim above 0, got"
                f" {augmented}; leave them out, or make a network with that augment_dim."
            )
        # Only on the CPU: reading values back stalls an accelerator at each step and breaks a compiled graph. The data set and
        # the pipeline have checked those labels before they were moved.
        if class_labels.device.type == "cpu" and not torch.compiler.is_compiling() and class_labels.numel():
            low, high = class_labels.min().item(), class_labels.max().item()
            if low < 0 or high > null_label:
                raise ValueError(
                    f"class_labels: expected values from 0 to {null_label - 1}, or {null_label} for the null label, got"
                    f" {low if low < 0 else high}; check the labels against the model's num_classes={null_label}."
                )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        augment_labels: torch.Tensor | None = None,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's `prediction_type` names, from a noisy image, its timestep and its class.

        Args:
            sample: (B, in_channels, sample_size, sample_size), the noisy image, with a variance of about 1.
            timestep: in [0, num_train_timesteps); one for all images (a number or a 0-d tensor), or one for each, (B,).
            class_labels: (B,) int64 in [0, num_classes]; `num_classes` is the null label, for an unconditional prediction.
            return_dict: False for a plain tuple.
            augment_labels: (B, augment_dim), how the images that `sample` was made of were changed, in training; None, as for
                sampling, is the same as zeros: they were not.

        Returns:
            `UNet2DOutput` whose `sample` is (B, out_channels, sample_size, sample_size).

        Raises:
            ValueError: another shape, dtype or label.
        """
        self._check_inputs(sample, class_labels, augment_labels)
        batch, patch = sample.shape[0], self.config.patch_size
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.shape not in (torch.Size([]), torch.Size([1]), torch.Size([batch])):
            raise ValueError(
                f"timestep: expected one number, or a tensor of shape ({batch},), got shape {tuple(timestep.shape)};"
                " give one timestep for all images, or one for each."
            )

        # Sinusoids of the timestep go through an MLP (DDPM, Ho 2020, app. B); the embedding of the class is added.
        embedding = self.time_embedding(self.time_proj(timestep.expand(batch)).to(self.dtype))  # (B, pos_dim)
        embedding = embedding + self.class_embedding(class_labels).to(embedding.dtype)
        if augment_labels is not None and self.augment_embedding is not None:
            embedding = embedding + self.augment_embedding(augment_labels.to(self.dtype)).to(embedding.dtype)
        embedding = F.silu(embedding)

        patches = F.pixel_unshuffle(sample, patch)  # (B, in_channels * patch^2, S / patch, S / patch)
        prediction = F.pixel_shuffle(self._predict(patches, embedding, class_labels), patch)  # (B, out_channels, S, S)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


class _UNet(_CondUNet2DModel):
    """The two networks of the study; they differ in `attention_resolutions`."""

    def _build(self, attention_resolutions: tuple[int, ...] | None, attention_head_dim: int = 64) -> None:
        config = self.config
        self._check_config()
        channels, pos_dim, patch = config.block_out_channels, config.pos_dim, config.patch_size
        if attention_resolutions is None:
            attention_resolutions = tuple(config.sample_size // (patch * 2**level) for level in range(1, len(channels)))
        resolutions = [config.sample_size // (patch * 2**level) for level in range(len(channels))]
        unknown = [r for r in attention_resolutions if r not in resolutions]
        if unknown:
            raise ValueError(
                f"attention_resolutions: expected sizes among this network's feature maps {resolutions}, got {unknown};"
                " omit it for attention at every size but the outermost."
            )

        def block(in_channels: int, out_channels: int, resolution: int | None = None) -> _ResidualBlock:
            head_dim = attention_head_dim if resolution in attention_resolutions else None
            return _ResidualBlock(in_channels, out_channels, pos_dim, config.dropout, head_dim)

        self._build_embedding()
        self.conv_in = nn.Conv2d(config.in_channels * patch**2, channels[0], 3, padding=1)
        width, skips = channels[0], [channels[0]]
        self.down_stages = nn.ModuleList()
        for level, (out, resolution) in enumerate(zip(channels, resolutions)):
            blocks = [block(width if i == 0 else out, out, resolution) for i in range(config.layers_per_block)]
            last = level == len(channels) - 1
            self.down_stages.append(_Stage(blocks, None if last else nn.Conv2d(out, out, 3, stride=2, padding=1)))
            width, skips = out, skips + [out] * (config.layers_per_block + (not last))

        # Attention over the whole image costs least at the innermost resolution; where that has it, so has the middle.
        self.mid_blocks = nn.ModuleList([block(width, width, resolutions[-1]), block(width, width)])

        self.up_stages = nn.ModuleList()
        for level, (out, resolution) in reversed(list(enumerate(zip(channels, resolutions)))):
            blocks = []
            for _ in range(config.layers_per_block + 1):
                blocks.append(block(width + skips.pop(), out, resolution))
                width = out
            self.up_stages.append(_Stage(blocks, None if level == 0 else nn.Conv2d(out, out, 3, padding=1)))

        self.norm_out = _group_norm(width)
        self.conv_out = nn.Conv2d(width, config.out_channels * patch**2, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Residual branches and the output start at zero, so that at first each block passes its input on unchanged."""
        for module in self.modules():
            if isinstance(module, _ResidualBlock):
                _set_to_zero(module.conv2)
            elif isinstance(module, _SelfAttention):
                _set_to_zero(module.to_out)
        _set_to_zero(self.conv_out)

    def _predict(self, patches: torch.Tensor, embedding: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(patches)  # (B, C0, S / patch, S / patch)
        skips = [hidden]
        for stage in self.down_stages:
            assert isinstance(stage, _Stage)
            for block in stage.blocks:
                hidden = block(hidden, embedding)
                skips.append(hidden)
            if stage.resample is not None:
                hidden = stage.resample(hidden)  # half the size
                skips.append(hidden)
        for block in self.mid_blocks:
            hidden = block(hidden, embedding)
        for stage in self.up_stages:
            assert isinstance(stage, _Stage)
            for block in stage.blocks:
                hidden = block(torch.cat([hidden, skips.pop()], dim=1), embedding)
            if stage.resample is not None:
                hidden = stage.resample(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))  # twice the size
        return self.conv_out(F.silu(self.norm_out(hidden)))


class SimpleUNet2DModel(_UNet):
    """The study's simple UNet: residual blocks, down- and up-sampling and skip connections, without attention.

    It is conditioned on timestep and class: the sum of their embeddings scales and shifts a GroupNorm of each residual block.

    Args:
        sample_size: height and width of the images, in pixels; a multiple of `patch_size * 2 ** (levels - 1)`.
        in_channels: channels of the images.
        out_channels: channels of the prediction; more than `in_channels` only for a scheduler with learned variance.
        num_classes: number of classes; label `num_classes` is the null label, so the embedding has one more row.
        block_out_channels: channels at each resolution, the outermost first; each further one halves the size.
        layers_per_block: residual blocks at each resolution on the way down; there is one more on the way up.
        pos_dim: width of the timestep and class embeddings, a multiple of 8.
        dropout: probability in [0, 1), inside the residual blocks.
        patch_size: side of the patches of pixels that the network works on. The study used 1; 2 costs a quarter as much.
        augment_dim: numbers that tell the network how a training image was changed; 0 if images are not changed.

    Raises:
        ValueError: an argument out of range, or a `sample_size` that cannot be halved that many times.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (64, 128, 128),
        layers_per_block: int = 2,
        pos_dim: int = 1024,
        dropout: float = 0.0,
        patch_size: int = 1,
        augment_dim: int = 0,
    ):
        super().__init__()
        self._build(attention_resolutions=())


class AttentionUNet2DModel(_UNet):
    """The study's attention UNet: the simple UNet with self-attention after each residual block of the inner resolutions.

    Args:
        sample_size, in_channels, out_channels, num_classes, dropout, patch_size: as for `SimpleUNet2DModel`.
        block_out_channels, layers_per_block, pos_dim: as for `SimpleUNet2DModel`.
        attention_resolutions: sizes of the feature maps with attention, such as (16, 8), counted in patches; None for all but
            the outermost.
        attention_head_dim: channels of each head. 64 makes the matrix products large enough to be fast.
        augment_dim: as for `SimpleUNet2DModel`.

    Raises:
        ValueError: as for `SimpleUNet2DModel`; a resolution that the network does not have; a number of channels that is not
            a multiple of `attention_head_dim`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (64, 128, 128),
        layers_per_block: int = 2,
        pos_dim: int = 1024,
        dropout: float = 0.0,
        patch_size: int = 1,
        attention_resolutions: tuple[int, ...] | None = None,
        attention_head_dim: int = 64,
        augment_dim: int = 0,
    ):
        super().__init__()
        self._build(attention_resolutions, attention_head_dim)


class HybridUNet2DModel(_CondUNet2DModel):
    """Convolutions at the higher resolution and a transformer at the lower one: the best quality per training FLOP.

    Pixel-unshuffle, residual blocks at half the size of the images, transformer blocks at a quarter of it, and back again
    with a skip connection. The embedding of timestep and class scales and shifts every block, and gates the transformer's.

    Args:
        sample_size, in_channels, out_channels, num_classes, dropout: as for `SimpleUNet2DModel`.
        size: a row of `SIZES`, which has the values of the next four arguments where they are None.
        block_out_channels: channels of the residual blocks, and of the transformer.
        layers_per_block: residual blocks on the way down; there are as many on the way up.
        transformer_layers: number of transformer blocks.
        pos_dim: width of the timestep and class embeddings, a multiple of 8.
        attention_head_dim: channels of each head.
        mlp_ratio: hidden channels of the transformer's MLPs, as a multiple of its own.
        activation: of those MLPs.
        num_class_tokens: learned tokens of each class, which the transformer reads beside those of the image; 0 for none.
        patch_size, augment_dim: as for `SimpleUNet2DModel`.

    Raises:
        ValueError: an argument out of range, or a `sample_size` that cannot be halved that many times.
    """

    # Their parameters and GFLOP at 32x32x3 are in tests/test_cond_unet.py.
    SIZES: ClassVar[dict[str, dict]] = {
        "tiny": {"block_out_channels": (16, 64), "layers_per_block": 1, "transformer_layers": 2, "pos_dim": 64},
        "xs": {"block_out_channels": (32, 128), "layers_per_block": 1, "transformer_layers": 4, "pos_dim": 128},
        "s": {"block_out_channels": (64, 256), "layers_per_block": 1, "transformer_layers": 6, "pos_dim": 256},
        "m": {"block_out_channels": (128, 512), "layers_per_block": 2, "transformer_layers": 8, "pos_dim": 512},
        "l": {"block_out_channels": (192, 768), "layers_per_block": 2, "transformer_layers": 12, "pos_dim": 768},
    }

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int = 10,
        size: Literal["tiny", "xs", "s", "m", "l"] = "s",
        block_out_channels: tuple[int, int] | None = None,
        layers_per_block: int | None = None,
        transformer_layers: int | None = None,
        pos_dim: int | None = None,
        attention_head_dim: int = 64,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        patch_size: int = 2,
        activation: Literal["silu", "squared_relu"] = "silu",
        num_class_tokens: int = 0,
        augment_dim: int = 0,
    ):
        super().__init__()
        if size not in self.SIZES:
            raise ValueError(f"size: expected one of {', '.join(self.SIZES)}, got {size!r}.")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
        if num_class_tokens < 0:
            raise ValueError(f"num_class_tokens: expected 0 or a positive whole number, got {num_class_tokens}.")
        # The config holds these values, so that a published network is not affected by later changes to the table.
        self.register_to_config(**{k: v for k, v in self.SIZES[size].items() if getattr(self.config, k) is None})
        config = self.config
        self._check_config()
        if len(config.block_out_channels) != 2:
            raise ValueError(f"block_out_channels: expected two numbers of channels, got {config.block_out_channels}.")
        channels, width = config.block_out_channels
        self._build_embedding()

        def residual_blocks() -> nn.ModuleList:
            blocks = (_ResidualBlock(channels, channels, config.pos_dim, dropout) for _ in range(config.layers_per_block))
            return nn.ModuleList(blocks)

        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.down_blocks = residual_blocks()
        self.down = nn.Linear(4 * channels, width)
        self.positions = nn.Parameter(torch.zeros((sample_size // (2 * patch_size)) ** 2, width))
        # MPDiT (2026) and JiT (Li 2025): a class is told to the transformer by tokens too, not by scales and shifts only.
        self.class_tokens = nn.Embedding(num_classes + 1, num_class_tokens * width) if num_class_tokens else None
        self.transformer_blocks = nn.ModuleList(
            _TransformerBlock(width, attention_head_dim, mlp_ratio, config.pos_dim, dropout, activation)
            for _ in range(config.transformer_layers)
        )
        self.up = nn.Linear(width, 4 * channels)
        self.up_blocks = residual_blocks()
        self.norm_out = _group_norm(channels)
        self.conv_out = nn.Conv2d(channels, out_channels * patch_size**2, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Gates, residual branches and the output start at zero, so that at first each block passes its input on unchanged."""
        for module in self.modules():
            if isinstance(module, _ResidualBlock):
                _set_to_zero(module.conv2)
            elif isinstance(module, _TransformerBlock):
                _set_to_zero(module.to_film)
        _set_to_zero(self.conv_out)
        nn.init.normal_(self.positions, std=0.02)
        if self.class_tokens is not None:
            nn.init.normal_(self.class_tokens.weight, std=0.02)

    def _predict(self, patches: torch.Tensor, embedding: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(patches)  # (B, channels, S / patch, S / patch)
        for block in self.down_blocks:
            hidden = block(hidden, embedding)
        skip, size = hidden, hidden.shape[2] // 2
        tokens = self.down(F.pixel_unshuffle(hidden, 2).flatten(2).transpose(1, 2))  # (B, HW, width)
        tokens = tokens + self.positions.to(tokens.dtype)
        num_patches = tokens.shape[1]
        if self.class_tokens is not None:
            of_class = self.class_tokens(class_labels).unflatten(1, (self.config.num_class_tokens, -1))  # (B, n, width)
            tokens = torch.cat([tokens, of_class.to(tokens.dtype)], dim=1)
        for block in self.transformer_blocks:
            tokens = block(tokens, embedding)
        tokens = tokens[:, :num_patches]
        hidden = self.up(tokens).transpose(1, 2).unflatten(2, (size, size))  # (B, 4 channels, H, W)
        hidden = skip + F.pixel_shuffle(hidden, 2)
        for block in self.up_blocks:
            hidden = block(hidden, embedding)
        return self.conv_out(F.silu(self.norm_out(hidden)))
