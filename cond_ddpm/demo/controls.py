"""The fields that several panels have, and what all their events share: the queue, and errors in words.

May import: `demo.{limits, markup, studio}`, gradio. The panels are built of it.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.studio import MOST_GUIDANCE, MOST_SEED, Studio

_LOG = logging.getLogger("cond_ddpm.demo")
_DICE = f"() => Math.floor(Math.random() * {MOST_SEED})"
# Events with this id wait for each other: one request is drawn at a time.
QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}
UNEXPECTED = "This failed in the server, and not by your settings; its log says why. Other settings may still work."


class Settings(NamedTuple):
    """The fields of a call, in the order of `Studio.arguments`."""

    steps: gradio.components.Component
    sampler: gradio.components.Component
    guidance: gradio.components.Component
    low: gradio.components.Component
    high: gradio.components.Component


def class_chips(studio: Studio, several: bool = True) -> gradio.components.Component:
    """Classes by name: as chips, or in a list to search if there are many."""
    choices = [(name, label) for label, name in studio.names.items()]
    best = studio.best_class()
    if len(choices) > 40:
        return gradio.Dropdown(choices, value=[best] if several else best, multiselect=several, label="Class")
    if not several:
        return gradio.Radio(choices, value=best, label="Class", elem_classes="chips")
    info = "None: pictures of no class in particular." if studio.knows_no_class else None
    return gradio.CheckboxGroup(choices, value=[best], label="Classes", info=info, elem_classes="chips")


def seed_field() -> gradio.components.Component:
    """The seed, with a dice."""
    with gradio.Row(elem_classes="seed", equal_height=True):
        seed = gradio.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="Seed", scale=3, min_width=120)
        dice = gradio.Button("\N{DIE FACE-5} Roll", scale=1, min_width=90, elem_classes="dice")
    dice.click(None, None, seed, js=_DICE, api_visibility="private")
    return seed


def settings_fields(studio: Studio) -> Settings:
    """Steps, guidance and, under a fold, sampler and interval."""
    steps = gradio.Slider(1, studio.most_steps, value=studio.default_steps, step=1, label="Steps")
    guidance = gradio.Slider(
        *(0, MOST_GUIDANCE / 2),
        value=min(studio.pipeline.guidance_scale, MOST_GUIDANCE / 2),
        step=0.1,
        label="Guidance",
        info="0 ignores the class, 1 obeys it, more exaggerates it.",
    )
    with gradio.Accordion("More settings", open=False):
        choices = [("the model's own", ""), *((name, name) for name in studio.samplers)]
        sampler = gradio.Dropdown(choices, value="", label="Sampler", filterable=False)
        with gradio.Row():
            limits = {"minimum": 0, "maximum": 1e6, "min_width": 120}
            low = gradio.Number(0, label="Guide from noise level", info="0: to the end", **limits)
            high = gradio.Number(0, label="Guide to noise level", info="0: from the beginning", **limits)
    return Settings(steps, sampler, guidance, low, high)


def in_words(outputs: int) -> Callable:
    """For an event that yields (status, ...): an error becomes its status, in words, and its other outputs stay."""

    def decorate(function: Callable[..., Iterator[tuple]]) -> Callable[..., Iterator[tuple]]:
        @functools.wraps(function)
        def guarded(*values: Any) -> Iterator[tuple]:
            rest = [gradio.skip()] * (outputs - 1)
            try:
                yield from function(*values)
            except ValueError as refusal:  # those of the pipeline are in words too
                yield (markup.error(" ".join(str(refusal).split())), *rest)
            except Exception:
                _LOG.exception("a request failed")
                yield (markup.error(UNEXPECTED), *rest)

        return on_gpu(guarded)

    return decorate


def on_gpu(function: Callable) -> Callable:
    """The function, with a GPU for each call where a Space lends one (ZeroGPU); elsewhere as it is."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)


def start_and_stop(
    label: str, function: Callable, inputs: list, outputs: list, status: gradio.components.Component
) -> gradio.Button:
    """The buttons of a panel: one that draws, one that stops it."""
    with gradio.Row(elem_classes="actions"):
        start = gradio.Button(label, variant="primary", scale=2, min_width=120)
        stop = gradio.Button("Stop", variant="secondary", scale=1, min_width=80)
    event = start.click(function, inputs, outputs, api_visibility="private", show_progress="minimal", **QUEUE)
    stop.click(lambda: markup.message("Stopped."), None, status, cancels=[event], api_visibility="private", queue=False)
    return start
