"""The panel that shows every step from noise to one picture: x_t, and the picture x_0 that the network predicts from it.

May import: `demo.{controls, markup, studio}`, gradio. `demo.app` puts it on the page.
"""

import math
from collections.abc import Iterator
from typing import Any

import gradio
import numpy as np
from PIL import Image

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.controls import class_chips, in_words, seed_field, settings_fields, start_and_stop
from cond_ddpm.demo.limits import Refusal
from cond_ddpm.demo.studio import Step, Studio

_EMPTY = "Nothing to watch yet. Choose a class and press <b>Draw</b>; then move the slider through time."
_MOST_MOMENTS = 60


def watch_panel(studio: Studio) -> None:
    name = studio.models[0].name

    @in_words(outputs=2)
    def draw(label: Any, seed: Any, *settings: Any) -> Iterator[tuple]:
        labels = studio.labels(label)
        arguments = studio.arguments(labels, studio.seeds(seed, 1), *settings)
        studio.check_cost(arguments)
        if arguments["num_inference_steps"] < 2:
            raise Refusal("steps: expected 2 or more to watch, got 1.")
        moments = min(_MOST_MOMENTS, arguments["num_inference_steps"])
        for item in studio.draw(name, return_intermediates=moments, **arguments):
            if isinstance(item, Step):
                yield markup.progress(item.index, item.total, f"step {item.index} of {item.total}"), gradio.skip()
        what = f"{studio.names[labels[0]] if labels else 'no class'}, seed {arguments['seeds'][0]}"
        noisy = markup.pixels(item.intermediate_samples[:, 0] / 2 + 0.5)
        predicted = markup.pixels(item.intermediate_predictions[:, 0] / 2 + 0.5)
        captions = [_caption(studio, int(timestep)) for timestep in item.intermediate_timesteps]
        last = markup.pixels(item.images)
        noisy, predicted = np.concatenate([noisy, last]), np.concatenate([predicted, last])
        captions.append("the finished picture")
        shown = markup.film(
            [("noisy x<sub>t</sub>", noisy), ("predicted x<sub>0</sub>", predicted)],
            captions,
            len(captions) // 2,
            what,
        )
        frames = [_frame(*pair) for pair in zip(noisy, predicted)]
        yield "", shown + markup.downloads({"denoising.gif": (markup.gif(frames), "image/gif")})

    with gradio.Row(elem_classes="panel"):
        with gradio.Column(scale=2, min_width=300):
            label = class_chips(studio, several=False)
            seed = seed_field()
            settings = settings_fields(studio)
            actions = gradio.Column()
        with gradio.Column(scale=3, min_width=300):
            status = gradio.HTML(elem_classes="status")
            film = gradio.HTML(markup.empty(_EMPTY), elem_id="watched", js_on_load=markup.FILM_SCRIPT)
            gradio.Markdown(
                "Sampling begins with noise (left). At each step the network guesses the finished picture (right), and the"
                " sampler moves a little towards it. Early guesses are blurred means of many pictures; the outline is decided"
                " first, details last.",
                elem_classes="lesson",
            )
        with actions:
            start_and_stop("Draw", draw, [label, seed, *settings], [status, film], status)


def _caption(studio: Studio, timestep: int) -> str:
    signal = float(studio.pipeline.scheduler.alphas_cumprod[timestep])
    return f"t = {timestep}, signal-to-noise ratio {decibels(signal)}"


def decibels(alpha_cumprod: float) -> str:
    """The signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod) in decibels."""
    return f"{10 * math.log10(alpha_cumprod / max(1 - alpha_cumprod, 1e-12)):+.0f} dB".replace("-", "\N{MINUS SIGN}")


def _frame(noisy: np.ndarray, predicted: np.ndarray) -> Image.Image:
    """Both side by side, at least 128 pixels high, for the animation."""
    both = markup.sheet(np.stack([noisy, predicted]), 2)
    scale = max(1, 128 // both.height)
    return both.resize((both.width * scale, both.height * scale), Image.Resampling.NEAREST)
