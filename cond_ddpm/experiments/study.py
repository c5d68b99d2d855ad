"""`cond-ddpm study`: several models on the same data, with the same judge; one table, and quality against what it cost.

May import: everything but the command line: it trains and measures. Each run is a folder that `cond-ddpm train` would write;
next are study.csv, study.md and study.png.
"""

import csv
import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import yaml

from cond_ddpm.config import TrainConfig
from cond_ddpm.ema import combine_snapshots, snapshot_steps
from cond_ddpm.evaluate.evaluate import Protocol, evaluate
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


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Args:
        output_dir: folder of the study; each model's run is a folder in it.
        base: settings of training that the models share, as for `cond-ddpm train`.
        models: name of each model -> the settings in which it differs.
        evaluate: settings of `Protocol` but for those of the data, which are the training's.
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
            if not isinstance(settings or {}, dict):
                raise ValueError(f"{where}: expected settings of training, got {settings!r}.")
            unknown = set(settings or {}) - known
            if unknown:
                raise ValueError(f"{where}: expected settings of training, got {', '.join(sorted(map(str, unknown)))}.")
        for name in self.models:
            if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
                raise ValueError(f"models: expected names that folders can have, got {name!r}; take another name.")
        check_measuring(self.evaluate, self.sampling)
        for name, run in self.runs().items():
            if not run.use_ema or not run.num_ema_snapshots:
                raise ValueError(f"models.{name}: expected use_ema and num_ema_snapshots, by which its course is measured.")

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


_OF_PROTOCOL = ("test_split", "features", "weights", "num_samples", "seed", "repeats", "subset")
_NOT_OF_SAMPLING = {
    *("self", "class_labels", "generator", "seeds", "num_images_per_label", "guide", "output_type", "return_dict"),
    *("return_intermediates", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
}


def check_measuring(evaluate: dict, sampling: dict) -> None:
    """Raise ValueError unless these are settings of `Protocol` and arguments of sampling: before hours of training."""
    if set(evaluate) - set(_OF_PROTOCOL):
        raise ValueError(f"evaluate: expected {', '.join(_OF_PROTOCOL)}, got {', '.join(sorted(map(str, evaluate)))}.")
    Protocol("", **evaluate)
    known = {*inspect.signature(CondDDPMPipeline.__call__).parameters, "mixed_precision"} - _NOT_OF_SAMPLING
    if set(sampling) - known:
        raise ValueError(f"sampling: expected {', '.join(sorted(known))}, got {', '.join(sorted(map(str, sampling)))}.")
    kinds = get_type_hints(CondDDPMPipeline.__call__) | {"mixed_precision": str}
    for name, value in sampling.items():
        accepted = {getattr(kind, "__origin__", kind) for kind in get_args(kinds[name]) or (kinds[name],)}
        accepted |= {int} if float in accepted else set()
        accepted |= {list} if tuple in accepted else set()
        if not isinstance(value, tuple(accepted)) or isinstance(value, bool):
            wanted = "numbers" if tuple in accepted else "a text" if str in accepted else "a number"
            raise ValueError(f"sampling.{name}: expected {wanted}, got {value!r}.")


def protocol_of(config: TrainConfig, evaluate: dict) -> Protocol:
    """What a run is measured against: the data that it was trained on."""
    columns = {name: getattr(config, name) for name in ("dataset", "dataset_config_name", "image_column", "label_column")}
    return Protocol(**columns, split=config.train_split, **evaluate)


def read_settings(path: Path, class_: type):
    """A dataclass from YAML.

    Raises:
        ValueError: not YAML, not a mapping, other settings or types than the dataclass has.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: expected YAML in {path}: {' '.join(str(error).split())}") from None
    fields = {field.name: field for field in dataclasses.fields(class_)}
    if not isinstance(settings, dict):
        raise ValueError(f"--config: expected settings in {path}, got {type(settings).__name__}.")
    settings = {name: value for name, value in settings.items() if value is not None}  # an empty entry is the default
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if set(settings) - set(fields) or needed - set(settings):
        raise ValueError(f"--config: expected {', '.join(sorted(fields))} in {path}, got {', '.join(map(str, settings))}.")
    for name, value in settings.items():
        type_ = fields[name].type
        wanted = type_ if isinstance(type_, type) else str  # str | None
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{name}: expected a {wanted.__name__} in {path}, got {value!r}.")
    return class_(**settings)


def read_study(path: Path) -> StudyConfig:
    """From YAML; errors as of `read_settings`."""
    return read_settings(path, StudyConfig)


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
    for name, settings in runs.items():
        run = folder / name
        _train(settings, name, run)
        rows += _measure(config, settings, name, run)
        samples[name] = CondDDPMPipeline.from_pretrained(run / "pipeline").to(process_state().device)
    if not process_state().is_main_process:
        return folder
    with (folder / "study.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    last = _read(folder / rows[-1]["model"] / "evaluations" / f"step-{rows[-1]['step']}.json")
    (folder / "study.md").write_text(_markdown(rows, last), encoding="utf-8")
    quality_curves(rows, last["held_out_real"], folder / "study.png")
    _grid(samples, config.sampling, folder / "samples.png")
    return folder


def _read(file: Path) -> dict:
    return read_json(file.read_bytes(), str(file), "remove it, to have it made anew")


def _train(settings: TrainConfig, name: str, run: Path) -> None:
    """Unless it is done already.

    Raises:
        ValueError: it was done with other settings.
    """
    done, asked = run / "done.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    if done.is_file():
        before = _read(done)
        changed = [key for key in asked if asked[key] != before.get(key)]
        if changed:
            others = ", ".join(changed)
            raise ValueError(f"{run}: expected the settings it was trained with, got other {others}; give another output_dir.")
        return
    print(f"{name}: training", file=sys.stderr)
    train(settings)
    if process_state().is_main_process:
        done.write_text(json.dumps(asked, indent=2) + "\n")


def _measure(config: StudyConfig, settings: TrainConfig, name: str, run: Path) -> list[dict]:
    """A row for each of the moments."""
    steps = snapshot_steps(run / "ema")
    number = min(config.evaluations, len(steps))
    chosen = [steps[round((index + 1) * len(steps) / number) - 1] for index in range(number)]
    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline").to(process_state().device)
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    forward = forward_flop(pipeline.unet)
    minutes, epochs = _course(run)
    rows = []
    for step in chosen:
        output = run / "evaluations" / f"step-{step}.json"
        training = {"step": step, "ema_std": settings.ema_std, "batch_size": settings.batch_size}
        training["study"] = {"evaluate": config.evaluate, "sampling": config.sampling}
        measured = _read(output).get("training") if output.is_file() else None
        if measured != json.loads(json.dumps(training)):  # not yet, or in another way
            print(f"{name}: measuring step {step}", file=sys.stderr)
            pipeline.unet.load_state_dict(combine_snapshots(run / "ema", settings.ema_std, step)[0])
            protocol = protocol_of(settings, config.evaluate)
            evaluate(protocol, output, name, pipeline, training=training, **config.sampling)
        found = _read(output)["samples"]
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
    settings = _read(run / "config.json")
    images = settings["resolved"]["num_images"] - settings["config"]["num_validation_images"]
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        row = read_json(line, f"{run / 'metrics.jsonl'}", "remove that line")
        last = row.get("elapsed_seconds", last)
        minutes[row["step"]] = last / 60
        epochs[row["step"]] = row["step"] * settings["config"]["batch_size"] / images
    return minutes, epochs


def _markdown(rows: list[dict], last: dict) -> str:
    """The table, held-out real images as its last row, and how it was obtained."""
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    cells = lambda row: [f"{row[c]:.3g}" if c == "training_flop" and c in row else text(row.get(c)) for c in _COLUMNS]  # noqa: E731
    lines = [[column.replace("_", " ") for column in _COLUMNS], ["---" for _ in _COLUMNS]]
    count, of_real = last["samples"]["num_images"], last["held_out_real"]["num_images"]
    real = "real images, held out" + (f" ({of_real} of them)" if of_real != count else "")
    lines += map(cells, [*rows, {"model": real, **last["held_out_real"]}])
    quoted = last["protocol"]
    note = (
        f"{quoted['num_samples']} samples against {quoted['split_images']} real images of {quoted['split']}, by"
        f" {quoted['features']}; {quoted['scheduler']}, {quoted['num_inference_steps']} steps, guidance"
        f" {quoted['guidance_scale']}, seeds from {quoted['seed']}. FLOP: three times the forward's, counted."
    )
    table = "".join(f"| {' | '.join(map(markdown, line))} |\n" for line in [lines[0], *lines[2:]])
    head, _, body = table.partition("\n")
    return f"{head}\n| {' | '.join(lines[1])} |\n{body}\n{markdown(' '.join([note, *last['warnings']]))}\n"


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
