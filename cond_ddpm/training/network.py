"""The network of a run: new, or with the weights of a trained pipeline (`init_from`).

May import: `config, diffusion, models, pipelines, pretrained_models`. Next in the data flow: `state.py` trains it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin

from cond_ddpm.config import TrainConfig, checked_arguments
from cond_ddpm.diffusion import AUGMENT_DIM
from cond_ddpm.models import MODELS
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.pretrained_models import pretrained_pipelines

_BY_DATA = ("sample_size", "in_channels", "out_channels", "num_classes", "augment_dim")
# Tensors with a row for each class and one for the null label.
_OF_CLASSES = ("class_embedding.weight", "class_tokens.weight")


def make_unet(config: TrainConfig, image_shape: tuple[int, int, int], num_classes: int) -> ModelMixin:
    """The UNet that `config.model` and `config.unet` specify, for images (C, H, W) of that many classes."""
    class_ = MODELS[config.model]
    augment_dim = AUGMENT_DIM if config.augmentation_prob else 0
    by_data = dict(zip(_BY_DATA, (image_shape[1], image_shape[0], image_shape[0], num_classes, augment_dim)))
    return class_(**by_data, **checked_arguments(class_, config.unet, "unet", skip=set(by_data)))


def with_base(config: TrainConfig) -> TrainConfig:
    """The settings with what `init_from` decides: the network's options, and the images' size and channels, unless given.

    Raises:
        ValueError: there is no such model; it is of another kind, noise schedule or prediction type than the settings ask for.
    """
    if config.init_from is None:
        return config
    pipeline = _base(config.init_from)
    base, scheduler = pipeline.unet.config, pipeline.scheduler.config
    model: Any = next(name for name, class_ in MODELS.items() if isinstance(pipeline.unet, class_))
    if config.model not in (None, model):
        raise ValueError(f"model: expected {model}, the kind of {config.init_from}, got {config.model}; leave it out.")
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        if getattr(config, name) != scheduler.get(name):
            raise ValueError(
                f"{name}: expected {scheduler.get(name)}, with which {config.init_from} was trained, got"
                f" {getattr(config, name)}; give --{name} {scheduler.get(name)}."
            )
    resolution = config.resolution or base.sample_size
    options: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in base.items()
        if not name.startswith("_") and name not in _BY_DATA
    }
    if options.get("attention_resolutions"):  # in the same blocks, whatever the size of the images
        options["attention_resolutions"] = [size * resolution // base.sample_size for size in options["attention_resolutions"]]
    return dataclasses.replace(
        config,
        model=model,
        unet={**options, **config.unet},
        resolution=resolution,
        channels=config.channels or base.in_channels,
    )


def _base(init_from: str) -> CondDDPMPipeline:
    """A folder or a Hub id; or the name of a model that comes with the package, unless there is such a folder."""
    own = {} if Path(init_from).exists() else pretrained_pipelines()
    try:
        return CondDDPMPipeline.from_pretrained(own.get(init_from, init_from))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"init_from: expected a pipeline folder, such as RUN/pipeline, or a Hub id, got {init_from}: {error}"
        ) from None


def start_from_base(unet: ModelMixin, class_names: list[str], init_from: str) -> list[str]:
    """Load the weights of a trained pipeline as far as they fit.

    Classes of the same name keep their embedding. Another class begins with the null label's, as no class in particular. The
    positions of a transformer are interpolated to another size of images. A layer that is new, or of another shape, stays as
    it is.

    Returns:
        What was not taken over, in words, for the user.
    """
    pipeline = _base(init_from)
    base, own, notes = pipeline.unet.state_dict(), unet.state_dict(), []
    known = {name: label for label, name in (pipeline.id2label or {}).items()}
    null_label = pipeline.unet.config.num_classes
    rows = [known.get(name, null_label) for name in class_names] + [null_label]
    left = []
    for name, tensor in own.items():
        found = base.get(name)
        if found is not None and name in _OF_CLASSES:
            found = found[rows]
        if found is not None and name == "positions" and found.shape != tensor.shape:
            found = _interpolated(found, len(tensor)) if found.shape[1] == tensor.shape[1] else None
            notes.append("the transformer's positions are interpolated")
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
        else:
            left.append(name)
    new = [name for name in class_names if name not in known]
    if new:
        notes.append(
            f"{len(class_names) - len(new)} of {len(class_names)} classes are known; {', '.join(new[:10])} begin anew"
        )
    if left:
        notes.append(f"new layers: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if len(left) > 5 else ""))
    return notes


def _interpolated(positions: torch.Tensor, number: int) -> torch.Tensor:
    """Embeddings (N, width) of the places of a square, for a square of `number` places."""
    before, after = round(len(positions) ** 0.5), round(number**0.5)
    square = positions.T.reshape(1, -1, before, before)
    return F.interpolate(square, (after, after), mode="bicubic", align_corners=False).reshape(-1, number).T
