"""`cond-ddpm study`: several models on the same data, with the same judge; one table, and quality against what it cost.

May import: everything but the command line: it trains and measures. Each run is a folder that `cond-ddpm train` would write;
next are study.csv, study.md and study.png.
"""

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.data import CHOSEN
from cond_ddpm.config.experiments import StudyConfig
from cond_ddpm.config.settings import unless_chosen, with_defaults
from cond_ddpm.ema import combine_snapshots, snapshot_steps
from cond_ddpm.evaluation.evaluate import evaluate
from cond_ddpm.experiments.rehearsal import rehearse
from cond_ddpm.files import write
from cond_ddpm.hardware import precision_for
from cond_ddpm.hub.folder import read_results
from cond_ddpm.models import forward_flop
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.text import markdown, read_json
from cond_ddpm.training import train
from cond_ddpm.visualize import class_grid, quality_curves

_COLUMNS = (
    *("model", "parameters_million", "gflop_forward", "step", "epochs", "minutes", "training_flop"),
    *("frechet_distance", "kernel_distance", "label_accuracy", "precision", "recall"),
)


def study(config: StudyConfig) -> Path:
    """Train and measure each model; what is done already is not done again.

    Args:
        config: the settings.

    Returns:
        The study's folder: a run's folder for each model, with `evaluations/step-N.json`; `study.csv`, `study.md`,
        `study.png` (quality against epochs, minutes and FLOP) and `samples.png` (the models' samples, the same seeds).
    """
    folder, rows, samples = Path(config.output_dir), [], {}
    runs = config.runs()
    for name, settings in runs.items():  # check all of them before the first is trained
        if not (folder / name / "done.json").is_file():
            rehearse(settings, f"models.{name}", config.evaluation_of(settings), config.sampling)
    for name, settings in runs.items():
        run = folder / name
        _train(settings, name, run)
        rows += _measure(config, settings, name, run)
        samples[name] = CondDDPMPipeline.from_pretrained(run / "pipeline").to(process_state().device)
    if not process_state().is_main_process:
        return folder
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, _COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write(folder / "study.csv", table.getvalue())
    last = _read(folder / rows[-1]["model"] / "evaluations" / f"step-{rows[-1]['step']}.json")
    write(folder / "study.md", _markdown(rows, last))
    quality_curves(rows, last["held_out_real"], folder / "study.png")
    _grid(samples, config.sampling, folder / "samples.png")
    return folder


def _read(file: Path) -> dict:
    return read_json(file.read_bytes(), str(file), "remove it, to have it made anew")


def _train(settings: TrainConfig, name: str, run: Path) -> None:
    """Train a model, unless its folder says that it has been trained.

    Raises:
        ValueError: it was trained with other settings.
    """
    done, asked = run / "done.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    if done.is_file():
        before = with_defaults(TrainConfig, _read(done))
        # Older versions recorded defaults for them.
        left_open = {name for name in (*CHOSEN, *unless_chosen(TrainConfig)) if asked[name] is None}
        if asked["mixed_precision"] == "auto":  # which was "bf16" in the presets of older versions
            left_open.add("mixed_precision")
        changed = [key for key in asked if asked[key] != before[key] and key not in left_open]
        if changed:
            others = ", ".join(changed)
            raise ValueError(f"{run}: expected the settings it was trained with, got other {others}; give another output_dir.")
        return
    print(f"{name}: training", file=sys.stderr)
    train(settings)
    if process_state().is_main_process:
        write(done, json.dumps(asked, indent=2) + "\n")


def _measure(config: StudyConfig, settings: TrainConfig, name: str, run: Path) -> list[dict]:
    """A row of the table for each measured step of the training."""
    steps = snapshot_steps(run / "ema")
    number = min(config.evaluations, len(steps))
    chosen = [steps[round((index + 1) * len(steps) / number) - 1] for index in range(number)]
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline").to(process_state().device)
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    forward = forward_flop(pipeline.unet)
    minutes, epochs, batch_size = _course(run)
    guided_from = read_results(pipeline.companions).get("training", {}).get("guided_from")
    rows, sampling = [], dict(config.sampling)
    if sampling.get("mixed_precision") == "auto":
        sampling["mixed_precision"] = precision_for(pipeline.device)
    for step in chosen:
        output = run / "evaluations" / f"step-{step}.json"
        training: dict[str, Any] = {"step": step, "ema_std": settings.ema_std, "batch_size": batch_size}
        training["study"] = {"evaluate": config.evaluate, "sampling": sampling}
        measured = _read(output).get("training") if output.is_file() else None
        if measured != json.loads(json.dumps(training)):  # not measured yet, or with other settings
            print(f"{name}: measuring step {step}", file=sys.stderr)
            pipeline.unet.load_state_dict(combine_snapshots(run / "ema", settings.ema_std, step)[0])
            evaluate(config.evaluation_of(settings), output, name, pipeline, training=training, **sampling)
        found = _read(output)["samples"]
        row = {
            "model": name,
            "parameters_million": round(parameters / 1e6, 2),
            "gflop_forward": round(forward / 1e9, 3),
            "step": step,
            "epochs": round(epochs[step], 2),
            "minutes": round(minutes[step], 1),
            # Backward costs two forwards, learning guidance one more.
            "training_flop": forward * batch_size * (3 * step + (0 if guided_from is None else max(0, step - guided_from))),
        }
        rows.append({**row, **{column: found[column] for column in _COLUMNS if column in found}})
    return rows


def _course(run: Path) -> tuple[dict[int, float], dict[int, float], int]:
    """Minutes of training, and epochs, at each step, from metrics.jsonl; and the batch size, which may have been chosen."""
    minutes, epochs, last = {}, {}, 0.0
    settings = _read(run / "config.json")
    resolved, batch_size = settings["resolved"], settings["config"]["batch_size"]
    # Older runs have that number among the settings only.
    images = resolved["num_images"] - resolved.get("num_validation_images", settings["config"]["num_validation_images"])
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        row = read_json(line, f"{run / 'metrics.jsonl'}", "remove that line")
        last = row.get("elapsed_seconds", last)
        minutes[row["step"]] = last / 60
        epochs[row["step"]] = row["step"] * batch_size / images
    return minutes, epochs, batch_size


def _markdown(rows: list[dict], last: dict) -> str:
    """The table, with held-out real images as its last row, and a note on how it was obtained."""
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    cells = lambda row: [f"{row[c]:.3g}" if c == "training_flop" and c in row else text(row.get(c)) for c in _COLUMNS]  # noqa: E731
    lines = [[column.replace("_", " ") for column in _COLUMNS], ["---" for _ in _COLUMNS]]
    count, of_real = last["samples"]["num_images"], last["held_out_real"]["num_images"]
    real = "real images, held out" + (f" ({of_real} of them)" if of_real != count else "")
    lines += map(cells, [*rows, {"model": real, **last["held_out_real"]}])
    protocol = last["protocol"]
    note = (
        f"{protocol['num_samples']} samples against {protocol['split_images']} real images of {protocol['split']}, by"
        f" {protocol['features']}; {protocol['scheduler']}, {protocol['num_inference_steps']} steps, guidance"
        f" {protocol['guidance_scale']}, seeds from {protocol['seed']}. FLOP: three times the forward's, counted."
    )
    table = "".join(f"| {' | '.join(map(markdown, line))} |\n" for line in [lines[0], *lines[2:]])
    head, _, body = table.partition("\n")
    return f"{head}\n| {' | '.join(lines[1])} |\n{body}\n{markdown(' '.join([note, *last['warnings']]))}\n"


def _grid(pipelines: dict[str, CondDDPMPipeline], sampling: dict, path: Path) -> None:
    """A row for each class and a column for each model, from the same noise."""
    import numpy as np

    from cond_ddpm.sampling import generate

    first = next(iter(pipelines.values()))
    classes = list(range(first.unet.config.num_classes))
    columns = [generate(pipeline, classes, classes, **sampling) for pipeline in pipelines.values()]
    images = np.stack(columns, axis=1)
    names = [first.class_name(label) for label in classes]
    class_grid(images.reshape(-1, *images.shape[2:]), names, path, column_names=list(pipelines), inches=0.9)
