"""Curves: losses of runs, quality against guidance, and the quality of several models against what their training costs.

May import: `text, visualize.drawing`. Nothing is next.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cond_ddpm.text import shown
from cond_ddpm.visualize.drawing import figure, lettering


def quality_curves(rows: Sequence[dict], real: Mapping[str, float], path: str | Path) -> None:
    """Write a PNG of a study: Fréchet distance and label accuracy against epochs, minutes and training FLOP.

    Args:
        rows: each with `model`, `epochs`, `minutes`, `training_flop`, `frechet_distance` and perhaps `label_accuracy`.
        real: the same metrics of held-out real images, as the reference.
        path: of the PNG.
    """
    names = list(dict.fromkeys(row["model"] for row in rows))
    letters = lettering(names)
    count = f" ({real['num_images']:,})" if real.get("num_images") else ""
    kinds = [key for key in ("frechet_distance", "label_accuracy") if any(row.get(key) is not None for row in rows)]
    costs = {"epochs": "epochs", "minutes": "minutes of training", "training_flop": "training FLOP"}
    with figure(path, (10, 0.5 + 2.8 * len(kinds)), 150, letters) as drawn:
        grid = drawn.subplots(len(kinds), len(costs), squeeze=False, sharey="row")
        for axes_row, kind in zip(grid, kinds):
            for axes, (cost, label) in zip(axes_row, costs.items()):
                for name, shown_name in zip(names, letters.groups[0]):
                    of_model = [row for row in rows if row["model"] == name]
                    values = [row[kind] for row in of_model]
                    axes.plot([row[cost] for row in of_model], values, marker="o", label=_in_legend(shown_name))
                if real.get(kind) is not None:
                    axes.axhline(real[kind], color="gray", linewidth=0.8, linestyle=":", label=f"held-out real images{count}")
                axes.set_xlabel(label)
                axes.grid(alpha=0.3)
            axes_row[0].set_ylabel(kind.replace("_", " "))
            if kind == "frechet_distance":
                axes_row[0].set_yscale("log")
        _add_legend(grid[0][0], fontsize=8)


def loss_curve(runs: Mapping[str, Sequence[dict]], path: str | Path | io.BytesIO) -> None:
    """Write a PNG of the training and validation loss of one run or several, by epoch.

    Args:
        runs: name of each run -> its rows of metrics.csv.
        path: of the PNG.
    """
    from matplotlib.ticker import MaxNLocator

    letters = lettering(list(runs))
    several = len(runs) > 1
    with figure(path, (6, 3.5), 150, letters) as drawn:
        axes = drawn.add_subplot()
        for number, (name, metrics) in enumerate(zip(letters.groups[0], runs.values())):
            epochs = [row["epoch"] for row in metrics]
            marker = "." if len(metrics) < 40 else None
            colour = f"C{number}" if several else None
            for key, what, line in (("train_loss", "training", "--" if several else "-"), ("val_loss", "validation", "-")):
                label = _in_legend(f"{name}, {what}") if several else what
                axes.plot(epochs, [row[key] for row in metrics], line, color=colour, label=label, marker=marker)
            best = min(metrics, key=lambda row: row["val_loss"])
            best_label = None if several else f"best epoch, {best['epoch']}"
            axes.axvline(best["epoch"], color=colour or "gray", linewidth=0.8, linestyle=":", label=best_label)
        rows = [row for metrics in runs.values() for row in metrics]
        if max(row["train_loss"] for row in rows) > 4 * min(row["val_loss"] for row in rows) > 0:
            axes.set_yscale("log")  # else the first epoch would flatten all others
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        _add_legend(axes, fontsize="small" if several else None)


def guidance_curve(rows: Sequence[dict], chosen: float, path: str | Path | io.BytesIO) -> None:
    """Write a PNG of the quality of samples against their guidance scale.

    Args:
        rows: each with `guidance_scale`, `kernel_distance` and `label_accuracy`.
        chosen: the scale that is marked.
        path: of the PNG.
    """
    scales = [row["guidance_scale"] for row in rows]
    with figure(path, (6, 3.2), 150, lettering([])) as drawn:
        for axes, key in zip(drawn.subplots(1, 2), ("kernel_distance", "label_accuracy")):
            axes.plot(scales, [row[key] for row in rows], marker="o")
            axes.axvline(chosen, color="gray", linewidth=0.8, linestyle=":", label=f"chosen: {chosen:g}")
            axes.set_xlabel("guidance_scale")
            axes.set_ylabel(key.replace("_", " "))
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")


def training_curve(rows: Sequence[dict], path: str | Path | io.BytesIO, most: int = 300) -> None:
    """Write a PNG of a run's losses and of its learning rate, step by step.

    Args:
        rows: of a metrics.jsonl, in order; some are of steps, some of epochs.
        path: of the PNG.
        most: points of the training loss, each the mean of as many steps as needed.
    """
    steps, epochs, rated = ([row for row in rows if key in row] for key in ("loss", "val_loss", "learning_rate"))
    width = -(-len(steps) // most)
    parts = [steps[start : start + width] for start in range(0, len(steps), width)]
    with figure(path, (7, 4.2), 150, lettering([])) as drawn:
        axes, below = drawn.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        means = [sum(row["loss"] for row in part) / len(part) for part in parts]
        label = "training" if width == 1 else f"training, mean of {width} steps"
        axes.plot([part[-1]["step"] for part in parts], means, linewidth=0.9, alpha=0.7, label=label)
        if epochs:
            losses = [row["val_loss"] for row in epochs]
            axes.plot([row["step"] for row in epochs], losses, marker="o", label="validation, averaged weights")
        if max(means) > 4 * min(means) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.tick_params(which="minor", labelsize=6)
        axes.set_ylabel("loss")
        axes.legend()
        below.plot([row["step"] for row in rated], [row["learning_rate"] for row in rated], color="C2")
        below.set_ylim(bottom=0)
        below.set_xlabel("step")
        below.set_ylabel("learning\nrate")
        for each in (axes, below):
            each.grid(alpha=0.3)


def _in_legend(label: str) -> str:
    """matplotlib leaves labels that begin with an underscore out of the legend, so these get a blank in front."""
    return f" {label}" if label.startswith("_") else label


def _add_legend(axes, fontsize: int | str | None) -> None:
    for text in axes.legend(fontsize=fontsize).get_texts():
        text.set_parse_math(False)


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.csv.

    Raises:
        ValueError: there is no such file, or it has other content.
    """
    file = run / "metrics.csv"
    if not file.is_file():
        raise ValueError(
            f"run: expected a run folder with a metrics.csv, got {run}; the file is written after the first epoch."
        )
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        rows = [
            {**row, "epoch": int(row["epoch"]), "val_loss": row["val_loss"], "train_loss": row["train_loss"]} for row in rows
        ]
    except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise ValueError(
            f"run: expected rows of numbers in {file}, with the columns epoch, train_loss and val_loss, got something else"
            f" ({type(error).__name__}: {shown(str(error))}); remove the other lines."
        ) from None
    if not rows:
        raise ValueError(f"run: expected rows in {file}, got none; the first one is written after the first epoch.")
    return rows
