"""The panel that adds noise to a picture, real or uploaded, as training does: q(x_t | x_0), with the signal-to-noise ratio.

May import: `demo.{controls, limits, markup, studio, watch}`, gradio. `demo.app` puts it on the page.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import torch

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.controls import in_words, seed_field, start_and_stop
from cond_ddpm.demo.limits import Refusal, read_picture
from cond_ddpm.demo.studio import Step, Studio
from cond_ddpm.demo.watch import decibels

_MOMENTS = 41
_OWN = "a picture of mine"
_DRAWN = "a picture that the model draws"


def noise_panel(studio: Studio) -> None:
    sources = [*studio.real_pictures, _DRAWN, _OWN]

    @in_words(outputs=2)
    def add_noise(source: Any, file: str | None, seed: Any) -> Iterator[tuple]:
        (first,) = studio.seeds(seed, 1)
        if source == _OWN:
            if file is None:
                raise Refusal("picture: expected a file, got none; choose one, or take another picture above.")
            config = studio.config
            image = read_picture(Path(file), config.sample_size, config.in_channels, studio.limits)
        elif source == _DRAWN:
            label = studio.best_class()
            arguments = studio.arguments([label], [first], studio.default_steps, "", 1, 0, 0)
            for item in studio.draw(studio.models[0].name, **arguments):
                if isinstance(item, Step):
                    yield markup.progress(item.index, item.total, f"drawing a picture: step {item.index}"), gradio.skip()
            (image,) = markup.pixels(item.images)
        elif source in studio.real_pictures:
            image = studio.real_pictures[source]
        else:
            raise Refusal(f"picture: expected one of {', '.join(sources)}, got {str(source)[:40]}.")
        yield "", _noised(studio, image, first, str(source))

    with gradio.Row(elem_classes="panel"):
        with gradio.Column(scale=2, min_width=300):
            source = gradio.Radio(sources, value=sources[0], label="Picture", elem_classes="chips")
            megabytes, megapixels = studio.limits.upload_bytes / 1e6, studio.limits.upload_pixels / 1e6
            file = gradio.File(
                label="Your picture",
                file_types=[".png", ".jpg", ".jpeg", ".webp", ".bmp"],
                type="filepath",
                height=150,
                elem_id="upload",
            )
            gradio.Markdown(
                f"A PNG, JPEG, WebP or BMP file of at most {megabytes:g} MB and {megapixels:g} million pixels. Its middle is"
                " scaled to the size of the model. It is deleted within two hours.",
                elem_classes="lesson",
            )
            seed = seed_field()
            actions = gradio.Column()
        with gradio.Column(scale=3, min_width=300):
            status = gradio.HTML(elem_classes="status")
            empty = "No picture yet. Choose one, or upload your own, and press <b>Add noise</b>."
            film = gradio.HTML(markup.empty(empty), elem_id="noised", js_on_load=markup.FILM_SCRIPT)
            gradio.Markdown(
                "Training mixes each picture with noise, a different amount each time, and the network learns to find the"
                " picture again. At the last t almost nothing is left of it; that is where sampling begins.",
                elem_classes="lesson",
            )
        file.upload(lambda: _OWN, None, source, api_visibility="private", queue=False)
        inputs = [source, file, seed]
        with actions:
            start_and_stop("Add noise", add_noise, inputs, [status, film], status)


def _noised(studio: Studio, image: np.ndarray, seed: int, name: str) -> str:
    """x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise, always with the same noise, at evenly spaced t."""
    alphas_cumprod = studio.pipeline.scheduler.alphas_cumprod.cpu().double()
    timesteps = torch.linspace(0, len(alphas_cumprod) - 1, min(_MOMENTS, len(alphas_cumprod))).round().long()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    original = torch.from_numpy(image.copy()) / 127.5 - 1
    signals = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noised = signals.sqrt() * original + (1 - signals).sqrt() * noise
    captions = [f"t = {int(t)}, signal-to-noise ratio {decibels(float(alphas_cumprod[t]))}" for t in timesteps]
    shown = [
        ("x<sub>0</sub>, the picture", np.repeat(image[None], len(captions), 0)),
        ("x<sub>t</sub>, with noise", markup.pixels(noised / 2 + 0.5)),
    ]
    return markup.film(shown, captions, len(captions) // 5, name)
