"""`--minutes`: one dial, by which all that the user leaves open is chosen. This is the rule; `speed.py` measures for it.

May import: `config, models`. Next in the data flow: the settings of the run, which its checkpoints keep, so that a resumed run
does not choose again.

- Network: the largest hybrid UNet, xs or larger, that sees at least 4 images for each 1,000 of its parameters in the time. An
  hour of CIFAR-10 shows 38 to each 1,000, the quickstart 21. How many it sees is measured, by a few steps. The size tiny is
  not chosen: in six minutes of one busy core it came to twice the validation loss of xs (docs/LOG.md, 2026-11-28).
- Squared ReLU in its transformer: it costs nothing and lowers the loss by 1.5% on all of CIFAR-10, and by 2% on 200 pictures
  of each class (docs/LOG.md, 2026-11-28).
- Patches: 1 pixel wide at 16 pixels, 2 at 32, 4 at 64, so that larger images do not take longer. But a patch never has more
  values than the residual blocks have channels: of 48 values (4x4 pixels in RGB), 32 channels can predict the noise of 32 at
  most, and grain stays in each sample. So xs gets 48 channels there, and no patch is chosen of more than the 64 channels of
  the size s.
- Batch: 64 images, or 256 on a GPU, which small batches leave idle, and for the sizes m and l. It is halved, down to 16, where
  there would be fewer than 500 steps, and never larger than the number of images.
- Steps: as many as 85% of the time is enough for; the rest is for validation and samples. But no image is seen more than 1,000
  times, since a network that has learned its images by heart only copies them. The time itself is the hard stop.
- Learning rate: 3e-3, or 6e-4 for the sizes m and l; with a base model a third of it (not searched). It warms up over 5% of
  the steps, 500 at most, and decays to zero over the second half of the run. The width of the averaged weights is a share of
  the run, and needs no choice.
- Augmentation and dropout: where each image is seen more than 300 times; with a base model augmentation from 50 times on, and
  no dropout. From scratch, 170 images were learned by heart after about 300 times; a network that can draw already did so
  after 17 to 87, before it knew the new classes (docs/LOG.md, 2026-11-28, "small data").
- Validation 30 times, or after each pass over the images, whichever is less often. Samples are drawn at most 8 times, and
  cost at most 5% of the training, except those at the end.
- Guidance 2, for the samples and as the pipeline's default.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.settings import unless_chosen
from cond_ddpm.models import HybridUNet2DModel

DEFAULT_MINUTES = 30.0
LENGTHS = ("num_epochs", "max_train_steps", "max_train_minutes")


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the hybrid UNet: its parameters in millions, with a batch and a learning rate."""

    parameters: float
    batch_size: int
    learning_rate: float

    @property
    def images(self) -> float:
        """How many it should see at least."""
        return _IMAGES_FOR_1000_PARAMETERS * self.parameters * 1000


SIZES = {
    "xs": Size(1.3, 64, 3e-3),
    "s": Size(7.6, 64, 3e-3),
    "m": Size(40, 256, 6e-4),
    "l": Size(133, 256, 6e-4),
}
# Options of the network that say how large it is.
_OF_SIZE = {"size", "block_out_channels", "layers_per_block", "transformer_layers", "pos_dim"}
_IMAGES_FOR_1000_PARAMETERS = 4
_SHARE_OF_TIME = 0.85
_GPU_BATCH, _LEAST_BATCH, _ENOUGH_STEPS = 256, 16, 500
_MOST_PASSES = 1000
_MANY_PASSES, _MANY_PASSES_FROM_BASE, _AUGMENTATION_PROB, _DROPOUT = 300, 50, 0.2, 0.1
_VALIDATIONS, _PREVIEWS, _SHARE_OF_PREVIEWS = 30, 8, 0.05
_GUIDANCE = 2.0
_MOST_VALUES = 64  # of a patch: as many as the size s has channels
_RATE_FROM_BASE = 1 / 3


def uses_minutes(config: TrainConfig) -> bool:
    """Whether the settings leave the length of the run to `minutes`."""
    return config.minutes is not None or all(map(config.is_open, LENGTHS))


def plan(
    config: TrainConfig,
    num_images: int,
    num_classes: int,
    speed: Callable[[TrainConfig], float | None],
    is_gpu: bool = False,
    parts: int = 1,
    channels: int = 3,
) -> tuple[TrainConfig, list[str]]:
    """The settings with everything chosen that was left open, and what was chosen, in words.

    Args:
        config: the settings, with the data's resolution.
        num_images: how many there are to train on.
        num_classes: of the data.
        speed: the images per second of a training with these settings; None if they do not fit into the memory.
        is_gpu: whether it runs on one.
        parts: of which the batch has to be a multiple.
        channels: of the images.

    Raises:
        ValueError: fewer images than a batch that was asked for, or than parts.
        MemoryError: not even the smallest network fits into the memory.
    """
    if num_images < max(parts, config.batch_size or 1):
        raise ValueError(
            f"batch_size: expected at most the {num_images} training images, got {config.batch_size or parts}; give"
            f" --batch_size {num_images // parts * parts}, or add images."
            if num_images >= parts
            else f"processes: expected at most one for each of the {num_images} training images, got {parts}; start fewer."
        )
    if not uses_minutes(config):
        otherwise = unless_chosen(TrainConfig)
        batch = min(otherwise["batch_size"], num_images) // parts * parts
        is_smaller = config.is_open("batch_size") and batch < otherwise["batch_size"]
        notes = [f"batch: {batch} images, because there are {num_images} to train on (--batch_size)"] if is_smaller else []
        return config.with_open({**otherwise, "batch_size": batch}), notes

    minutes = DEFAULT_MINUTES if config.minutes is None else config.minutes
    seconds = minutes * 60 * _SHARE_OF_TIME
    network, images_per_second, why = _network(config, num_images, seconds, speed, is_gpu, parts, channels)
    images = _images_seen(images_per_second, seconds, num_images)
    batch = network.batch_size
    while (
        config.is_open("batch_size") and images / batch < _ENOUGH_STEPS and batch > _LEAST_BATCH and batch % (2 * parts) == 0
    ):
        batch //= 2
    steps = config.max_train_steps or max(1, int(images / batch))
    epochs = steps / (num_images // batch)  # of which each leaves out what does not fill a batch
    passes = steps * batch / num_images
    many = passes > (_MANY_PASSES if config.init_from is None else _MANY_PASSES_FROM_BASE)
    guided = config.class_dropout_prob > 0 and config.model_guidance_scale == 1
    guidance = config.with_open({"guidance_scale": _GUIDANCE if guided else 1.0}).guidance_scale
    steps_drawn = config.with_open(unless_chosen(TrainConfig)).num_inference_steps
    forwards = num_classes * config.num_images_per_class * steps_drawn * (1 if guidance == 1 else 2)
    previews = min(_PREVIEWS, max(1, int(_SHARE_OF_PREVIEWS * 3 * steps * batch / forwards)))  # backward costs two forwards
    validation_epochs = max(1, math.ceil(epochs / _VALIDATIONS))
    values = {
        **unless_chosen(TrainConfig),
        "minutes": minutes,
        "max_train_minutes": minutes,
        "max_train_steps": steps,
        "learning_rate": network.learning_rate,
        "lr_warmup_steps": min(500, math.ceil(steps / 20)),
        "augmentation_prob": _AUGMENTATION_PROB if many else 0.0,
        "validation_epochs": validation_epochs,
        "save_images_epochs": max(1, math.ceil(epochs / validation_epochs / previews)),
        "guidance_scale": guidance,
    }
    unet = {"dropout": _DROPOUT, **network.unet} if many and config.init_from is None else network.unet
    chosen = dataclasses.replace(config.with_open({**values, "batch_size": batch}), unet=unet)
    return chosen, _notes(chosen, why, images_per_second, passes)


def _images_seen(images_per_second: float, seconds: float, num_images: int) -> float:
    return min(seconds * images_per_second, _MOST_PASSES * num_images)


def _network(
    config: TrainConfig,
    num_images: int,
    seconds: float,
    speed: Callable[[TrainConfig], float | None],
    is_gpu: bool,
    parts: int,
    channels: int,
) -> tuple[TrainConfig, float, str]:
    """The settings with the largest network that sees enough images in that time, its images per second, and the reason."""
    is_own = config.model == "hybrid" and config.init_from is None
    given = config.unet.get("block_out_channels")
    patch = _patch_size(config.resolution or 32, channels, given[0] if given else _MOST_VALUES)
    options = {"patch_size": patch, "activation": "squared_relu", **config.unet} if is_own else config.unet

    def candidate(name: str) -> TrainConfig:
        size = SIZES.get(name, SIZES["xs"])
        batch = min(max(size.batch_size, _GPU_BATCH if is_gpu else 0), num_images) // parts * parts
        rate = size.learning_rate * (1 if config.init_from is None else _RATE_FROM_BASE)
        found = config.with_open({"batch_size": batch, "learning_rate": rate, "augmentation_prob": 0.0})
        if not is_own:
            return dataclasses.replace(found, unet=options)
        unet = {"size": name, **options} if is_open else dict(options)
        known = HybridUNet2DModel.SIZES  # another name is refused when the network is made
        first, *inner = known.get(name, known["s"])["block_out_channels"]
        if given is None and (values := channels * patch**2) > first and "patch_size" not in config.unet:
            unet["block_out_channels"] = [values, *inner]
        return dataclasses.replace(found, unet=unet)

    is_open = not _OF_SIZE & options.keys()
    first, *larger = SIZES if is_own and is_open else [str(options.get("size", "s"))]
    chosen = candidate(first)
    images_per_second = speed(chosen)
    if images_per_second is None:
        raise MemoryError(
            f"out of memory: a step of {chosen.batch_size} images of {config.resolution} pixels does not fit; lower"
            " --batch_size, --resolution or the size of the network (--unet.size)."
        )
    why = "as given"
    for smaller, name in itertools.pairwise([first, *larger]):
        size, why = SIZES[name], f"{name} would see fewer than the {SIZES[name].images:,.0f} images that it needs"
        # A step that is out of reach is not measured: a larger network uses the machine better, but not by more than this.
        most = (8 if is_gpu else 2) * images_per_second * SIZES[smaller].parameters / size.parameters
        if _images_seen(most, seconds, num_images) < size.images:
            break
        tried = candidate(name)
        rate = speed(tried)
        if rate is None or _images_seen(rate, seconds, num_images) < size.images:
            why = f"{name} needs more memory than there is" if rate is None else why
            break
        chosen, images_per_second, why = tried, rate, "the largest"
    return chosen, images_per_second, why


def _notes(config: TrainConfig, why: str, images_per_second: float, passes: float) -> list[str]:
    options = ", ".join(f"{name} {value}" for name, value in config.unet.items())
    return [
        f"minutes:     {config.minutes:g}, after which the training stops at the latest (--minutes)",
        f"network:     {config.model}, {options}: {why} (--unet.size)"
        if config.init_from is None
        else f"network:     {config.model}, as the base model's (--unet.NAME)",
        f"steps:       {config.max_train_steps:,} of {config.batch_size} images, each seen"
        f" {passes:,.{0 if passes >= 10 else 1}f} times; a few steps here took {images_per_second:.0f} images/s"
        " (--max_train_steps, --batch_size)",
        f"rate:        {config.learning_rate:.3g} after {config.lr_warmup_steps} steps of warm-up (--learning_rate)",
        f"augmented:   each change with a probability of {config.augmentation_prob:g} (--augmentation_prob)",
        f"validated:   after {_each(config.validation_epochs, 'pass', 'passes')} over the images (--validation_epochs), with"
        f" samples after {_each(config.save_images_epochs, 'validation', 'validations')} (--save_images_epochs)",
        f"guidance:    {config.guidance_scale:g} (--guidance_scale)",
    ]


def _each(number: int, one: str, several: str) -> str:
    return f"each {one}" if number == 1 else f"every {number} {several}"


def _patch_size(resolution: int, channels: int, most_values: int) -> int:
    """A power of two: 1 up to 16 pixels, 2 at 32; halved while its values are too many or the images cannot be halved."""
    patch = 2 ** max(int(resolution > 16), int(math.log2(resolution / 16)))
    while patch > 1 and (resolution % (2 * patch) or channels * patch**2 > most_values):
        patch //= 2
    return patch
