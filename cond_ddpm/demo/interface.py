"""The demo's functions for programs, by gradio_client or the Model Context Protocol: typed, documented, bounded as the page.

May import: `demo.{controls, markup, studio}`, gradio. `demo.app` adds them to the page. Their docstrings are what a program is
told, so each says what it returns before its arguments: nothing after `Returns:` is passed on.
"""

import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import gradio

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.controls import QUEUE, UNEXPECTED, on_gpu
from cond_ddpm.demo.studio import MOST_SEED, Step, Studio

_LOG = logging.getLogger("cond_ddpm.demo")


def add_interface(studio: Studio) -> None:
    """Add the functions to the page that is being made."""
    name = studio.models[0].name
    config = studio.config
    names = ", ".join(list(studio.names.values())[:40])
    labels = list(studio.names.values())

    def generate(
        class_names: list[str], number: float, seed: float, steps: float, guidance_scale: float, sampler: str
    ) -> Iterator[Any]:
        try:
            ids = studio.labels(class_names or [])
            arguments = studio.arguments(ids, studio.seeds(seed, number), steps, sampler, guidance_scale, 0, 0)
            studio.check_cost(arguments)
            for item in studio.draw(name, **arguments):
                if isinstance(item, Step):
                    yield gradio.skip()  # at each step a caller that has left is noticed
            sheet = markup.sheet(markup.pixels(item.images), int(number))
            # gradio names its file by the content, and would write the file of an equal picture anew while another caller
            # is reading it.
            sheet.info["request"] = uuid.uuid4().hex
            yield sheet
        except ValueError as refusal:
            raise gradio.Error(" ".join(str(refusal).split()), print_exception=False) from None
        except Exception:
            _LOG.exception("a request failed")
            raise gradio.Error(UNEXPECTED, print_exception=False) from None

    generate.__doc__ = f"""Draw pictures of classes from noise with a class-conditional diffusion model.

    The classes are: {names}. Returns one PNG: a row for each class and a column for each seed, pictures of
    {config.sample_size} x {config.sample_size} pixels without margins. The same arguments always give the same pictures.

    Args:
        class_names: names of the classes, such as ["{labels[0]}"]; empty for pictures of no class in particular.
        number: how many pictures of each class, at most {studio.limits.images} altogether.
        seed: of the first picture of each class, 0 or more; the next picture has the next seed.
        steps: of the sampler, 1 to {studio.most_steps}; more are slower, and {studio.default_steps} are usually enough.
        guidance_scale: 0 ignores the class, 1 obeys it, more exaggerates it; at most 20.
        sampler: empty for the model's own, or one of {", ".join(studio.samplers)}.
    """

    def model_facts() -> str:
        facts = {
            "model": name,
            "classes": labels,
            "size": config.sample_size,
            "channels": config.in_channels,
            "samplers": studio.samplers,
            "guidance_scale": studio.pipeline.guidance_scale,
            "steps": studio.default_steps,
            "most_pictures": studio.limits.images,
            "most_steps": studio.most_steps,
            "measured": {
                part: {key: value for key, value in content.items() if not isinstance(value, (dict, list))}
                for part, content in studio.results().items()
                if part in ("samples", "held_out_real") and isinstance(content, dict)
            },
        }
        return json.dumps(facts, indent=1)

    model_facts.__doc__ = (
        "What the model is, as JSON: its classes, picture size, samplers, limits, and how good it was measured to be."
    )

    with gradio.Column(visible=False):
        inputs = [
            gradio.Dropdown(labels, value=[studio.names[studio.best_class()]], multiselect=True, label="class_names"),
            gradio.Number(1, precision=0, minimum=1, maximum=studio.limits.images, label="number"),
            gradio.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="seed"),
            gradio.Number(studio.default_steps, precision=0, minimum=1, maximum=studio.most_steps, label="steps"),
            gradio.Number(studio.pipeline.guidance_scale, minimum=0, maximum=20, label="guidance_scale"),
            gradio.Textbox("", label="sampler", max_length=20),
        ]
        output = gradio.Image(format="png", label="pictures")
        gradio.Button().click(on_gpu(generate), inputs, output, api_name="generate", **QUEUE)
        facts = gradio.Textbox(label="facts")
        gradio.Button().click(model_facts, None, facts, api_name="model_facts", queue=False)
