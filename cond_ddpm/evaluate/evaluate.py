"""`cond-ddpm evaluate`: samples against real images, every figure with how it was obtained.

May import: `data, sampling, visualize, processes`, the pipeline, the rest of `evaluate/`. Images, from a pipeline or given,
become features (`features.py`), which are folded into statistics (`metrics.py`); next are results.json and two pictures.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cond_ddpm.data import LabelledImages, load_images
from cond_ddpm.evaluate.classifier import fingerprint
from cond_ddpm.evaluate.features import Extractor, make_extractor
from cond_ddpm.evaluate.metrics import (
    Moments,
    extrapolated_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import sample_batches, save_samples
from cond_ddpm.visualize import confusion_picture, nearest, nearest_neighbours

_GROUPS = 5  # disjoint parts of the samples, from which FD is extrapolated to infinitely many
_NEIGHBOURS = 1000  # samples whose nearest training image is looked for
_UNKNOWN = -1  # label of a sample of which no class is told
_SAVE_SECONDS = 60  # an interrupted evaluation loses at most this


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is measured and how; all of it goes into results.json.

    Args:
        dataset: as for training; a model is measured at its own resolution and channels.
        split: real images that the samples are compared with.
        test_split: real images that were not trained on: the same figures of them are the limit. Where there is none, a
            tenth of `split` is held out, also from the comparison.
        features: `classifier` (trained here on `split`), `inception`, `dinov2`, or the folder of a DINOv2.
        weights: of Inception or DINOv2, where they cannot be downloaded.
        num_samples: with balanced labels; the literature has 50,000.
        seed: of the first sample; the i-th has seed + i.
        repeats: evaluations with other seeds, for a mean and a standard deviation.
        subset: samples, and real images, that KID, precision and recall are of.
        resolution, channels: of the data set, where samples are given in place of a model.
    """

    dataset: str
    split: str = "train"
    test_split: str = "test"
    features: str = "classifier"
    weights: str | None = None
    num_samples: int = 50_000
    seed: int = 0
    repeats: int = 1
    subset: int = 5000
    resolution: int = 32
    channels: int | None = None

    def __post_init__(self):
        for name, least in (("num_samples", 2), ("repeats", 1), ("subset", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}.")


class Tally:
    """All that is kept of a stream of images: it does not grow with their number."""

    def __init__(self, extractor: Extractor, num_classes: int, subset: int, image_shape: tuple[int, int, int]):
        self.extractor, self.num_classes, self.subset = extractor, num_classes, subset
        dim = extractor.dim
        self.groups = [Moments(dim) for _ in range(_GROUPS)]
        by_class = num_classes if num_classes * dim**2 * 8 <= 1e9 else 0
        self.classes = [Moments(dim) for _ in range(by_class)]
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # asked for, seen
        self.probabilities, self.entropy = torch.zeros(0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        self.rows, self.kept = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim)
        self.image_rows, self.images = torch.zeros(0, dtype=torch.int64), torch.zeros((0, *image_shape), dtype=torch.uint8)

    def update(self, rows: Sequence[int], images: np.ndarray, labels: Sequence[int] | None) -> None:
        """Fold in images (B, C, H, W) uint8, by their place among all, with the classes asked for."""
        features, logits = self.extractor.extract(images)
        features, rows = features.float().cpu(), torch.as_tensor(rows)
        if not features.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity; are the extractor's weights whole?")
        for group in range(_GROUPS):
            mine = rows % _GROUPS == group
            self.groups[group].update(features[mine])
        if labels is not None:
            labels = torch.as_tensor(labels)
            for label in labels.unique().tolist() if self.classes else ():
                self.classes[label].update(features[labels == label])
        if logits is not None:
            log_p = logits.double().cpu().log_softmax(1)
            self.probabilities = (self.probabilities if len(self.probabilities) else 0) + log_p.exp().sum(0)
            self.entropy += (log_p.exp() * log_p).sum()
            if self.extractor.names_classes and labels is not None:
                pairs = labels * self.num_classes + log_p.argmax(1)
                self.confusion += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.confusion)
        few = rows < self.subset
        self.rows, self.kept = torch.cat([self.rows, rows[few]]), torch.cat([self.kept, features[few]])
        few = rows < _NEIGHBOURS
        self.image_rows = torch.cat([self.image_rows, rows[few]])
        self.images = torch.cat([self.images, torch.from_numpy(np.ascontiguousarray(images))[few]])

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("confusion", "probabilities", "entropy", "rows", "kept", "image_rows", "images")
        tensors = {name: getattr(self, name) for name in names}
        for what in ("groups", "classes"):
            for number, moments in enumerate(getattr(self, what)):
                tensors |= {f"{what}.{number}.{name}": tensor for name, tensor in moments.tensors().items()}
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> "Tally":
        for name in ("confusion", "probabilities", "entropy", "rows", "kept", "image_rows", "images"):
            setattr(self, name, tensors[name])
        for what in ("groups", "classes"):
            for number, moments in enumerate(getattr(self, what)):
                moments.load({name: tensors[f"{what}.{number}.{name}"] for name in moments.tensors()})
        return self

    def merge(self, other: "Tally") -> None:
        """Add another process's."""
        self.groups = [mine + its for mine, its in zip(self.groups, other.groups)]
        self.classes = [mine + its for mine, its in zip(self.classes, other.classes)]
        self.confusion = self.confusion + other.confusion
        self.entropy = self.entropy + other.entropy
        if not len(self.probabilities):
            self.probabilities = torch.zeros_like(other.probabilities)
        if len(other.probabilities):
            self.probabilities = self.probabilities + other.probabilities
        for rows, values in (("rows", "kept"), ("image_rows", "images")):
            both = torch.cat([getattr(self, rows), getattr(other, rows)])
            order = both.argsort()
            setattr(self, rows, both[order])
            setattr(self, values, torch.cat([getattr(self, values), getattr(other, values)])[order])

    @property
    def all(self) -> Moments:
        return sum(self.groups[1:], self.groups[0])


def figures(tally: Tally, reference: Tally, class_names: list[str], training_images: np.ndarray) -> dict:
    """Every figure of some images against the reference's."""
    count, dim = int(tally.all.count), tally.extractor.dim
    found = {
        "num_images": count,
        "frechet_distance": frechet_distance(tally.all, reference.all),
        "frechet_distance_infinite": None,
    }
    if min(int(group.count) for group in tally.groups) > dim:
        found["frechet_distance_infinite"] = extrapolated_distance(tally.groups, reference.all)
    found["kernel_distance"], found["kernel_distance_error"] = kernel_distance(tally.kept, reference.kept)
    found["precision"], found["recall"] = precision_and_recall(tally.kept, reference.kept)
    found["subset"] = [len(tally.kept), len(reference.kept)]
    if len(tally.probabilities):
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
    protocol: Protocol,
    output: Path,
    model: str | None = None,
    pipeline: CondDDPMPipeline | None = None,
    samples: Path | None = None,
    keep: Path | None = None,
    progress: bool = True,
    **arguments,
) -> dict:
    """Measure a pipeline, or samples that are given, and write results.json, with a confusion picture and neighbours beside.

    Args:
        protocol: what is measured and how.
        output: of the JSON; pictures go beside it, named after it.
        model: where the pipeline is from, for the record.
        pipeline: what is measured.
        samples: in place of a pipeline: a folder of CLASS/*.png, or an .npz with `images` (N, H, W, C) uint8 and
            `class_labels` (or `arr_0` and `arr_1`, as others write them).
        keep: where to keep the samples, an .npz or a folder.
        progress: show bars.
        arguments: passed on to the pipeline: `num_inference_steps`, `guidance_scale`, `batch_size`...

    Returns:
        What results.json holds.

    Raises:
        ValueError: samples of another size, range or type than the data set's, or without labels; an extractor whose
            weights are not to be had; what the pipeline raises.
    """
    state = process_state()
    if (pipeline is None) == (samples is None):
        raise ValueError("samples: expected either a model or samples, not both; leave one out.")
    given = None if samples is None else _given_samples(samples)
    size, channels = protocol.resolution, protocol.channels
    if pipeline is not None:
        size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    train, test = _real_images(protocol, size, channels)
    if given is not None:
        given = _matched(given, train)
        protocol = dataclasses.replace(protocol, num_samples=len(given), repeats=1)
    elif pipeline.id2label and list(pipeline.id2label.values()) != train.class_names:
        names = ", ".join(pipeline.id2label.values())
        raise ValueError(f"dataset: expected the model's classes, {names}, got {', '.join(train.class_names)}.")

    cache = _cache()
    with _one_after_the_other(state):
        extractor = make_extractor(protocol.features, protocol.weights, train, test, cache, state.device)
        if given is not None and given.labels[0] == _UNKNOWN and extractor.names_classes:
            raise ValueError(
                f"samples: expected a class for each image of {samples}, got none; put them into folders CLASS/*.png, or"
                " `class_labels` into the .npz."
            )
        reference, held_out = (_real_tally(data, extractor, protocol.subset, cache) for data in (train, test))

    results = {"protocol": _quoted(protocol, extractor, train, test, model, pipeline, samples, arguments)}
    measured, seconds = [], []
    for repeat in range(protocol.repeats):
        started = time.perf_counter()
        seeds = range(protocol.seed + repeat * protocol.num_samples, protocol.seed + (repeat + 1) * protocol.num_samples)
        labels = [index % len(train.class_names) for index in range(protocol.num_samples)]
        if given is None and keep is not None:
            where = keep if protocol.repeats == 1 else keep.with_name(f"{keep.stem}-{repeat}{keep.suffix}")
            save_samples(pipeline, labels, seeds, where, progress=progress, **arguments)
            given_now = _matched(_given_samples(where), train)
        else:
            given_now = given
        if given_now is not None:
            settings = [fingerprint(given_now)]
            stream = lambda done: _share(given_now, done, state)  # noqa: B023, E731
            number = len(given_now)
        else:
            guide = arguments.get("guide")
            called = {**arguments, "guide": None if guide is None else _weights_checksum(guide)}
            settings = [_weights_checksum(pipeline), pipeline.scheduler.config, sorted(called.items()), seeds.start]
            stream = lambda done: _sampled(pipeline, labels, seeds, done, progress, arguments)  # noqa: B023, E731
            number = protocol.num_samples
        key = [settings, extractor.quoted, number, protocol.subset, state.num_processes]
        tally = _tally_of(stream, extractor, reference, output, key, state)
        seconds.append(time.perf_counter() - started)
        if state.is_main_process:
            measured.append(figures(tally, reference, train.class_names, train.images))
    if not state.is_main_process:
        state.wait_for_everyone()
        return results

    results["samples"], results["samples_std"] = _mean_and_deviation(measured)
    results["held_out_real"] = figures(held_out, reference, train.class_names, train.images)
    results["seconds"] = {"samples": sum(seconds)}
    results["warnings"] = _warnings(results, extractor.dim)
    output.parent.mkdir(parents=True, exist_ok=True)
    if extractor.names_classes and tally.confusion.any():
        confusion_picture(tally.confusion.numpy(), train.class_names, output.with_name(f"{output.stem}-confusion.png"))
    shown = tally.images[: len(train.class_names)].numpy()
    names = [f"sample {row}" for row in range(len(shown))]
    if given is None:
        names = [train.class_names[row % len(train.class_names)] for row in range(len(shown))]
    nearest_neighbours(shown, names, train.images, output.with_name(f"{output.stem}-neighbours.png"))
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(partial, output)
    state.wait_for_everyone()
    return results


def summary(results: dict) -> str:
    """A table of samples beside held-out real images, a row a class, and the warnings."""
    samples, real = results["samples"], results["held_out_real"]
    text = lambda value: "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = [f"{'':28} {'samples':>12} {'real, held out':>15}"]
    for name, value in samples.items():
        if name not in ("classes", "subset"):
            lines.append(f"{name.replace('_', ' '):28} {text(value):>12} {text(real.get(name)):>15}")
    if samples["classes"]:
        lines += ["", f"{'class':20} {'accuracy':>9} {'real':>7} {'distance':>9} {'real':>7}"]
        for name, row in samples["classes"].items():
            cells = (
                found.get(figure) for figure in ("accuracy", "frechet_distance") for found in (row, real["classes"][name])
            )
            accuracy, real_accuracy, distance, real_distance = map(text, cells)
            lines.append(f"{name:20} {accuracy:>9} {real_accuracy:>7} {distance:>9} {real_distance:>7}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in results["warnings"])])


# The real images


def _real_images(protocol: Protocol, size: int, channels: int) -> tuple[LabelledImages, LabelledImages]:
    train = load_images(protocol.dataset, protocol.split, size, channels)
    try:
        test = load_images(protocol.dataset, protocol.test_split, size, channels)
    except (ValueError, OSError):
        if protocol.test_split != Protocol.test_split:
            raise
        order = np.random.default_rng(0).permutation(len(train))
        parts = (np.sort(order[len(train) // 10 :]), np.sort(order[: len(train) // 10]))
        train, test = (LabelledImages(train.images[part], train.labels[part], train.class_names) for part in parts)
    if test.class_names != train.class_names:
        raise ValueError(f"test_split: expected the classes {train.class_names}, got {test.class_names}.")
    return train, test


def _real_tally(data: LabelledImages, extractor: Extractor, subset: int, cache: Path) -> Tally:
    """Of real images; from the cache, if these have been seen by this extractor before."""
    tally = Tally(extractor, len(data.class_names), subset, data.images.shape[1:])
    quoted = {name: value for name, value in extractor.quoted.items() if name != "held_out_accuracy"}
    file = cache / f"real-{_hash([fingerprint(data), quoted, subset, _GROUPS, _NEIGHBOURS])}.safetensors"
    if file.is_file():
        return tally.load(load_file(file))
    order = np.random.default_rng(0).permutation(len(data))  # data sets may be sorted by class
    for start in range(0, len(data), 500):
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


class _one_after_the_other:
    """The main process first, so that the others find what it has cached."""

    def __init__(self, state):
        self.state = state

    def __enter__(self):
        if not self.state.is_main_process:
            self.state.wait_for_everyone()

    def __exit__(self, *error):
        if self.state.is_main_process:
            self.state.wait_for_everyone()


# The samples


def _given_samples(samples: Path) -> LabelledImages:
    """Samples from a file or a folder; labels are -1 and `class_names` empty where there are none.

    Raises:
        ValueError: not uint8 images.
    """
    if samples.is_dir():
        try:
            return load_images(str(samples), resolution=_first_size(samples))
        except ValueError as error:
            raise ValueError(f"samples: expected folders CLASS/*.png in {samples}: {error}") from None
    if samples.suffix != ".npz" or not samples.is_file():
        raise ValueError(f"samples: expected a folder of CLASS/*.png or an .npz, got {samples}.")
    with np.load(samples) as archive:
        names = [name for name in ("images", "arr_0") if name in archive]
        if not names:
            raise ValueError(f"samples: expected an array `images` or `arr_0` in {samples}, got {', '.join(archive)}.")
        images = archive[names[0]]
        labels = next((archive[name] for name in ("class_labels", "arr_1") if name in archive), None)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        span = f", from {images.min():g} to {images.max():g}" if images.size and images.dtype.kind in "iuf" else ""
        raise ValueError(
            f"samples: expected images (N, H, W, C) of type uint8, 0 to 255, got {images.shape} {images.dtype}{span}."
        )
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"samples: expected a class label for each of {len(images)} images, got {labels.shape}.")
    labels = np.full(len(images), _UNKNOWN) if labels is None else labels.astype(np.int64)
    return LabelledImages(images.transpose(0, 3, 1, 2), labels, [])


def _first_size(folder: Path) -> int:
    from PIL import Image

    for path in sorted(folder.rglob("*.*")):
        try:
            with Image.open(path) as picture:
                return min(picture.size)
        except OSError:
            continue
    raise ValueError(f"samples: expected pictures in {folder}, found none.")


def _matched(given: LabelledImages, train: LabelledImages) -> LabelledImages:
    """The samples with the data set's class ids.

    Raises:
        ValueError: another size, other classes, fewer than two samples.
    """
    if given.images.shape[1:] != train.images.shape[1:]:
        shapes = ("x".join(map(str, data.images.shape[1:])) for data in (train, given))
        raise ValueError("samples: expected images of {} (channels, height, width), got {}.".format(*shapes))
    if len(given) < 2:
        raise ValueError(f"samples: expected two or more, got {len(given)}.")
    labels = given.labels
    if given.class_names:
        unknown = set(given.class_names) - set(train.class_names)
        if unknown:
            raise ValueError(f"samples: expected the classes {', '.join(train.class_names)}, got {', '.join(unknown)}.")
        labels = np.array([train.class_names.index(given.class_names[label]) for label in labels])
    known = (labels != _UNKNOWN).any()
    if known and (labels.min() < 0 or labels.max() >= len(train.class_names)):
        raise ValueError(
            f"samples: expected labels from 0 to {len(train.class_names) - 1}, got {labels.min()} to {labels.max()}."
        )
    return LabelledImages(given.images, labels, train.class_names)


def _share(given: LabelledImages, done: int, state) -> Iterator[tuple[list[int], np.ndarray, np.ndarray | None]]:
    """This process's share of given samples, in random order, after the first `done` batches of it."""
    order = np.random.default_rng(0).permutation(len(given.images))
    starts = range(0, len(order), 500)[state.process_index :: state.num_processes][done:]
    for start in starts:
        rows = np.arange(start, min(start + 500, len(order)))
        labels = given.labels[order[rows]]
        yield rows.tolist(), given.images[order[rows]], None if labels[0] == _UNKNOWN else labels


def _sampled(pipeline, labels, seeds, done: int, progress: bool, arguments: dict) -> Iterator:
    """This process's share of samples to be made, after the first `done` batches of it."""
    for rows, images in sample_batches(pipeline, labels, seeds, progress=progress, skip=done, **arguments):
        yield rows, images, [labels[row] for row in rows]


def _tally_of(stream, extractor: Extractor, like: Tally, output: Path, key: list, state) -> Tally:
    """Fold a stream, saved now and then so that an interrupted evaluation goes on; merged on the main process."""
    shape = tuple(like.images.shape[1:])
    new = lambda: Tally(extractor, like.num_classes, like.subset, shape)  # noqa: E731
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [output.with_name(f".{output.stem}-{_hash(key)}-{rank}.safetensors") for rank in range(state.num_processes)]
    mine, tally, done = files[state.process_index], new(), 0
    if mine.is_file():
        tensors = load_file(mine)
        tally.load(tensors)
        done = int(tensors["done"])

    def save():
        tensors = {**tally.tensors(), "done": torch.tensor(done)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, mine.with_suffix(".partial"))
        os.replace(mine.with_suffix(".partial"), mine)

    saved = time.perf_counter()
    for rows, images, labels in stream(done):
        tally.update(rows, images, labels)
        done += 1
        if time.perf_counter() - saved > _SAVE_SECONDS:
            save()
            saved = time.perf_counter()
    if state.num_processes > 1:
        save()
        state.wait_for_everyone()
        if state.is_main_process:
            tally = new()
            for file in files:
                tally.merge(new().load(load_file(file)))
        state.wait_for_everyone()
    mine.unlink(missing_ok=True)
    return tally


# The record


def _quoted(protocol, extractor, train, test, model, pipeline, samples, arguments) -> dict:
    record = {
        **dataclasses.asdict(protocol),
        "split_images": len(train),
        "test_split_images": len(test),
        "split_fingerprint": fingerprint(train),
        "feature_extractor": extractor.quoted,
        "frechet_distance_infinite": f"a line in 1/N through {_GROUPS} parts of the samples and their unions",
        "nearest_training_distance": f"median over {_NEIGHBOURS} images, root mean square over pixels, mirrored too",
        "versions": {"cond_ddpm": version("cond_ddpm"), "torch": torch.__version__},
        "commit": _commit(),
    }
    if samples is not None:
        return {**record, "samples": samples.name}
    scheduler = pipeline.make_scheduler(arguments.get("sampler"), arguments.get("timestep_spacing"))
    steps = arguments.get("num_inference_steps") or pipeline.default_steps(scheduler)
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    guide = arguments.get("guide")
    record |= {
        "model": Path(model).name if model and Path(model).is_dir() else model,
        "weights_checksum": _weights_checksum(pipeline),
        "sampler": type(scheduler).__name__,
        "sampler_config": {name: value for name, value in config.items() if isinstance(value, (int, str, bool, type(None)))},
        "num_inference_steps": steps,
        "guide": None if guide is None else _weights_checksum(guide),
        **{name: arguments.get(name) for name in ("guidance_scale", "guidance_interval", "guidance_rescale", "batch_size")},
        "seeds": [protocol.seed, protocol.seed + protocol.num_samples * protocol.repeats - 1],
        "autocast": str(torch.get_autocast_dtype(pipeline.device.type))
        if torch.is_autocast_enabled(pipeline.device.type)
        else None,
    }
    run = Path(model or "").parent / "config.json"
    if model and run.is_file():
        settings = json.loads(run.read_text()).get("config", {})
        names = ("batch_size", "use_ema", "ema_std", "max_train_steps", "num_epochs", "class_dropout_prob", "prediction_type")
        record["training"] = {name: settings.get(name) for name in names}
    return record


def _warnings(results: dict, dim: int) -> list[str]:
    found, warnings = results["samples"], []
    if found["num_images"] < 10_000:
        warnings.append(
            f"{found['num_images']} samples: a Frechet distance of so few is biased upward; compare it with others of as many"
            " only, or quote kernel_distance or frechet_distance_infinite."
        )
    if found["num_images"] <= dim:
        warnings.append(f"{found['num_images']} samples have a singular covariance in {dim} dimensions; take more than {dim}.")
    few = [name for name, row in found["classes"].items() if row["num_images"] <= dim]
    if few:
        warnings.append(f"at most {dim} samples of {', '.join(few)}: their covariances are singular in {dim} dimensions.")
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


def _weights_checksum(pipeline: CondDDPMPipeline) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(pipeline.unet.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """Of the checkout that this is, if it is one."""
    try:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None
