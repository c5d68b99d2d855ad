"""`cond-ddpm study`: several models on the same data, with the same judge; one table, and quality against what it cost.

May import: `config`, `evaluate.evaluate`, the pipeline, `ema`, `visualize`; how to train is handed in by the command line.
Each run is a folder that `cond-ddpm train` would write; next are study.csv, study.md and study.png beside them.
"""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from cond_ddpm.config import TrainConfig
from cond_ddpm.ema import combine_snapshots, snapshot_steps
from cond_ddpm.evaluate.evaluate import Protocol, evaluate
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.visualize import class_grid, quality_curves

_COLUMNS = (
    *("model", "parameters_million", "gflop_forward", "step", "epochs", "minutes", "training_flop"),
    *("frechet_distance", "kernel_distance", "label_accuracy", "precision", "recall"),
)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Args:
        output_dir: folder of the study; each model's run is a folder in it.
        base: settings of training that the models share, as for `cond-ddpm train`.
        models: name of each model -> the settings in which it differs.
        evaluate: settings of `Protocol` but for `dataset`, `resolution` and `channels`, which are the training's.
        sampling: arguments of the pipeline, such as `num_inference_steps` and `guidance_scale`.
        evaluations: moments of each run that are measured, evenly spaced to the last.
    """

    output_dir: str
    base: dict
    models: dict
    evaluate: dict = dataclasses.field(default_factory=dict)
    sampling: dict = dataclasses.field(default_factory=dict)
    evaluations: int = 4

    def __post_init__(self):
        if len(self.models) < 1:
            raise ValueError("models: expected one or more, each a name and its settings.")
        if self.evaluations < 1:
            raise ValueError(f"evaluations: expected 1 or more, got {self.evaluations}.")
        known = {field.name for field in dataclasses.fields(TrainConfig)} - {"output_dir", "resume_from_checkpoint"}
        for where, settings in {"base": self.base, **{f"models.{name}": one for name, one in self.models.items()}}.items():
            unknown = set(settings or {}) - known
            if unknown:
                raise ValueError(f"{where}: expected settings of training, got {', '.join(sorted(unknown))}.")
        fields = {field.name for field in dataclasses.fields(Protocol)} - {"dataset", "resolution", "channels"}
        if set(self.evaluate) - fields:
            raise ValueError(f"evaluate: expected {', '.join(sorted(fields))}, got {', '.join(sorted(self.evaluate))}.")

    def runs(self) -> dict[str, TrainConfig]:
        """The settings of each model's run.

        Raises:
            ValueError: settings that training does not take.
        """
        fixed = {"resume_from_checkpoint": "latest"}
        return {
            name: TrainConfig(**{**self.base, **(settings or {}), **fixed, "output_dir": str(Path(self.output_dir) / name)})
            for name, settings in self.models.items()
        }


def read_study(path: Path) -> StudyConfig:
    """From YAML.

    Raises:
        ValueError: not a mapping, or not these settings.
    """
    settings = yaml.safe_load(path.read_text())
    known = {field.name for field in dataclasses.fields(StudyConfig)}
    if not isinstance(settings, dict) or set(settings) - known or {"output_dir", "base", "models"} - set(settings):
        found = ", ".join(settings) if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"--config: expected {', '.join(sorted(known))} in {path}, got {found}.")
    return StudyConfig(**settings)


def study(config: StudyConfig, train: Callable[[TrainConfig], Path]) -> Path:
    """Train and measure each model; what is done already is not done again.

    Args:
        config: the settings.
        train: `cond_ddpm.train.train`.

    Returns:
        The study's folder: a run's folder for each model, with `evaluations/step-N.json`; `study.csv`, `study.md`,
        `study.png` (quality against epochs, minutes and FLOP) and `samples.png` (the models' samples, the same seeds).
    """
    folder, rows, samples = Path(config.output_dir), [], {}
    runs = config.runs()
    for name, settings in runs.items():
        run = folder / name
        if not (run / "done").is_file():
            print(f"{name}: training", file=sys.stderr)
            train(settings)
            (run / "done").touch()
        rows += _measure(config, settings, name, run)
        samples[name] = CondDDPMPipeline.from_pretrained(run / "pipeline")
    with (folder / "study.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "study.md").write_text(_markdown(rows))
    real = json.loads(next((folder / rows[-1]["model"] / "evaluations").glob("*.json")).read_text())["held_out_real"]
    quality_curves(rows, real, folder / "study.png")
    _grid(samples, config.sampling, folder / "samples.png")
    return folder


def _measure(config: StudyConfig, settings: TrainConfig, name: str, run: Path) -> list[dict]:
    """A row for each of the moments."""
    steps = snapshot_steps(run / "ema")
    number = min(config.evaluations, len(steps))
    chosen = [steps[round((index + 1) * len(steps) / number) - 1] for index in range(number)]
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    forward = _forward_flop(pipeline.unet)
    minutes, epochs = _course(run)
    rows = []
    for step in chosen:
        output = run / "evaluations" / f"step-{step}.json"
        if not output.is_file():
            print(f"{name}: measuring step {step}", file=sys.stderr)
            pipeline.unet.load_state_dict(combine_snapshots(run / "ema", settings.ema_std, step)[0])
            evaluate(Protocol(settings.dataset, **config.evaluate), output, str(run / "pipeline"), pipeline, **config.sampling)
        found = json.loads(output.read_text())["samples"]
        row = {
            "model": name,
            "parameters_million": round(parameters / 1e6, 2),
            "gflop_forward": round(forward / 1e9, 3),
            "step": step,
            "epochs": round(epochs[step], 2),
            "minutes": round(minutes[step], 1),
            "training_flop": 3 * forward * settings.batch_size * step,  # backward costs two forwards
        }
        rows.append({**row, **{column: found[column] for column in _COLUMNS if column in found}})
    return rows


def _course(run: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Minutes of training, and epochs, at each step, from metrics.jsonl."""
    minutes, epochs, last = {}, {}, 0.0
    settings = json.loads((run / "config.json").read_text())
    images = settings["resolved"]["num_images"] - settings["config"]["num_validation_images"]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        last = row.get("elapsed_seconds", last)
        minutes[row["step"]] = last / 60
        epochs[row["step"]] = row["step"] * settings["config"]["batch_size"] / images
    return minutes, epochs


def _forward_flop(unet: torch.nn.Module) -> int:
    """Of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    config = unet.config
    sample = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        unet(sample, 0, torch.zeros(1, dtype=torch.int64))
    return flops.get_total_flops()


def _markdown(rows: list[dict]) -> str:
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    cells = lambda row: [f"{row['training_flop']:.3g}" if c == "training_flop" else text(row.get(c)) for c in _COLUMNS]  # noqa: E731
    lines = [" | ".join(column.replace("_", " ") for column in _COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    return "".join(f"| {line} |\n" for line in (*lines, *(" | ".join(cells(row)) for row in rows)))


def _grid(pipelines: dict[str, CondDDPMPipeline], sampling: dict, path: Path) -> None:
    """A row a class, a column a model, from the same noise."""
    import numpy as np

    from cond_ddpm.sampling import generate

    first = next(iter(pipelines.values()))
    classes = list(range(first.unet.config.num_classes))
    columns = [generate(pipeline, classes, classes, **sampling) for pipeline in pipelines.values()]
    images = np.stack(columns, axis=1)
    names = [(first.id2label or {}).get(label, f"class {label}") for label in classes]
    class_grid(images.reshape(-1, *images.shape[2:]), names, path, column_names=list(pipelines), inches=0.9)
