"""`cond-ddpm evaluate`: samples against real images, every figure with how it was obtained.

May import: `config, data, sampling, text, visualize, processes`, the pipeline, the rest of `evaluate/`. Images, from a
pipeline or from elsewhere (`external_samples.py`), become features (`extractors.py`), which are folded into statistics
(`statistics.py`, `metrics.py`); next are results.json and two pictures.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.data import LabelledImages, NoSuchSplit, data_fingerprint, load_images, public_name
from cond_ddpm.evaluate.external_samples import UNKNOWN, given_samples, matched
from cond_ddpm.evaluate.extractors import Extractor, make_extractor
from cond_ddpm.evaluate.metrics import (
    extrapolated_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from cond_ddpm.evaluate.statistics import GROUPS, NEIGHBOURS, Tally
from cond_ddpm.models import weights_checksum
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import sample_batches, save_samples
from cond_ddpm.text import read_json, shown
from cond_ddpm.visualize import confusion_picture, nearest, nearest_neighbours

_SAVE_SECONDS = 60  # an interrupted evaluation loses at most this


@dataclasses.dataclass(frozen=True)
class _Real:
    """The real images: what is compared with, what is the limit, and all among which a copy may be found."""

    train: LabelledImages
    test: LabelledImages
    whole: LabelledImages
    test_name: str

    @property
    def equal(self) -> bool:
        """Whether what is held out is what samples are compared with, which is no limit then."""
        return data_fingerprint(self.test) == data_fingerprint(self.train)


def compute_metrics(tally: Tally, reference: Tally, class_names: list[str], training_images: np.ndarray) -> dict:
    """Every figure of some images against the reference's."""
    count, dim = int(tally.all.count), tally.extractor.dim
    found = {
        "num_images": count,
        "frechet_distance": frechet_distance(tally.all, reference.all),
        "frechet_distance_infinite": None,
    }
    if min(int(group.count) for group in tally.groups) >= 4 * dim:  # fewer are not on a line in 1 / N
        found["frechet_distance_infinite"] = extrapolated_distance(tally.groups, reference.all)
    found["kernel_distance"], found["kernel_distance_error"] = kernel_distance(tally.kept, reference.kept)
    found["precision"], found["recall"] = precision_and_recall(tally.kept, reference.kept)
    found["subset"] = [len(tally.kept), len(reference.kept)]
    if tally.extractor.name == "inception":
        found["inception_score"] = inception_score(tally.probabilities, tally.entropy.item(), count)
    asked = tally.confusion.sum(1)
    if asked.any():
        found["label_accuracy"] = tally.confusion.trace().item() / count
    _, _, distances = nearest(tally.images.numpy(), training_images, 1)
    found["nearest_training_distance"] = float(np.median(distances))
    found["classes"] = {}
    for label, name in enumerate(class_names if tally.classes else ()):
        number = int(tally.classes[label].count)
        row = {"num_images": number}
        if number > 1:
            row["frechet_distance"] = frechet_distance(tally.classes[label], reference.classes[label])
        if asked[label]:
            row["accuracy"] = (tally.confusion[label, label] / asked[label]).item()
        found["classes"][name] = row
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def evaluate(
    protocol: EvaluationConfig,
    output: Path,
    model: str | None = None,
    pipeline: CondDDPMPipeline | None = None,
    samples: Path | None = None,
    keep: Path | None = None,
    training: dict | None = None,
    progress: bool = True,
    **arguments,
) -> dict:
    """Measure a pipeline, or samples that are given, and write results.json, with a confusion picture and neighbours beside.

    An evaluation that was interrupted goes on where it was, if it is called again in the same way.

    Args:
        protocol: what is measured and how.
        output: of the JSON; pictures go beside it, named after it.
        model: where the pipeline is from, for the record.
        pipeline: what is measured.
        samples: in place of a pipeline: a folder of CLASS/*.png, or an .npz with `images` (N, H, W, C) uint8 and
            `class_labels` (or `arr_0` and `arr_1`, as others write them).
        keep: where to keep the samples, an .npz or a new folder.
        training: how the model was trained, for the record; if not given, what the model's own results.json says.
        progress: show bars.
        arguments: passed on to sampling: `num_inference_steps`, `guidance_scale`, `batch_size`, `mixed_precision`...

    Returns:
        What results.json holds; on other processes than the main one, only how it was obtained.

    Raises:
        ValueError: samples of another size, range or type than the data set's, or without labels; an extractor whose
            weights are not to be had; a class without real images; what the pipeline raises.
    """
    state = process_state()
    if (pipeline is None) == (samples is None):
        raise ValueError("samples: expected either a model or samples; give one of the two.")
    if samples is not None and (arguments or keep is not None or protocol.repeats > 1):
        names = [*arguments, *(["keep"] if keep else []), *(["repeats"] if protocol.repeats > 1 else [])]
        raise ValueError(f"samples: expected no settings of sampling beside them, got {', '.join(names)}; leave them out.")
    if output.is_dir():
        raise ValueError(f"output: expected a file to write, such as {output / 'results.json'}, got a folder.")
    given = None if samples is None else given_samples(samples, protocol.resolution)
    size, channels = protocol.resolution, protocol.channels
    if pipeline is not None:
        size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    real = _real_images(protocol, size, channels)
    names = real.train.class_names
    if given is not None:
        given = matched(given, real.train)
        protocol = dataclasses.replace(protocol, num_samples=len(given))
    elif pipeline.id2label and list(pipeline.id2label.values()) != names:
        wanted = ", ".join(pipeline.id2label.values())
        raise ValueError(f"dataset: expected the model's classes, {wanted}, got {', '.join(names)}.")
    empty = [name for name, count in zip(names, np.bincount(real.train.labels, minlength=len(names))) if count < 2]
    if empty:
        raise ValueError(f"split: expected two real images or more of each class, got fewer of {', '.join(empty)}.")

    cache = _cache()
    with state.main_process_first():  # the others find what it has cached
        extractor = make_extractor(protocol.features, protocol.weights, real.train, real.test, cache, state.device)
        if given is not None and given.labels[0] == UNKNOWN and extractor.names_classes:
            raise ValueError(
                f"samples: expected a class for each image of {samples}, got none; put them into folders CLASS/*.png, or"
                " `class_labels` into the .npz."
            )
        reference = _real_tally(real.train, len(real.train), extractor, protocol.subset, cache)
        held_out = _real_tally(real.test, protocol.num_samples, extractor, protocol.subset, cache)

    if pipeline is not None and arguments.get("guidance_scale") is None:
        arguments["guidance_scale"] = pipeline.guidance_scale  # for the record
    if training is None and pipeline is not None:
        advice = "remove it, or put it right"
        training = read_json(pipeline.companions.get("results.json", b"{}"), "results.json", advice).get("training")
    quoted = protocol_record(protocol, extractor, real, model, pipeline, samples, arguments)
    results = {"training": training or "not known", "protocol": quoted}
    measured, files, started, earlier = [], [], time.perf_counter(), 0.0
    for repeat in range(protocol.repeats):
        seeds = range(protocol.seed + repeat * protocol.num_samples, protocol.seed + (repeat + 1) * protocol.num_samples)
        labels = [index % len(names) for index in range(protocol.num_samples)]
        made = given
        if pipeline is not None:
            guide = arguments.get("guide")
            called = {**arguments, "guide": None if guide is None else weights_checksum(guide.unet)}
            settings = [weights_checksum(pipeline.unet), pipeline.scheduler.config, sorted(called.items()), seeds.start]
        if keep is not None:
            where = keep if protocol.repeats == 1 else keep.with_name(f"{keep.stem}-{repeat}{keep.suffix}")
            record, before = save_samples(
                pipeline, labels, seeds, where, progress=progress, resume_key=_hash([settings, names]), **arguments
            )
            files, earlier = files + record, earlier + before
            made = matched(given_samples(where, size), real.train)
        if made is not None:
            settings = [data_fingerprint(made)]
            stream = lambda done: _share(made, done, state)  # noqa: B023, E731
        else:
            stream = lambda done: _sampled(pipeline, labels, seeds, done, progress, arguments)  # noqa: B023, E731
        key = [settings, extractor.quoted, protocol.num_samples, protocol.subset, state.num_processes]
        tally, of_repeat, before = _tally_of(stream, extractor, reference, output, key, state)
        files, earlier = files + of_repeat, earlier + before
        if state.is_main_process:
            measured.append(compute_metrics(tally, reference, names, real.whole.images))
    if state.is_main_process:
        results["samples"], results["samples_std"] = _mean_and_deviation(measured)
        # Samples may be copies of any image that was trained on; held-out images are no copies of themselves.
        results["held_out_real"] = compute_metrics(held_out, reference, names, real.train.images)
        halves = [sum(part[1:], part[0]) for part in (held_out.groups[: GROUPS // 2], held_out.groups[GROUPS // 2 :])]
        if min(int(half.count) for half in halves) > 1:
            results["held_out_real"]["frechet_distance_between_halves"] = frechet_distance(*halves)
        results["seconds"] = time.perf_counter() - started + earlier
        results["warnings"] = _warnings(results, extractor.dim, real)
        _write(output, results, tally, names, real.whole.images)
        for file in files:
            file.unlink(missing_ok=True)
    state.wait_for_everyone()
    return results


def _write(output: Path, results: dict, tally: Tally, names: list[str], training_images: np.ndarray) -> None:
    """results.json, and of the last repeat the confusion of classes and the neighbours of a sample of each class."""
    if tally.extractor.names_classes and tally.confusion.any():
        confusion_picture(tally.confusion.numpy(), names, output.with_name(f"{output.stem}-confusion.png"))
    labels = tally.image_rows[:, 1].tolist()
    shown = sorted({label: labels.index(label) for label in labels}.items()) if labels[0] != UNKNOWN else []
    rows = [row for _, row in shown[:10]] or list(range(min(10, len(labels))))
    captions = [names[label] for label, _ in shown[:10]] or [f"sample {row}" for row in rows]
    picture = output.with_name(f"{output.stem}-neighbours.png")
    columns = min(5, len(training_images))
    nearest_neighbours(tally.images[rows].numpy(), captions, training_images, picture, columns)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, output)


def summary(results: dict) -> str:
    """A table of samples beside held-out real images, a row a class, and the warnings."""
    samples, real, deviations = results["samples"], results["held_out_real"], results["samples_std"] or {}
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = [f"{'':33} {'samples':>20} {'real, held out':>15}"]
    for name, value in (real | samples).items():
        if name not in ("classes", "subset"):
            value = samples.get(name)
            spread = f" +- {text(deviations[name])}" if name in deviations else ""
            lines.append(f"{name.replace('_', ' '):33} {text(value) + spread:>20} {text(real.get(name)):>15}")
    if samples["classes"]:
        layout = "{:20} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7}"
        lines += ["", layout.format("class", "accuracy", "real", "distance", "real", "images", "real")]
        for name, row in samples["classes"].items():
            both = (row, real["classes"][name])
            kinds = ("accuracy", "frechet_distance", "num_images")
            cells = [text(found.get(figure)) for figure in kinds for found in both]
            lines.append(layout.format(shown(name), *cells))
    return "\n".join([*lines, *(f"warning: {shown(warning)}" for warning in results["warnings"])])


# The real images


def _real_images(protocol: EvaluationConfig, size: int, channels: int | None) -> _Real:
    columns = (protocol.dataset_config_name, protocol.image_column, protocol.label_column)
    whole = train = load_images(protocol.dataset, protocol.split, size, channels, *columns)
    name = protocol.test_split or "test"
    try:
        test = load_images(protocol.dataset, name, size, channels, *columns)
    except NoSuchSplit:
        if protocol.test_split is not None:
            raise
        order = np.random.default_rng(0).permutation(len(whole))
        parts = (np.sort(order[len(whole) // 10 :]), np.sort(order[: len(whole) // 10]))
        train, test = (LabelledImages(whole.images[part], whole.labels[part], whole.class_names) for part in parts)
        name = f"a tenth of {protocol.split}, held out also from what samples are compared with"
    if test.class_names != train.class_names:
        raise ValueError(
            f"test_split: expected the classes {', '.join(train.class_names)}, got {', '.join(test.class_names)}."
        )
    return _Real(train, test, whole, name)


def _real_tally(data: LabelledImages, count: int, extractor: Extractor, subset: int, cache: Path) -> Tally:
    """Of as many real images, at random; from the cache, if these have been seen by this extractor before."""
    tally = Tally(extractor, len(data.class_names), subset, data.images.shape[1:])
    quoted = {name: value for name, value in extractor.quoted.items() if name != "held_out_accuracy"}
    count = min(count, len(data))
    file = cache / f"real-{_hash([2, data_fingerprint(data), count, quoted, subset, GROUPS, NEIGHBOURS])}.safetensors"
    if file.is_file():
        return tally.load(load_file(file))
    order = np.random.default_rng(0).permutation(len(data))[:count]  # data sets may be sorted by class
    for start in range(0, count, 500):
        indices = order[start : start + 500]
        tally.update(range(start, start + len(indices)), data.images[indices], data.labels[indices])
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tally.tensors().items()}, partial)
    os.replace(partial, file)
    return tally


def _cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "cond_ddpm" / "evaluate"


# The samples


def _share(given: LabelledImages, done: int, state) -> Iterator[tuple[list[int], np.ndarray, np.ndarray | None]]:
    """This process's share of given samples, in random order, after the first `done` batches of it."""
    order = np.random.default_rng(0).permutation(len(given.images))
    starts = range(0, len(order), 500)[state.process_index :: state.num_processes][done:]
    for start in starts:
        rows = np.arange(start, min(start + 500, len(order)))
        labels = given.labels[order[rows]]
        yield rows.tolist(), given.images[order[rows]], None if labels[0] == UNKNOWN else labels


def _sampled(pipeline, labels, seeds, done: int, progress: bool, arguments: dict) -> Iterator:
    """This process's share of samples to be made, after the first `done` batches of it."""
    for rows, images in sample_batches(pipeline, labels, seeds, progress=progress, skip=done, **arguments):
        yield rows, images, [labels[row] for row in rows]


def _tally_of(stream, extractor: Extractor, like: Tally, output: Path, key: list, state) -> tuple[Tally, list[Path], float]:
    """Fold a stream, saved now and then so that an interrupted evaluation goes on; merged on the main process.

    Returns:
        The tally, the files to remove when its figures have been written, and the seconds that an interrupted evaluation
        took before.
    """
    new = lambda: Tally(extractor, like.num_classes, like.subset, tuple(like.images.shape[1:]))  # noqa: E731
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [output.with_name(f".{output.stem}-{_hash(key)}-{rank}.safetensors") for rank in range(state.num_processes)]
    mine, tally, done, earlier = files[state.process_index], new(), 0, 0.0
    if mine.is_file():
        tensors = load_file(mine)
        tally.load(tensors)
        done, earlier = int(tensors["done"]), float(tensors.get("seconds", 0.0))

    def save():
        seconds = earlier + time.perf_counter() - started
        tensors = {**tally.tensors(), "done": torch.tensor(done), "seconds": torch.tensor(seconds, dtype=torch.float64)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, mine.with_suffix(".partial"))
        os.replace(mine.with_suffix(".partial"), mine)

    started = saved = time.perf_counter()
    for rows, images, labels in stream(done):
        tally.update(rows, images, labels)
        done += 1
        if time.perf_counter() - saved > _SAVE_SECONDS:
            save()
            saved = time.perf_counter()
    save()
    state.wait_for_everyone()
    if state.is_main_process and len(files) > 1:
        tally = new()
        for file in files:
            tally.merge(new().load(load_file(file)))
    return tally, files, earlier


# The record


def protocol_record(protocol, extractor, real: _Real, model, pipeline, samples, arguments) -> dict:
    record = {
        **dataclasses.asdict(protocol),
        "dataset": public_name(protocol.dataset),
        "weights": public_name(protocol.weights),
        "features": public_name(protocol.features),
        "test_split": real.test_name,
        "split_images": len(real.train),
        "test_split_images": len(real.test),
        "split_fingerprint": data_fingerprint(real.train),
        "feature_extractor": extractor.quoted,
        "frechet_distance_infinite": f"a line in 1/N through {GROUPS} parts of the samples and their unions",
        "nearest_training_distance": (
            f"median over {NEIGHBOURS} images, root mean square over pixels, mirrored too; samples among"
            f" {len(real.whole)} real images, held-out ones among {len(real.train)}"
        ),
        "frechet_distance_between_halves": "each of half as many images, so biased upward more",
        "seconds": "of all parts, where an evaluation was interrupted",
        "inception_score": "of one split" if extractor.name == "inception" else None,
        "versions": {"cond_ddpm": version("cond_ddpm"), "torch": torch.__version__},
        "commit": _commit(),
    }
    if samples is not None:
        for name in ("seed", "repeats"):
            record.pop(name)
        return {**record, "samples": samples.name}
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(CondDDPMPipeline.__call__).parameters.items()
        if name in ("guidance_scale", "guidance_interval", "guidance_rescale", "sampler", "timestep_spacing", "batch_size")
    }
    called = {**defaults, "mixed_precision": "no", **arguments}
    scheduler = pipeline.make_scheduler(called["sampler"], called["timestep_spacing"])
    plain = (int, float, str, bool, type(None))
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_") and isinstance(value, plain)}
    guide = called.pop("guide", None)
    record |= {
        "model": public_name(model),
        "weights_checksum": weights_checksum(pipeline.unet),
        **called,
        "num_inference_steps": called.get("num_inference_steps") or pipeline.default_steps(scheduler),
        "scheduler": type(scheduler).__name__,
        "scheduler_config": {name: str(value) if value in (math.inf, -math.inf) else value for name, value in config.items()},
        "compiled": getattr(pipeline.unet, "_compiled_call_impl", None) is not None,  # as by --fast: other roundings
        "guide_checksum": None if guide is None else weights_checksum(guide.unet),
        "seeds": [protocol.seed, protocol.seed + protocol.num_samples * protocol.repeats - 1],
    }
    return record


def _warnings(results: dict, dim: int, real: _Real) -> list[str]:
    found, warnings = results["samples"], []
    if found["num_images"] < 10_000:
        unbiased = "kernel_distance" + (
            " or frechet_distance_infinite" if found["frechet_distance_infinite"] is not None else ""
        )
        warnings.append(
            f"{found['num_images']} samples: a Frechet distance of so few is biased upward; compare it with others of as many"
            f" only, or quote {unbiased}."
        )
    limit = results["held_out_real"]
    if limit["num_images"] != found["num_images"]:
        warnings.append(
            f"{limit['num_images']} held-out real images beside {found['num_images']} samples: of fewer images a Frechet"
            " distance is biased upward more, so that the limit looks further away than it is; recall is of other numbers,"
            " too. kernel_distance, precision and accuracy can be compared."
        )
    others = [name for name, row in found["classes"].items() if row["num_images"] != limit["classes"][name]["num_images"]]
    if others:
        warnings.append(
            f"the numbers of samples and of held-out real images differ in {len(others)} of {len(found['classes'])} classes"
            " (num_images): of fewer images a class's Frechet distance is biased upward more."
        )
    if real.equal:
        warnings.append("the held-out real images are those that samples are compared with: their figures are no limit.")
    for what, figures_ in (("samples", found), ("held-out real images", results["held_out_real"])):
        if figures_["num_images"] <= dim:
            warnings.append(f"{figures_['num_images']} {what}: their covariance is singular in {dim} dimensions; take more.")
        few = [name for name, row in figures_["classes"].items() if row["num_images"] <= dim]
        if few:
            warnings.append(f"at most {dim} {what} of {', '.join(few)}: singular covariances in {dim} dimensions.")
    if real.train is not real.whole:
        warnings.append(f"there is no split 'test': the limit is of {real.test_name}.")
    return warnings


def _mean_and_deviation(measured: list[dict]) -> tuple[dict, dict | None]:
    if len(measured) == 1:
        return measured[0], None
    mean, deviation = {}, {}
    for name, first in measured[0].items():
        values = [figures[name] for figures in measured]
        if isinstance(first, dict):
            mean[name], deviation[name] = _mean_and_deviation(values)
        elif isinstance(first, float) and None not in values:
            mean[name], deviation[name] = float(np.mean(values)), float(np.std(values, ddof=1))
        else:
            mean[name] = first
    return mean, deviation


def _hash(what) -> str:
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]


def _commit() -> str | None:
    """Of the checkout that this file is in, if it is one of ours and not of something around an installed package."""
    here = Path(__file__)
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True)  # noqa: E731
    try:
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40").stdout.strip() or None
    except OSError:
        return None
