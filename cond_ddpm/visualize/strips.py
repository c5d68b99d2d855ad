"""Noising and denoising, step by step.

May import: `hardware, sampling, visualize.grids`, the pipeline. Nothing is next.
"""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from cond_ddpm.hardware import eager_if_not_compiled
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.sampling import autocast
from cond_ddpm.visualize.grids import class_grid, to_pixels


def forward_strip(
    image,
    scheduler: DDPMScheduler,
    path: str | Path,
    title: str | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """A real image with more and more of the same noise, and the signal-to-noise ratio below each.

    Args:
        image: (C, H, W) uint8.
        scheduler: any scheduler with the model's betas.
        path: of the PNG.
        title: above the strip.
        timesteps: by default nine from the first to the last, closer together at the beginning.
        seed: of the noise.
    """
    last = scheduler.config.num_train_timesteps - 1
    steps = torch.tensor(timesteps or sorted({round(last * (i / 8) ** 1.5) for i in range(9)}))
    clean = torch.tensor(image).float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).expand(len(steps), *clean.shape)
    noising = DDPMScheduler.from_config(scheduler.config)
    noisy = noising.add_noise(clean.expand_as(noise), noise, steps)
    ratios = compute_snr(noising, steps).tolist()
    captions = [f"t = {t}\nSNR {_two_digits(snr)}" for t, snr in zip(steps.tolist(), ratios)]
    class_grid(to_pixels(noisy), ["x_t"], path, title, captions=captions, inches=0.8)


def _two_digits(number: float) -> str:
    """Two significant digits without an exponent: 9999, 5.7, 0.18, 0.00004."""
    digits = max(0, 1 - math.floor(math.log10(number))) if 0 < number < 10 else 0
    return f"{number:.{digits}f}"


def denoising_strip(
    pipeline: CondDDPMPipeline, class_label: int | str, path: str | Path, columns: int = 9, seed: int = 0, **arguments
) -> None:
    """How noise becomes an image of a class: x_t above, and the x_0 predicted from it below.

    Args:
        pipeline: the model.
        class_label: id or name.
        path: of the PNG.
        columns: number of steps shown, evenly spaced from the first to the last.
        seed: of the image.
        arguments: passed on to the pipeline.
    """
    output = _sampled(pipeline, columns, arguments, [class_label], seeds=[seed])
    strips = torch.cat([output.intermediate_samples[:, 0], output.intermediate_predictions[:, 0]])
    names = [f"t = {t:g}" for t in output.intermediate_timesteps.tolist()]
    title = f"{pipeline.class_name(*pipeline.label_ids(class_label))}, seed {seed}"
    class_grid(to_pixels(strips), ["x_t", "predicted x_0"], path, title, column_names=names, inches=0.8)


def denoising_gif(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    columns: int = 4,
    frames: int = 20,
    seed: int = 0,
    **arguments,
) -> None:
    """An animation of noise becoming images of several classes; the last frame is shown for two seconds.

    Args:
        pipeline: the model.
        class_labels: ids or names, one for each row.
        path: of the GIF.
        columns: images of each class.
        frames: number of steps shown, evenly spaced from the first to the last, or all of them if there are fewer.
        seed: of the first image.
        arguments: passed on to the pipeline.
    """
    from PIL import Image

    labels = pipeline.label_ids(class_labels)
    seeds = list(range(seed, seed + len(labels) * columns))
    output = _sampled(pipeline, frames, arguments, labels, num_images_per_label=columns, seeds=seeds)
    final = (output.images * 255).round().to(torch.uint8).cpu().numpy()
    states = [*map(to_pixels, output.intermediate_samples), final]
    titles = [*(f"t = {t:g}" for t in output.intermediate_timesteps.tolist()), "done"]
    pictures: list[Image.Image] = []
    for state, title in zip(states, titles):
        file = io.BytesIO()
        class_grid(state, [pipeline.class_name(label) for label in labels], file, title)
        picture = Image.open(file).convert("RGB")
        pictures.append(picture.resize(pictures[0].size if pictures else (picture.width // 2, picture.height // 2)))
    durations = [100] * (len(pictures) - 1) + [2000]
    # All frames share one palette, made from the first and the last, so that colours do not flicker.
    both = Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[-1], (0, pictures[0].height))
    palette = both.quantize(255)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)


def _sampled(pipeline: CondDDPMPipeline, most: int, arguments: dict, labels: list, **named):
    """The pipeline's output with at most `most` intermediate states."""
    arguments = {"mixed_precision": "no", **arguments}
    precision = arguments.pop("mixed_precision")
    scheduler = pipeline.make_scheduler(arguments.get("sampler"))
    steps = arguments.get("num_inference_steps") or pipeline.default_steps(scheduler)
    with autocast(precision, pipeline.device):
        draw = functools.partial(pipeline, labels, return_intermediates=min(most, steps), output_type="pt")
        return eager_if_not_compiled(lambda: draw(**named, **arguments))
