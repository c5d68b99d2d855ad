"""The report of a run: one page, report.html, with its pictures inside it, from the files of the run's folder alone.

May import: `files, text, visualize.curves`. Nothing is next: people open it. Training writes it at the end, an evaluation
writes it anew, and so does `cond-ddpm report`. Runs of earlier versions lack some of the files; what is missing is left out.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any

from cond_ddpm.files import read_lines, write
from cond_ddpm.text import read_json, shown
from cond_ddpm.visualize.curves import training_curve

_METRICS = {  # in results.json -> name, what is better, whether it is a share
    "frechet_distance": ("Fréchet distance", "lower is better; depends on the number of samples", False),
    "kernel_distance": ("kernel distance (KID)", "lower is better", False),
    "label_accuracy": ("recognised as the class asked for", "higher is better", True),
    "recognised_as_no_class": ("recognised as no class", "lower is better", True),
    "precision": ("precision: samples that look like real images", "higher is better", True),
    "recall": ("recall: real images that look like samples", "higher is better", True),
    "nearest_training_distance": ("median distance to the nearest training image", "far below that of real: copies", False),
}
_OF_EVALUATION = {  # what is behind the stem of results.json -> what the picture shows
    "confusion": "Confusion: which share of each requested class (row) is recognised as which class (column).",
    "copies": "Copies: the samples that are nearest to a training image, each above that image.",
    "neighbours": "Neighbours: a sample of each class, and the training images that are nearest to it.",
}
_ADVICE = "remove or correct it"


def run_report(run: Path, most: int = 8) -> Path:
    """Write report.html into a run's folder.

    Args:
        run: the folder.
        most: epochs whose samples are shown, evenly spaced, the last among them.

    Returns:
        The path of the page.

    Raises:
        ValueError: this is no run's folder; a file of it has other content than a run writes.
    """
    if not any((run / name).is_file() for name in ("config.json", "pipeline/model_index.json")):
        raise ValueError(
            f"run: expected a run folder, with a config.json, got {run}; --output_dir of `cond-ddpm train` names it."
        )
    from jinja2 import Environment

    record, results = _json(run / "config.json"), _json(run / "pipeline" / "results.json")
    training = _part(results, "training")
    sections = [_data(run), _samples(run, most), _losses(run), _guidance(run), _evaluation(run)]
    page = Environment(autoescape=True).from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    html = page.render(
        name=shown(run.resolve().name),
        summary=_summary(training),
        sections=[section for section in sections if section],
        facts=_facts(record, training),
    )
    write(run / "report.html", html)
    return run / "report.html"


def _data(run: Path) -> dict | None:
    pictures = _pictures(
        run,
        {
            "first_batch.png": "The first batch: the images, with the classes that the network is told, and the same with the"
            " noise of their timestep t, which is what it gets.",
            "data.png": "The training images of each class, as the network sees them.",
        },
    )
    text = (run / "data.txt").read_text(encoding="utf-8") if (run / "data.txt").is_file() else ""
    return _section("What the network saw", pictures, text="\n".join(map(shown, text.partition("\n\n")[0].splitlines())))


def _samples(run: Path, most: int) -> dict | None:
    final = _pictures(run, {"pipeline/samples.png": "Samples of the pipeline, a row for each class."})
    epochs = sorted((run / "samples").glob("epoch_*.png"))
    epochs = [epochs[i] for i in sorted({round((i + 1) * len(epochs) / most) - 1 for i in range(most)}) if i >= 0]
    strip = [{"source": _source(_smaller(path)), "text": f"Samples after epoch {int(path.stem[6:])}"} for path in epochs]
    return _section("Samples", final, strip=strip)


def _losses(run: Path) -> dict | None:
    text = "Training loss, validation loss and learning rate, step by step."
    rows = read_lines(run / "metrics.jsonl")
    if any("loss" in row for row in rows):
        drawn = io.BytesIO()
        training_curve(rows, drawn)
        return _section("Losses", [{"source": _source(drawn.getvalue()), "text": text}])
    return _section("Losses", _pictures(run, {"pipeline/loss.png": "Training and validation loss over the epochs."}))


def _guidance(run: Path) -> dict | None:
    text = "Quality against the guidance scale: how strongly the class is followed."
    names = ("pipeline/guidance.png", "pipeline/results-guidance.png", "guidance.png")
    return _section("Guidance", _pictures(run, dict.fromkeys(names, text))[:1])


def _evaluation(run: Path) -> dict:
    files = [path for folder in (*sorted(run.glob("pipeline*")), run) for path in sorted(folder.glob("*.json"))]
    found = [{"title": str(path.relative_to(run)), **one} for path in files if (one := _one_evaluation(path))]
    model = run / "pipeline"
    return {
        "title": "Evaluation",
        "id": "evaluation",
        "evaluations": found,
        "missing": "" if found else "It has not been measured yet. This measures it and writes this page anew:",
        "command": f"cond-ddpm evaluate --model {model} --dataset DATASET --output {model / 'results.json'}",
    }


def _one_evaluation(path: Path) -> dict | None:
    """What is shown of a results.json; None if it is another file, or of training alone."""
    try:
        results = _json(path)
    except ValueError:  # somebody else's
        return None
    samples, real, protocol = (_part(results, name) for name in ("samples", "held_out_real", "protocol"))
    if not samples or not protocol:
        return None
    metrics = [
        {"name": name, "better": better, "samples": _number(samples[key], share), "real": _number(real.get(key), share)}
        for key, (name, better, share) in _METRICS.items()
        if samples.get(key) is not None
    ]
    for kind in ("pixels", "features"):
        found = _part(_part(results, "copies"), kind)
        if found:
            name = f"copies: nearer to a training image, in {kind}, than 99% of real images are"
            row = {"samples": _number(found.get("share"), True), "real": _number(found.get("by_chance"), True)}
            metrics.append({"name": name, "better": "about as by chance, which is what real images have", **row})
    useful = _part(_part(results, "usefulness"), "accuracy")
    if useful:
        row = {"samples": _number(useful.get("samples"), True), "real": _number(useful.get("real"), True)}
        metrics.append({"name": "usefulness: accuracy of a classifier trained on them", "better": "higher is better", **row})
    classes, real_classes = _part(samples, "classes"), _part(real, "classes")
    rows = []
    for name in classes:
        row, of_real = _part(classes, name), _part(real_classes, name)
        accuracy: Any = row.get("accuracy")
        rows.append(
            {
                "name": shown(name),
                "samples": _number(accuracy, True),
                "width": round(100 * min(max(accuracy, 0), 1)) if _is_number(accuracy) else 0,
                "real": _number(of_real.get("accuracy"), True),
                "distance": _number(row.get("frechet_distance")),
            }
        )
    facts = {
        "samples": samples.get("num_images"),
        "data": protocol.get("dataset"),
        "judge": protocol.get("features"),
        "steps": protocol.get("num_inference_steps"),
        "guidance": protocol.get("guidance_scale"),
    }
    warnings = results.get("warnings")
    names = {f"{path.stem}-{kind}.png": text for kind, text in _OF_EVALUATION.items()}
    return {
        "facts": "; ".join(f"{name}: {_text(value)}" for name, value in facts.items() if value is not None),
        "warnings": [shown(str(text)) for text in warnings] if isinstance(warnings, list) else [],
        "metrics": metrics,
        "classes": rows,
        "pictures": _pictures(path.parent, names),
    }


def _summary(training: dict) -> str:
    if not training:
        return "The best epoch's weights and their record are not there yet."
    best, loss = _text(training.get("epoch")), _number(training.get("val_loss"))
    return f"Trained on {_text(training.get('dataset'))}. The best weights are of epoch {best}, validation loss {loss}."


def _facts(record: dict, training: dict) -> list[tuple[str, str]]:
    config, resolved = _part(record, "config") or _part(training, "config"), _part(record, "resolved")
    rows = {
        "data set": training.get("dataset") or config.get("dataset"),
        "training images": training.get("num_images") or resolved.get("num_images"),
        "network": config.get("model"),
        "objective": config.get("prediction_type"),
        "optimizer": config.get("optimizer"),
        "batch size": config.get("batch_size"),
        "steps of the best weights": training.get("step"),
        "images seen": training.get("images_seen"),
        "training FLOP": training.get("training_flop"),
        "minutes of training": training.get("minutes"),
        "device": training.get("device") or resolved.get("device"),
        "precision": training.get("mixed_precision") or resolved.get("mixed_precision"),
        "seed": config.get("seed"),
    }
    return [(name, _text(value)) for name, value in rows.items() if value is not None]


def _section(title: str, pictures: list[dict], **more) -> dict | None:
    """None, if there is nothing to show."""
    if not pictures and not any(more.values()):
        return None
    return {"title": title, "id": title.split()[0].lower(), "pictures": pictures, **more}


def _pictures(folder: Path, names: dict[str, str]) -> list[dict]:
    """Those of the pictures that are there, each as the source of an image and its alternative text."""
    files = {folder / name: text for name, text in names.items()}
    return [{"source": _source(path.read_bytes()), "text": text} for path, text in files.items() if path.is_file()]


def _source(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _smaller(path: Path, width: int = 600) -> bytes:
    """A grid of samples at about two pixels for each pixel of an image, so that the page stays small."""
    from PIL import Image

    picture, file = Image.open(path).convert("RGB"), io.BytesIO()
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _json(path: Path) -> dict:
    return read_json(path.read_bytes(), str(path), _ADVICE) if path.is_file() else {}


def _part(found: dict, name: str) -> dict:
    part = found.get(name)
    return part if isinstance(part, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, share: bool = False) -> str:
    if not _is_number(value):
        return "not known"
    if share:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) and value < 1e9 else f"{value:.3g}"


def _text(value: Any) -> str:
    return _number(value) if _is_number(value) else "not known" if value is None else shown(str(value))[:80]
