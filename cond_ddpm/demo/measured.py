"""The panel of what was measured: results.json as tables, bars for each class, the confusion matrix, the nearest copies.

May import: `demo.{markup, studio}`, gradio. `demo.app` puts it on the page. results.json is foreign text: it is escaped.
"""

import math
from typing import Any

import gradio

import cond_ddpm.demo.markup as markup
from cond_ddpm.demo.markup import escape
from cond_ddpm.demo.studio import Studio

_EMPTY = (
    "This model was not measured. <code>cond-ddpm evaluate --model DIR --dataset DATA --output DIR/results.json</code>"
    " measures it, and this panel then shows the results."
)
# Key of results.json, its name, what is better, and its meaning.
_METRICS = (
    ("frechet_distance", "Fréchet distance", "lower", "between the judge's features of samples and of real images"),
    ("kernel_distance", "kernel distance", "lower", "the same by a kernel; hardly depends on the number of samples"),
    ("precision", "precision", "higher", "share of samples that are near real images"),
    ("recall", "recall", "higher", "share of real images that are near samples"),
    ("label_accuracy", "recognised", "higher", "share of samples that a judge takes for the requested class"),
    ("nearest_training_distance", "distance to training images", "", "as far as held-out real images are: no copies"),
)
_SHARES = ("precision", "recall", "label_accuracy")
_PICTURES = {
    "results-confusion.png": ("Confusion", "which share of each requested class is recognised as which class"),
    "results-neighbours.png": ("Neighbours", "samples, each beside the training images that are nearest to it"),
    "results-copies.png": ("Copies", "the samples that are nearest to a training image, each beside it"),
}


def measured_panel(studio: Studio) -> None:
    gradio.HTML(measured_page(studio), elem_id="measured")


def measured_page(studio: Studio) -> str:
    results = studio.results()
    samples, real = _part(results, "samples"), _part(results, "held_out_real")
    protocol = _part(results, "protocol")
    if not samples:
        return markup.empty(_EMPTY)
    parts = [_table(samples, real), _classes(_part(samples, "classes"), _part(real, "classes"))]
    for name, (title, text) in _PICTURES.items():
        content = studio.companion(name)
        if content is not None:
            image = f'<img src="{markup.data_uri(content, "image/png")}" alt="{escape(title)}: {escape(text)}">'
            parts.append(f"<section><h3>{title}</h3><p>{text}</p>{image}</section>")
        else:
            parts.append(f"<section><h3>{title}</h3><p>There is no {name} beside this model.</p></section>")
    facts = [
        f"{_number(samples.get('num_images'))} samples",
        f"of {_text(protocol.get('dataset'))}",
        f"judge: {_text(protocol.get('features'))}",
        f"{_number(protocol.get('num_inference_steps'))} steps",
        f"guidance {_number(protocol.get('guidance_scale'))}",
    ]
    return f'<div class="measured"><p class="facts">{" · ".join(facts)}</p>{"".join(parts)}</div>'


def _table(samples: dict, real: dict) -> str:
    rows = []
    for key, name, better, meaning in _METRICS:
        if key in samples:
            share = key in _SHARES
            hint = f"{better} is better; {meaning}" if better else meaning
            rows.append(
                f"<tr><th scope='row'>{name}<small>{hint}</small></th><td>{_number(samples.get(key), share)}</td>"
                f"<td>{_number(real.get(key), share)}</td></tr>"
            )
    head = "<tr><th scope='col'>metric</th><th scope='col'>samples</th><th scope='col'>held-out real</th></tr>"
    return f"<section><h3>Overall</h3><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></section>"


def _classes(samples: dict, real: dict) -> str:
    """A table with a bar for each class; the mark on it is that of real images."""
    if not samples:
        return ""
    rows = []
    distances: list[Any] = [_part(samples, name).get("frechet_distance") for name in samples]
    most = max((value for value in distances if _is_number(value)), default=1) or 1
    for name in samples:
        of_samples, of_real = _part(samples, name), _part(real, name)
        accuracy, distance = of_samples.get("accuracy"), of_samples.get("frechet_distance")
        rows.append(
            f"<tr><th scope='row'>{escape(str(name))}</th>"
            f"<td>{_bar(accuracy, 1, of_real.get('accuracy'))}{_number(accuracy, True)}</td>"
            f"<td>{_bar(distance, most)}{_number(distance)}</td></tr>"
        )
    head = "<tr><th scope='col'>class</th><th scope='col'>recognised</th><th scope='col'>Fréchet distance</th></tr>"
    legend = "The mark on a bar is the share of held-out real images that the judge recognises."
    return (
        f"<section><h3>Each class</h3><p>{legend}</p><table class='bars'><thead>{head}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _bar(value: Any, most: float, mark: Any = None) -> str:
    if not _is_number(value):
        return ""
    at = f"<i style='left:{100 * min(max(mark, 0), 1):.1f}%'></i>" if _is_number(mark) else ""
    return f"<span class='bar' aria-hidden='true'><b style='width:{100 * min(max(value / most, 0), 1):.1f}%'></b>{at}</span>"


def _part(results: dict, name: str) -> dict:
    found = results.get(name)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, share: bool = False) -> str:
    if not _is_number(value):
        return "not known"
    if share:
        return f"{value:.1%}"
    return (f"{value:,}" if isinstance(value, int) else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")


def _text(value: Any) -> str:
    return "not known" if value is None else escape(str(value)[:80])
