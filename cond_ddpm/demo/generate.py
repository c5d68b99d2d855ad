"""The panel that draws pictures of chosen classes, while they can be seen to emerge from noise.

May import: `demo.{controls, markup, studio}`, gradio. `demo.app` puts it on the page.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio
import numpy as np

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.controls import class_chips, in_words, seed_field, settings_fields, start_and_stop
from cond_ddpm.demo.studio import Step, Studio

_EMPTY = "No pictures yet. Choose classes, then press <b>Draw</b>: you will see them emerge from noise."
_SECONDS_BETWEEN_PREVIEWS = 0.15


def generate_panel(studio: Studio) -> None:
    name = studio.models[0].name

    @in_words(outputs=3)
    def draw(classes: Any, count: Any, seed: Any, *settings: Any) -> Iterator[tuple]:
        labels = studio.labels(classes)
        seeds = studio.seeds(seed, count)
        arguments = studio.arguments(labels, seeds, *settings)
        studio.check_cost(arguments)
        names = [studio.names[label] for label in labels or ()] or ["no class"]
        captions = [f"seed {seed}" for seed in seeds]

        def rows(images: np.ndarray) -> list[tuple[str, np.ndarray]]:
            return list(zip(names, images.reshape(len(names), len(seeds), *images.shape[1:])))

        shown = 0.0
        for item in studio.draw(name, **arguments):
            if isinstance(item, Step) and time.monotonic() - shown > _SECONDS_BETWEEN_PREVIEWS:
                shown = time.monotonic()
                status = markup.progress(item.index, item.total, f"step {item.index} of {item.total}")
                drawn = markup.rows_of_pictures(rows(markup.pixels(item.sample / 2 + 0.5)), captions)
                yield status, drawn, gradio.skip()
        images = markup.pixels(item.images)
        ids = labels or [len(studio.names)]  # the null label
        each_label, each_name = [label for label in ids for _ in seeds], [name for name in names for _ in seeds]
        files = _files(images, each_label, each_name, arguments["seeds"], len(seeds))
        drawn = markup.rows_of_pictures(rows(images), captions) + markup.downloads(files)
        yield "", drawn, gradio.update(value=studio.code(name, arguments), visible=True)

    with gradio.Row(elem_classes="panel"):
        with gradio.Column(scale=2, min_width=300):
            classes = class_chips(studio)
            most = min(16, studio.limits.images)
            count = gradio.Slider(1, most, value=min(4, most), step=1, label="Pictures of each class")
            seed = seed_field()
            settings = settings_fields(studio)
            actions = gradio.Column()
        with gradio.Column(scale=3, min_width=300):
            status = gradio.HTML(elem_classes="status")
            pictures = gradio.HTML(markup.empty(_EMPTY), elem_id="generated")
            code = gradio.Code(
                *(None, "python"),
                label="Python that draws these pictures",
                visible=False,
                interactive=False,
                lines=1,
                elem_id="code",
            )
        with actions:
            inputs = [classes, count, seed, *settings]
            start_and_stop("Draw", draw, inputs, [status, pictures, code], status)


def _files(
    images: np.ndarray, labels: Sequence[int], names: Sequence[str], seeds: list[int], columns: int
) -> dict[str, tuple[bytes, str]]:
    """One PNG of all, an npz of the arrays as `cond-ddpm sample` writes it, and a zip of a PNG for each."""
    safe = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name) for name in names]
    each = {
        f"{number:02d}-{name}-{seed}.png": markup.png(markup.picture(image))
        for number, (image, name, seed) in enumerate(zip(images, safe, seeds))
    }
    numbers = {"class_labels": np.array(labels, np.int64), "seeds": np.array(seeds, np.int64)}
    arrays = markup.npz(images=images.transpose(0, 2, 3, 1), **numbers)
    return {
        "pictures.png": (markup.png(markup.sheet(images, columns)), "image/png"),
        "pictures.npz": (arrays, "application/octet-stream"),
        "pictures.zip": (markup.archive(each), "application/zip"),
    }
