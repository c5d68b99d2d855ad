"""The panel that draws from the same noise under different settings, by different models, or at moments of a training.

May import: `demo.{controls, limits, markup, studio}`, gradio. `demo.app` puts it on the page.
"""

from collections.abc import Iterator
from typing import Any

import gradio

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.controls import class_chips, in_words, seed_field, settings_fields, start_and_stop
from cond_ddpm.demo.limits import Refusal
from cond_ddpm.demo.studio import Step, Studio

_GUIDANCES = (0.0, 1.0, 2.0, 4.0, 8.0)
_STEPS = (2, 5, 10, 20, 50)
_MODES = ("guidance", "steps", "models")
_HOW_TO_HAVE_MODELS = (
    "There is one model here. To compare it with others, start the demo with `--compare DIR_OR_REPO`, several if you like;"
    " of a run folder, also earlier moments of its training can be chosen."
)


def compare_panel(studio: Studio) -> None:
    name, models = studio.models[0].name, [model.name for model in studio.models]

    @in_words(outputs=2)
    def compare(mode: Any, chosen: Any, label: Any, count: Any, seed: Any, *settings: Any) -> Iterator[tuple]:
        labels, seeds = studio.labels(label), studio.seeds(seed, count)
        steps, sampler, guidance, low, high = settings
        calls = []
        if mode == "guidance":
            if labels is None:
                raise Refusal("class: expected one to guide towards; choose it.")
            calls = [(f"guidance {w:g}", name, (steps, sampler, w, low, high)) for w in _GUIDANCES]
        elif mode == "steps":
            counts = [n for n in _STEPS if n <= studio.most_steps]
            calls = [(f"{n} steps", name, (n, sampler, guidance, low, high)) for n in counts]
        elif mode == "models":
            if not isinstance(chosen, list) or not 2 <= len(chosen) <= 8:
                raise Refusal(
                    f"models: expected 2 to 8 of them, got {len(chosen) if isinstance(chosen, list) else 1}."
                    if len(models) > 1
                    else _HOW_TO_HAVE_MODELS
                )
            calls = [(studio.model(one).name, one, settings) for one in chosen]
        else:
            raise Refusal(f"compare: expected one of {', '.join(_MODES)}, got {str(mode)[:40]}.")
        made = [(title, model, studio.arguments(labels, seeds, *values)) for title, model, values in calls]
        studio.check_cost(*(arguments for _, _, arguments in made))

        total = sum(arguments["num_inference_steps"] for _, _, arguments in made)
        captions, rows, before = [f"seed {seed}" for seed in seeds], [], 0
        for title, model, arguments in made:
            for item in studio.draw(model, **arguments):
                if isinstance(item, Step):
                    done = before + arguments["num_inference_steps"] * item.index // item.total
                    yield markup.progress(done, total, f"{title}: step {item.index} of {item.total}"), gradio.skip()
            before += arguments["num_inference_steps"]
            rows.append((title, markup.pixels(item.images)))
            yield gradio.skip(), markup.rows_of_pictures(rows, captions)
        yield "", gradio.skip()

    with gradio.Row(elem_classes="panel"):
        with gradio.Column(scale=2, min_width=300):
            names = [("Guidance", "guidance"), ("Steps", "steps"), ("Models or moments", "models")]
            mode = gradio.Radio(names, value="guidance", label="Compare", elem_classes="chips")
            with gradio.Column(visible=False) as choice:
                chosen = gradio.Dropdown(
                    models, value=models[:2], multiselect=True, label="Models or moments", visible=len(models) > 1
                )
                gradio.Markdown(_HOW_TO_HAVE_MODELS, visible=len(models) == 1, elem_classes="lesson")
            label = class_chips(studio, several=False)
            most = min(8, studio.limits.images)
            count = gradio.Slider(1, most, value=min(4, most), step=1, label="Pictures")
            seed = seed_field()
            settings = settings_fields(studio)
            actions = gradio.Column()
        with gradio.Column(scale=3, min_width=300):
            status = gradio.HTML(elem_classes="status")
            empty = "Nothing to compare yet. Choose what to compare and press <b>Compare</b>: each column is one seed."
            pictures = gradio.HTML(markup.empty(empty), elem_id="compared")
        mode.change(
            lambda mode: (gradio.update(visible=mode == "models"), *_fields_of(mode)),
            *(mode, [choice, settings.steps, settings.guidance]),
            api_visibility="private",
            queue=False,
        )
        with actions:
            inputs = [mode, chosen, label, count, seed, *settings]
            start_and_stop("Compare", compare, inputs, [status, pictures], status)
        settings.guidance.visible = False


def _fields_of(mode: str) -> tuple:
    """What is swept has no field of its own."""
    return gradio.update(visible=mode != "steps"), gradio.update(visible=mode != "guidance")
