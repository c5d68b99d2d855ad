"""The models of a demo, and a call of a pipeline as an iterator over its steps.

May import: `demo.limits`, torch, diffusers. Next in the data flow: the panels and `interface.py` show what is drawn.

One picture is drawn at a time, whoever asks: so the pictures do not depend on what others ask for, and the memory is that of
one request. A visitor who leaves closes the iterator, which stops the drawing at its next step.
"""

import contextlib
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from cond_ddpm.demo.limits import DEFAULT_LIMITS, Limits, Refusal, number, whole_number

MOST_GUIDANCE = 20.0
MOST_SEED = 2**31 - 1  # larger ones would lose digits in a browser
# A server may forget an iterator without closing it: gradio does if a visitor leaves during the first step.
SECONDS_UNTIL_LEFT = 20.0


@dataclass(frozen=True)
class Model:
    """A model that can be chosen.

    Args:
        name: what it is called on the page.
        load: returns its pipeline; called when it is first chosen.
        lines: Python that loads it, as `pipeline`.
    """

    name: str
    load: Callable[[], DiffusionPipeline]
    lines: str


@dataclass(frozen=True)
class Step:
    """One step of a call: its number, from 1, of how many; and x_t after it, (N, C, H, W) in [-1, 1] on the CPU."""

    index: int
    total: int
    sample: torch.Tensor


@dataclass
class Studio:
    """The models, of which the first is the one that all panels use; all have its classes and its size.

    Args:
        models: at least one, with different names.
        limits: of a request.
        real_pictures: real pictures, with their names, (C, H, W) uint8, for the panel about noise.
    """

    models: Sequence[Model]
    limits: Limits = DEFAULT_LIMITS
    real_pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {model.name: model for model in self.models}
        self._others: dict[str, DiffusionPipeline] = {}
        self._turn = threading.Lock()
        self.pipeline = self._loaded(self.models[0])
        self.names = dict(self.pipeline.id2label or {}) or {i: f"class {i}" for i in range(self.config.num_classes)}
        self.samplers = list(sys.modules[type(self.pipeline).__module__].SAMPLERS)

    @property
    def config(self) -> Any:
        """The settings of the network."""
        return self.pipeline.unet.config

    @property
    def most_steps(self) -> int:
        return min(self.limits.steps, self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def default_steps(self) -> int:
        """Those that the model was saved with; 20, if it was saved without."""
        return min(self.pipeline.config.get("num_inference_steps") or 20, self.most_steps)

    @property
    def knows_no_class(self) -> bool:
        """Whether the network also learned to draw without a class."""
        return self.pipeline.class_dropout_prob != 0

    def results(self) -> dict[str, Any]:
        """What the model's results.json holds; {} if it was not evaluated."""
        try:
            found = json.loads(self.companion("results.json") or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def companion(self, name: str) -> bytes | None:
        """The content of a file beside the model, such as a picture of its evaluation."""
        return getattr(self.pipeline, "companions", {}).get(name)

    def best_class(self) -> int:
        """The class to begin with: the one that was measured to be best, or else the first."""
        with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
            measured = self.results()["samples"]["classes"]
            best = min(measured, key=lambda name: measured[name]["frechet_distance"])
            return next(label for label, name in self.names.items() if name == best)
        return next(iter(self.names))

    def model(self, name: str) -> Model:
        if name not in self._by_name:
            raise Refusal(f"model: expected one of {', '.join(self._by_name)}, got {str(name)[:40]}.")
        return self._by_name[name]

    def labels(self, classes: Any) -> list[int] | None:
        """Ids of the chosen classes, given by id or name; None if none was chosen."""
        given = classes if isinstance(classes, (list, tuple)) else [classes]
        ids = {name: label for label, name in self.names.items()}
        labels: list[Any] = [ids.get(one, one) if isinstance(one, str) else one for one in given]
        wrong = [str(one)[:40] for one in labels if not isinstance(one, int) or isinstance(one, bool) or one not in self.names]
        if wrong:
            few = list(self.names.values())[:20]
            raise Refusal(f"class: expected names among {', '.join(few)}, got {', '.join(wrong[:3])}.")
        if not labels and not self.knows_no_class:
            raise Refusal("class: this model learned no pictures without a class; choose at least one.")
        return list(dict.fromkeys(labels)) or None

    def seeds(self, seed: Any, count: Any) -> list[int]:
        """`count` seeds, the first of which is `seed`."""
        number_of_images = whole_number("pictures", count, 1, self.limits.images)
        first = whole_number("seed", seed, 0, MOST_SEED)
        return list(range(first, first + number_of_images))

    def arguments(
        self, labels: list[int] | None, seeds: list[int], steps: Any, sampler: Any, guidance: Any, low: Any, high: Any
    ) -> dict[str, Any]:
        """The arguments of a call of the pipeline, with which it draws every class by every seed.

        Raises:
            Refusal: a setting out of its bounds, or more work than one request may cause.
        """
        rows = [None] if labels is None else labels
        arguments: dict[str, Any] = {
            "class_labels": labels and [self.names[label] if self.pipeline.id2label else label for label in labels],
            "num_images_per_label": len(seeds),
            "seeds": seeds * len(rows),
            "num_inference_steps": whole_number("steps", steps, 1, self.most_steps),
        }
        if sampler:
            if sampler not in self.samplers:
                raise Refusal(f"sampler: expected one of {', '.join(self.samplers)}, got {str(sampler)[:40]}.")
            arguments["sampler"] = sampler
        if labels is not None:
            scale = number("guidance", guidance, 0, MOST_GUIDANCE)
            arguments["guidance_scale"] = scale
            if (low or high) and scale != 1:  # at 1 there is nothing to limit
                lowest = number("guide from", low or 0, 0, 1e6)
                highest = number("guide to", high, 0, 1e6) if high else math.inf
                if lowest >= highest:
                    raise Refusal(f"guide from, to: expected the lower noise level first, got {lowest:g} and {highest:g}.")
                arguments["guidance_interval"] = (lowest, highest)
        if len(arguments["seeds"]) > self.limits.images:
            raise Refusal(
                f"pictures: expected at most {self.limits.images} altogether, got {len(rows)} classes x {len(seeds)};"
                " choose fewer."
            )
        return arguments

    def check_cost(self, *calls: dict[str, Any]) -> None:
        """Refuse calls that would together take more work than one request may cause."""
        forwards = 0
        for call in calls:
            guided = 2 if call.get("guidance_scale", 1) not in (0, 1) else 1
            heun = 2 if call.get("sampler") == "heun" else 1
            forwards += len(call["seeds"]) * call["num_inference_steps"] * guided * heun
        if forwards > self.limits.forwards:
            raise Refusal(
                f"this asks for {forwards:,} passes through the network, and one request may take {self.limits.forwards:,};"
                " choose fewer pictures or steps."
            )

    def code(self, model: str, arguments: dict[str, Any]) -> str:
        """Python lines that draw the same pictures."""
        first, *rest = arguments["seeds"][: arguments["num_images_per_label"]]
        repeats = len(arguments["seeds"]) // arguments["num_images_per_label"]
        seeds = f"[*range({first}, {first + 1 + len(rest)})]" + (f" * {repeats}" if repeats > 1 else "")
        lines = [
            f"    {'' if name == 'class_labels' else name + '='}{seeds if name == 'seeds' else _literal(value)},"
            for name, value in arguments.items()
        ]
        return "\n".join([self.model(model).lines, "images = pipeline(", *lines, ").images"])

    def draw(self, model: str, return_intermediates: int | None = None, **arguments: Any) -> Iterator[Any]:
        """The steps of a call, each a `Step`, and at last what the pipeline returned, with images (N, C, H, W) in [0, 1].

        Args:
            model: its name.
            return_intermediates, arguments: of the pipeline.
        """
        chosen = self.model(model)
        arguments |= {"output_type": "pt", "return_intermediates": return_intermediates}
        return _steps_of(lambda: self._loaded(chosen), self._turn, **arguments)

    def _loaded(self, model: Model) -> DiffusionPipeline:
        """Its pipeline. Beside the first model, one other is kept in memory."""
        if model is self.models[0] and hasattr(self, "pipeline"):
            return self.pipeline
        if model.name not in self._others:
            pipeline = model.load()
            pipeline.set_progress_bar_config(disable=True)
            if hasattr(self, "pipeline"):
                self._check_alike(model.name, pipeline)
            self._others = {model.name: pipeline} if hasattr(self, "pipeline") else {}
            return pipeline
        return self._others[model.name]

    def _check_alike(self, name: str, pipeline: DiffusionPipeline) -> None:
        for setting in ("sample_size", "in_channels", "num_classes"):
            own, other = getattr(self.config, setting), getattr(pipeline.unet.config, setting)
            if own != other:
                raise Refusal(f"{name}: expected the {setting} of {self.models[0].name}, {own}, got {other}.")
        if (pipeline.id2label or self.pipeline.id2label) != self.pipeline.id2label:
            raise Refusal(f"{name}: expected the classes of {self.models[0].name}, got others.")


class _Left(Exception):
    """Nobody waits for the pictures any more."""


def _steps_of(load: Callable[[], DiffusionPipeline], turn: threading.Lock, **arguments: Any) -> Iterator[Any]:
    """A call of a pipeline, which runs in a thread of its own at most one step ahead of whoever iterates.

    Closing the iterator ends the call at its next step. It does not wait for that, because a server closes it in its main
    loop: the thread holds the turn until it has ended. A step that nobody takes for SECONDS_UNTIL_LEFT ends the call too.
    """
    handed: queue.Queue = queue.Queue(maxsize=1)
    left = threading.Event()

    def hand(item: Any) -> None:
        deadline = time.monotonic() + SECONDS_UNTIL_LEFT
        while not left.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Full):
                return handed.put(item, timeout=0.05)
        raise _Left

    def after_step(pipeline: DiffusionPipeline, index: int, timestep: Any, tensors: dict) -> dict:
        sample = tensors["sample"].float()
        spread = sample.std((1, 2, 3), keepdim=True).clamp(min=1)  # some samplers' x_t has a variance of more than 1
        hand(Step(index + 1, pipeline.num_timesteps, (sample / spread).clamp(-1, 1).cpu()))
        return {}

    def call() -> None:
        with contextlib.suppress(_Left):
            while not turn.acquire(timeout=0.05):
                if left.is_set():
                    return
            try:
                hand(load()(callback_on_step_end=after_step, **arguments))
            except _Left:
                pass
            except Exception as error:
                hand(error)
            finally:
                turn.release()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = handed.get(timeout=1)
            except queue.Empty:
                if thread.is_alive() or not handed.empty():
                    continue
                raise Refusal("drawing was given up, because nobody took its steps; ask for it again.") from None
            if isinstance(item, Exception):
                raise item
            yield item
            if not isinstance(item, Step):
                return
    finally:
        left.set()


def _literal(value: Any) -> str:
    """The value as Python; infinity has no literal."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return 'float("inf")' if value == math.inf else repr(value)
