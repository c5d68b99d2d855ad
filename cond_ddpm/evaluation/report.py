"""The report of an evaluation: the record in results.json, its warnings, its pictures and the printed summary.

May import: `config, data, files, fingerprints, hardware, hub, text, visualize`, the pipeline, `evaluation.real_images` and
what it may import. Next in the data flow: `hub/card.py` reads results.json for the model card.
"""

import dataclasses
import inspect
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cond_ddpm import __version__
from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.data import data_fingerprint, public_name
from cond_ddpm.evaluation.external_samples import UNKNOWN
from cond_ddpm.evaluation.extractors import Extractor
from cond_ddpm.evaluation.real_images import RealImages
from cond_ddpm.evaluation.statistics import GROUPS, NEIGHBOURS, Tally
from cond_ddpm.files import write
from cond_ddpm.fingerprints import weights_checksum
from cond_ddpm.hardware import is_compiled
from cond_ddpm.hub.card import copies_text
from cond_ddpm.hub.measured import judge_text, usefulness_text
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.text import shown
from cond_ddpm.visualize import confusion_picture, nearest_neighbours


def protocol_record(protocol: EvaluationConfig, extractor: Extractor, real: RealImages) -> dict[str, Any]:
    """How images were measured: the part of `protocol` in results.json that is the same for a model and for given samples."""
    return {
        **dataclasses.asdict(protocol),
        "dataset": public_name(protocol.dataset),
        "weights": public_name(protocol.weights),
        "features": public_name(protocol.features),
        "test_split": real.held_out_name,
        "split_images": len(real.train),
        "test_split_images": len(real.held_out),
        "split_fingerprint": data_fingerprint(real.train),
        "feature_extractor": extractor.record,
        "frechet_distance_infinite": f"extrapolated by a line in 1/N through {GROUPS} parts of the samples and their unions",
        "nearest_training_distance": (
            f"median over {NEIGHBOURS} images of the root mean square difference over pixels to the nearest image, mirrored or"
            f" not; for samples among {len(real.whole)} real images, for held-out ones among {len(real.train)}"
        ),
        "frechet_distance_between_halves": "of the held-out images; each half has half as many, so it is biased upward more",
        "seconds": "including those before an interruption",
        "inception_score": "over all images at once" if extractor.name == "inception" else None,
        "versions": {"cond_ddpm": __version__, "torch": torch.__version__},
        "commit": _commit(),
    }


def sampling_record(
    protocol: EvaluationConfig, model: str | None, pipeline: CondDDPMPipeline, arguments: dict
) -> dict[str, Any]:
    """Which model was measured and how its samples were made: the rest of what is needed to obtain the same numbers."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(CondDDPMPipeline.__call__).parameters.items()
        if name in ("guidance_scale", "guidance_interval", "guidance_rescale", "sampler", "timestep_spacing", "batch_size")
    }
    settings = {**defaults, "mixed_precision": "no", **arguments}
    assert protocol.num_samples is not None  # once it is known what the data warrant
    scheduler = pipeline.make_scheduler(settings["sampler"], settings["timestep_spacing"])
    plain = (int, float, str, bool, type(None))
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_") and isinstance(value, plain)}
    guide = settings.pop("guide", None)
    return {
        "model": public_name(model),
        "weights_checksum": weights_checksum(pipeline.unet),
        **settings,
        "num_inference_steps": settings.get("num_inference_steps") or pipeline.default_steps(scheduler),
        "scheduler": type(scheduler).__name__,
        "scheduler_config": {name: str(value) if value in (math.inf, -math.inf) else value for name, value in config.items()},
        "compiled": is_compiled(pipeline.unet),  # as by --fast, which rounds differently
        "guide_checksum": None if guide is None else weights_checksum(guide.unet),
        "seeds": [protocol.seed, protocol.seed + protocol.num_samples * protocol.repeats - 1],
    }


def list_warnings(results: dict, dim: int, real: RealImages) -> list[str]:
    """What a reader of the metrics must know, in sentences, which go into results.json, the summary and the model card."""
    samples, held_out, warnings = results["samples"], results["held_out_real"], []
    if results["protocol"].get("judges_not_trusted"):
        reason = results["protocol"]["judges_not_trusted"]
        own_features = results["protocol"].get("features") == "classifier"
        warnings.append(
            f"label accuracies and the figures of the classes are left out: {reason}; with more real images it becomes better."
            + (" The distances, precision and recall rest on its features, and say little." if own_features else "")
        )
    if results.get("usefulness", {}).get("held_out_may_be_trained_on"):
        warnings.append(
            "usefulness: there is no test split, and which images the model was not trained on is not known; if it was trained"
            " on those that the classifiers are tested on, its copies of them make it look useful."
        )
    if samples["num_images"] < 10_000:
        unbiased = "kernel_distance"
        if samples["frechet_distance_infinite"] is not None:
            unbiased += " or frechet_distance_infinite"
        warnings.append(
            f"{samples['num_images']} samples: the Fréchet distance of so few samples is biased upward; compare it only with"
            f" that of as many samples, or report {unbiased}."
        )
    if held_out["num_images"] != samples["num_images"]:
        warnings.append(
            f"{held_out['num_images']} held-out real images, but {samples['num_images']} samples: with fewer images the"
            " Fréchet distance is biased upward more, so the reference looks worse than it is, and recall is not comparable"
            " either. kernel_distance, precision and accuracy are comparable."
        )
    different = [n for n, row in samples["classes"].items() if row["num_images"] != held_out["classes"][n]["num_images"]]
    if different:
        warnings.append(
            f"the numbers of samples and of held-out real images (num_images) differ in {len(different)} of"
            f" {len(samples['classes'])} classes: with fewer images the Fréchet distance of a class is biased upward more."
        )
    if real.held_out_is_train:
        warnings.append(
            "the held-out real images are the same images that samples are compared with, so they are no reference."
        )
    for what, metrics in (("samples", samples), ("held-out real images", held_out)):
        if metrics["num_images"] <= dim:
            warnings.append(f"{metrics['num_images']} {what}: their covariance is singular in {dim} dimensions; use more.")
        few = [name for name, row in metrics["classes"].items() if row["num_images"] <= dim]
        if few:
            warnings.append(f"at most {dim} {what} of {', '.join(few)}: singular covariances in {dim} dimensions.")
    if real.train is not real.whole:
        warnings.append(f"there is no split 'test': the reference is {real.held_out_name}.")
    return warnings


def mean_and_deviation(measured: list[dict]) -> tuple[dict, dict | None]:
    """Mean and standard deviation of each metric over repeats; for a single repeat, its metrics and None."""
    if len(measured) == 1:
        return measured[0], None
    mean: dict[str, Any] = {}
    deviation: dict[str, Any] = {}
    for name, first in measured[0].items():
        values = [metrics[name] for metrics in measured]
        if isinstance(first, dict):
            mean[name], deviation[name] = mean_and_deviation(values)
        elif isinstance(first, float) and None not in values:
            mean[name], deviation[name] = float(np.mean(values)), float(np.std(values, ddof=1))
        else:
            mean[name] = first
    return mean, deviation


def write_report(output: Path, results: dict, tally: Tally, class_names: list[str], training_images: np.ndarray) -> None:
    """Write results.json, and pictures of the last repeat: confused classes, and the neighbours of a sample of each class."""
    confusion = output.with_name(f"{output.stem}-confusion.png")
    if results["samples"].get("label_accuracy") is not None:  # there are judges, and they are trusted
        confusion_picture(tally.confusion[tally.strictest].numpy(), class_names, confusion)
    else:  # one of an earlier evaluation would be shown beside results that do not have it
        confusion.unlink(missing_ok=True)
    labels = tally.image_rows[:, 1].tolist()
    first_of_class = sorted({label: labels.index(label) for label in labels}.items()) if labels[0] != UNKNOWN else []
    rows = [row for _, row in first_of_class[:10]] or list(range(min(10, len(labels))))
    names = [class_names[label] for label, _ in first_of_class[:10]] or [f"sample {row}" for row in rows]
    picture = output.with_name(f"{output.stem}-neighbours.png")
    columns = min(5, len(training_images))
    nearest_neighbours(tally.images[rows].numpy(), names, training_images, picture, columns)
    write(output, json.dumps(results, indent=2) + "\n")


def summary(results: dict) -> str:
    """A table of the metrics of samples and of held-out real images, a table of the classes, and the warnings."""
    samples, real, deviations = results["samples"], results["held_out_real"], results["samples_std"] or {}
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = [f"{'':33} {'samples':>20} {'real, held out':>15}"]
    for name in real | samples:
        if name not in ("classes", "subset", "label_accuracies"):
            spread = f" +- {text(deviations[name])}" if name in deviations else ""
            lines.append(f"{name.replace('_', ' '):33} {text(samples.get(name)) + spread:>20} {text(real.get(name)):>15}")
    for judge in samples.get("label_accuracies") or ():
        cells = [text(part["label_accuracies"][judge]) for part in (samples, real)]
        lines.append(f"{'label accuracy, ' + judge:33} {cells[0]:>20} {cells[1]:>15}")
    if samples["classes"]:
        layout = "{:20} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7}"
        lines += ["", layout.format("class", "accuracy", "real", "distance", "real", "images", "real")]
        for name, row in samples["classes"].items():
            both = (row, real["classes"][name])
            cells = [text(part.get(metric)) for metric in ("accuracy", "frechet_distance", "num_images") for part in both]
            lines.append(layout.format(shown(name), *cells))
    judge = judge_text(results["protocol"]["feature_extractor"])
    lines += ["", f"judge: {judge}"] if judge else []
    lines += [f"copies: {copies_text(results['copies'])}"] if results.get("copies") else []
    lines += [f"usefulness: {usefulness_text(results['usefulness'])}"] if results.get("usefulness") else []
    return "\n".join([*lines, *(f"warning: {shown(warning)}" for warning in results["warnings"])])


def _commit() -> str | None:
    """The commit of the checkout that this file is tracked in; None for an installed package."""
    here = Path(__file__)
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True)  # noqa: E731
    try:
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40").stdout.strip() or None
    except OSError:
        return None
