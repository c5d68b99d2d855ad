"""`--minutes`: one dial, by which everything that the user leaves open is chosen. The rule is `plan`, a pure function.

May import: `config, data, processes`, and `training.network` and `training.optimizer`. Next in the data flow: the settings of
the run, which the checkpoints keep, so that a resumed run does not choose again.

The rule:
- Network: the largest hybrid UNet that sees at least 20 images for each 1,000 of its parameters in the time. The presets do:
  an hour of CIFAR-10 shows 38 to each 1,000, the quickstart 21. How many it sees is measured, by a few steps.
- Patches: 2 pixels wide at 32 pixels, 4 at 64, so that larger images do not take longer.
- Batch: 64 images; 256 on a GPU, which small batches leave idle, and for the sizes m and l; never more than there are images.
- Steps: as many as 85% of the time is enough for, the rest is for validation and samples. But no image is seen more than
  1,000 times, since a network that has learned its images by heart only copies them. The time itself is the hard stop.
- Learning rate: 3e-3, or 6e-4 for the sizes m and l. It warms up over 5% of the steps, 500 at most, and decays to zero over
  the second half of the run. The width of the averaged weights is a share of the run, and needs no choice.
- Augmentation and dropout: where each image is seen more than 30 times.
- Validation 30 times, or after each pass over the images, whichever is less often. Samples are drawn at most 8 times, and
  cost at most 5% of the training, except those at the end.
- Guidance 2, for the samples and as the pipeline's default.
"""

import dataclasses
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.settings import unless_chosen
from cond_ddpm.processes import NotEnoughMemory, memory_for, on_main
from cond_ddpm.training.network import make_unet
from cond_ddpm.training.optimizer import make_optimizer

DEFAULT_MINUTES = 30.0
LENGTHS = ("num_epochs", "max_train_steps", "max_train_minutes")


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the hybrid UNet: its parameters in millions, for a batch and a learning rate."""

    parameters: float
    batch_size: int
    learning_rate: float


SIZES = {
    "tiny": Size(0.18, 64, 3e-3),
    "xs": Size(1.3, 64, 3e-3),
    "s": Size(7.6, 64, 3e-3),
    "m": Size(40, 256, 6e-4),
    "l": Size(133, 256, 6e-4),
}
# Options of the network that say how large it is.
_OF_SIZE = {"size", "block_out_channels", "layers_per_block", "transformer_layers", "pos_dim"}
_IMAGES_FOR_1000_PARAMETERS = 20
_SHARE_OF_TIME = 0.85
_GPU_BATCH = 256
_MOST_PASSES = 1000
_MANY_PASSES, _AUGMENTATION_PROB, _DROPOUT = 30, 0.2, 0.1
_VALIDATIONS, _PREVIEWS, _SHARE_OF_PREVIEWS = 30, 8, 0.05
_GUIDANCE = 2.0
_TIMED_STEPS = 4


def uses_minutes(config: TrainConfig) -> bool:
    """Whether the settings leave the length of the run to `minutes`."""
    return config.minutes is not None or all(getattr(config, name) is None for name in LENGTHS)


def plan(
    config: TrainConfig,
    num_images: int,
    num_classes: int,
    speed: Callable[[TrainConfig], float | None],
    is_gpu: bool = False,
    parts: int = 1,
) -> tuple[TrainConfig, list[str]]:
    """The settings with everything chosen that was left open, and what was chosen, in words.

    Args:
        config: the settings, with the data's resolution.
        num_images: how many there are to train on.
        num_classes: of the data.
        speed: the images per second of a training with these settings; None if they do not fit into the memory.
        is_gpu: whether it runs on one.
        parts: of which the batch has to be a multiple.

    Raises:
        ValueError: fewer images than a batch that was asked for, or than parts.
    """
    if num_images < max(parts, config.batch_size or 1):
        raise ValueError(
            f"batch_size: expected at most the {num_images} training images, got {config.batch_size or parts}; give"
            f" {num_images // parts * parts or 'fewer processes'}, or add images."
        )
    if not uses_minutes(config):
        otherwise = unless_chosen(TrainConfig)
        batch = min(otherwise["batch_size"], num_images) // parts * parts
        notes = [f"batch of {batch}: there are only {num_images} training images"]
        config = _with(config, {**otherwise, "batch_size": config.batch_size or batch})
        return config, notes if config.batch_size == batch < otherwise["batch_size"] else []

    minutes = DEFAULT_MINUTES if config.minutes is None else config.minutes
    config = _with(config, {"minutes": minutes, "max_train_minutes": minutes})
    options = dict(config.unet)
    if config.model == "hybrid" and config.init_from is None and "patch_size" not in options:
        options["patch_size"] = _patch_size(config.resolution or 32)

    def candidate(name: str | None) -> TrainConfig:
        size = SIZES["s" if name is None else name]
        batch = max(size.batch_size, _GPU_BATCH if is_gpu else 0)
        found = {"batch_size": min(batch, num_images) // parts * parts, "learning_rate": size.learning_rate}
        unet = options if name is None else {**options, "size": name}
        return dataclasses.replace(_with(config, found), unet=unet)

    is_open = config.model == "hybrid" and config.init_from is None and not _OF_SIZE & options.keys()
    seconds, why = minutes * 60 * _SHARE_OF_TIME, "as given"
    first, *larger = SIZES if is_open else [None]
    chosen = candidate(first)
    images_per_second = speed(chosen)
    if images_per_second is None:
        raise NotEnoughMemory(
            f"out of memory: a step of {chosen.batch_size} images of {config.resolution} pixels does not fit; lower"
            " --batch_size, --resolution or the size of the network (--unet.size)."
        )
    for smaller, name in itertools.pairwise([first, *larger]):
        enough = _IMAGES_FOR_1000_PARAMETERS * SIZES[name].parameters * 1000
        why = f"{name} would see fewer than the {enough:,.0f} images that it needs"
        # A step that is out of reach is not measured: at best, a network uses the machine 8 times as well as a smaller one.
        if 8 * images_per_second * SIZES[smaller].parameters / SIZES[name].parameters * seconds < enough:
            break
        tried = candidate(name)
        rate = speed(tried)
        if rate is None or rate * seconds < enough:
            why = f"{name} needs more memory than there is" if rate is None else why
            break
        chosen, images_per_second, why = tried, rate, "the largest"

    steps_of_time = int(min(seconds * images_per_second, _MOST_PASSES * num_images) / chosen.batch_size)
    steps = chosen.max_train_steps or max(1, steps_of_time)
    passes = steps * chosen.batch_size / num_images
    many = passes > _MANY_PASSES
    validation_epochs = max(1, math.ceil(passes / _VALIDATIONS))
    guided = config.class_dropout_prob > 0 and config.model_guidance_scale == 1
    guidance = config.guidance_scale if config.guidance_scale is not None else _GUIDANCE if guided else 1.0
    forwards = num_classes * config.num_images_per_class * config.num_inference_steps * (1 if guidance == 1 else 2)
    previews = min(_PREVIEWS, int(_SHARE_OF_PREVIEWS * 3 * steps * chosen.batch_size / forwards))
    values = {
        "max_train_steps": steps,
        "lr_warmup_steps": min(500, math.ceil(steps / 20)),
        "augmentation_prob": _AUGMENTATION_PROB if many else 0.0,
        "validation_epochs": validation_epochs,
        "save_images_epochs": math.ceil(passes / validation_epochs / max(previews, 1)) or 1,
        "guidance_scale": guidance,
    }
    unet = {"dropout": _DROPOUT, **chosen.unet} if many and config.init_from is None else chosen.unet
    whole = {**unless_chosen(TrainConfig), **values}
    chosen = dataclasses.replace(_with(chosen, whole), unet=unet)
    network = (
        ", ".join(f"{name} {value}" for name, value in chosen.unet.items()) if config.init_from is None else "the base model's"
    )
    notes = [
        f"minutes: {minutes:g}, after which the training stops at the latest (--minutes)",
        f"network: {chosen.model}, {network}: {why} (--unet.size)",
        f"steps: {chosen.max_train_steps:,} of {chosen.batch_size} images, which show each image {passes:.3g} times; a few"
        f" steps here took {images_per_second:.0f} images/s (--max_train_steps, --batch_size)",
        f"learning rate: {chosen.learning_rate:g}, after {chosen.lr_warmup_steps} steps of warm-up (--learning_rate)",
        f"augmentation: {chosen.augmentation_prob:g} of the images for each change, of which the network is told"
        " (--augmentation_prob)",
        f"validation: after every {chosen.validation_epochs} passes over the images (--validation_epochs); samples after every"
        f" {chosen.save_images_epochs} of these (--save_images_epochs)",
        f"guidance: {chosen.guidance_scale:g} (--guidance_scale)",
    ]
    return chosen, notes


def _with(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The settings, with these values where they leave them open."""
    return dataclasses.replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})


def _patch_size(resolution: int) -> int:
    """A power of two, 2 at 32 pixels and less; halved until the network can halve the images."""
    patch = 2 ** max(1, int(math.log2(resolution / 16)))
    while patch > 1 and resolution % (2 * patch):
        patch //= 2
    return patch


def chosen_here(
    config: TrainConfig, accelerator: Accelerator, image_shape: tuple[int, int, int], num_images: int, num_classes: int
) -> tuple[TrainConfig, list[str]]:
    """`plan` for this machine, whose speed is measured by the main process."""

    def speed(candidate: TrainConfig) -> float | None:
        return measured_speed(candidate, accelerator, image_shape, num_classes)

    parts = accelerator.num_processes * config.gradient_accumulation_steps
    is_gpu = accelerator.device.type != "cpu"
    return on_main(accelerator, lambda: plan(config, num_images, num_classes, speed, is_gpu, parts))


def measured_speed(
    config: TrainConfig, accelerator: Accelerator, image_shape: tuple[int, int, int], num_classes: int
) -> float | None:
    """Images per second of a training with these settings on this machine, by a few steps with noise in place of images.

    Args:
        config: the settings, with the network and the batch.
        accelerator: of the run; all its processes are taken to be equally fast.
        image_shape: (C, H, W).
        num_classes: of the data.

    Returns:
        None if a step does not fit into the memory.
    """
    device = accelerator.device
    size = config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps
    unet = optimizer = None
    try:
        with memory_for(device, "a step", "--minutes chooses a smaller network"):
            unet = make_unet(config, image_shape, num_classes).to(device).train()
            optimizer = make_optimizer(config, unet)
            sample, labels = (
                torch.zeros(size, *image_shape, device=device),
                torch.zeros(size, dtype=torch.int64, device=device),
            )
            taken = []
            for _ in range(1 + _TIMED_STEPS):  # the first one allocates
                started = time.perf_counter()
                for _ in range(config.gradient_accumulation_steps):
                    with accelerator.autocast():
                        loss = unet(sample, 0, labels).sample.float().square().mean()
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                loss.item()  # waits for the device
                taken.append(time.perf_counter() - started)
            return config.batch_size / statistics.median(taken[1:])
    except MemoryError:
        return None


def with_precision(config: TrainConfig, recorded: dict[str, Any] | None) -> TrainConfig:
    """The settings with bfloat16 where it is open, `minutes` chooses, and this machine multiplies in it 1.2 times as fast.

    Args:
        config: the settings.
        recorded: those of the checkpoint from which the run resumes, whose precision is kept.
    """
    if config.mixed_precision is not None or "ACCELERATE_MIXED_PRECISION" in os.environ:
        return config
    if recorded is not None:
        return dataclasses.replace(config, mixed_precision=recorded["mixed_precision"]) if recorded.get("minutes") else config
    if not uses_minutes(config):
        return config
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    single, half = (_seconds_of_a_product(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return dataclasses.replace(config, mixed_precision="bf16" if 1.2 * half < single else "no")


def _seconds_of_a_product(device: torch.device | None, dtype: torch.dtype) -> float:
    left, right = torch.ones(4096, 512, dtype=dtype, device=device), torch.ones(512, 512, dtype=dtype, device=device)
    taken = []
    for _ in range(1 + _TIMED_STEPS):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        taken.append(time.perf_counter() - started)
    return min(taken)
