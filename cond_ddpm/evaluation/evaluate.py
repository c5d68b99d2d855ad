"""`evaluate`: measure a pipeline, or samples from elsewhere, against real images.

May import: `config, data, files, fingerprints, hardware, hub, processes, sampling, text`, the pipeline, the rest of
`evaluation/`.
Next in the data flow: `hub/` reads results.json for the model card.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.data import LabelledImages, data_fingerprint
from cond_ddpm.data.cache import cache_folder
from cond_ddpm.evaluation.copies import find_copies, nearest_others, nearest_training_images, warn_of_copies
from cond_ddpm.evaluation.external_samples import UNKNOWN, load_samples, with_class_ids
from cond_ddpm.evaluation.extractors import Extractor, make_extractor
from cond_ddpm.evaluation.metrics import compute_metrics, frechet_distance
from cond_ddpm.evaluation.real_images import (
    images_for_usefulness,
    labels_of_samples,
    load_real_images,
    real_tally,
    warranted_samples,
)
from cond_ddpm.evaluation.report import list_warnings, mean_and_deviation, protocol_record, sampling_record, write_report
from cond_ddpm.evaluation.statistics import GROUPS, NEIGHBOURS, VERSION, Tally
from cond_ddpm.evaluation.trust import why_not_trusted, withhold
from cond_ddpm.evaluation.usefulness import measure_usefulness
from cond_ddpm.files import write
from cond_ddpm.fingerprints import value_fingerprint
from cond_ddpm.hardware import is_compiled, precision_for
from cond_ddpm.hub.folder import trained_fit
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import drawn_by, sample_batches, save_samples
from cond_ddpm.text import read_json

_SAVE_SECONDS = 60  # an interrupted evaluation loses at most this


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
    """Measure a pipeline or given samples; write results.json, and next to it pictures of neighbours and confused classes.

    An interrupted evaluation resumes where it stopped if it is called again with the same arguments.

    Args:
        protocol: what is measured and how.
        output: path of results.json; the names of the pictures begin with its stem.
        model: where the pipeline comes from, for the record.
        pipeline: what is measured.
        samples: instead of a pipeline, a folder of `CLASS/*.png`, or an .npz with `images` (N, H, W, C) uint8 and
            `class_labels` (or `arr_0` and `arr_1`, as other programs write them).
        keep: where to keep the samples: an .npz or a new folder.
        training: how the model was trained, for the record; by default what the model's own results.json says.
        progress: show progress bars.
        arguments: passed on to sampling: `num_inference_steps`, `guidance_scale`, `batch_size`, `mixed_precision` and others.

    Returns:
        What results.json holds; on processes other than the main one, only the training record and the protocol.

    Raises:
        ValueError: samples of another size, range or type than the data set's, or without labels; an extractor whose weights
            are missing; a class without real images; what the pipeline raises.
    """
    state = process_state()
    _check_arguments(protocol, output, pipeline, samples, keep, arguments)
    given = None if samples is None else load_samples(samples, protocol.resolution)
    size, channels = protocol.resolution, protocol.channels
    if pipeline is not None:
        size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    columns = (protocol.dataset_config_name, protocol.image_column, protocol.label_column)
    if protocol.fit is None:
        protocol = dataclasses.replace(protocol, fit=trained_fit({} if pipeline is None else pipeline.companions))
    real = load_real_images(protocol.dataset, protocol.split, protocol.test_split, size, channels, columns, protocol.fit)
    class_names = real.train.class_names
    if protocol.num_samples is None:
        protocol = dataclasses.replace(protocol, num_samples=warranted_samples(real.train))
    if given is not None:
        given = with_class_ids(given, real.train)
        protocol = dataclasses.replace(protocol, num_samples=len(given))
    if pipeline is not None and pipeline.id2label and list(pipeline.id2label.values()) != class_names:
        expected = ", ".join(pipeline.id2label.values())
        raise ValueError(f"dataset: expected the model's classes, {expected}, got {', '.join(class_names)}.")
    assert protocol.num_samples is not None
    counts = np.bincount(real.train.labels, minlength=len(class_names))
    rare = [name for name, count in zip(class_names, counts) if count < 2]
    if rare:
        raise ValueError(f"split: expected at least two real images of each class, got fewer of {', '.join(rare)}.")

    if protocol.usefulness and given is not None and given.labels[0] == UNKNOWN:
        raise ValueError(f"usefulness: expected a class for each image of {samples}, got none; leave it out, or name classes.")
    num_images = max(NEIGHBOURS, protocol.usefulness_images if protocol.usefulness else 0)
    cache = cache_folder() / "evaluate"
    with state.main_process_first():  # the others then find the results in the cache
        extractor = make_extractor(protocol.features, protocol.weights, real.train, real.held_out, cache, state.device)
        if given is not None and given.labels[0] == UNKNOWN and extractor.judges:
            raise ValueError(
                f"samples: expected a class for each image of {samples}, got none; put them into folders CLASS/*.png, or add"
                " `class_labels` to the .npz."
            )
        train_tally = real_tally(real.train, len(real.train), extractor, protocol.subset, cache)
        held_out_tally = real_tally(real.held_out, protocol.num_samples, extractor, protocol.subset, cache)

    if pipeline is not None and arguments.get("guidance_scale") is None:
        arguments["guidance_scale"] = pipeline.guidance_scale  # for the record
    if pipeline is not None and arguments.get("mixed_precision") == "auto":
        arguments["mixed_precision"] = precision_for(pipeline.device)
    own: dict[str, Any] = {}
    if training is None and pipeline is not None:
        content = pipeline.companions.get("results.json", b"{}")
        own = read_json(content, "results.json", "remove or correct it")
        training = own.get("training")
    record = protocol_record(protocol, extractor, real)
    if pipeline is not None:
        record |= sampling_record(protocol, model, pipeline, arguments)
    if samples is not None:
        del record["seed"], record["repeats"]
        record["samples"] = samples.name
    results: dict[str, Any] = {"training": training or "not known", "protocol": record}
    if own.get("guidance"):  # how the default was chosen
        results["guidance"] = own["guidance"]
    files: list[Path] = []
    measured, started, earlier = [], time.perf_counter(), 0.0
    for repeat in range(protocol.repeats):
        seeds = range(protocol.seed + repeat * protocol.num_samples, protocol.seed + (repeat + 1) * protocol.num_samples)
        labels = labels_of_samples(real.train, protocol.num_samples)
        made = given
        if pipeline is not None:
            key = [*drawn_by(pipeline, arguments), seeds.start]
            if labels != [index % len(class_names) for index in range(protocol.num_samples)]:
                key.append(labels)
        if keep is not None:
            where = keep if protocol.repeats == 1 else keep.with_name(f"{keep.stem}-{repeat}{keep.suffix}")
            resume_key = value_fingerprint([key, class_names])
            unfinished, before = save_samples(
                pipeline, labels, seeds, where, progress=progress, resume_key=resume_key, **arguments
            )
            files, earlier = files + unfinished, earlier + before
            made = with_class_ids(load_samples(where, size), real.train)
        if made is not None:
            key = [data_fingerprint(made)]
            stream = lambda done: _given_share(made, done, state)  # noqa: B023, E731
        else:
            stream = lambda done: _sampled_share(pipeline, labels, seeds, done, progress, arguments)  # noqa: B023, E731
        key = [VERSION, key, extractor.record, protocol.num_samples, protocol.subset, state.num_processes]
        key += [num_images] if num_images > NEIGHBOURS else []
        tally, unfinished, before = _fold(stream, extractor, train_tally, num_images, output, key, state)
        files, earlier = files + unfinished, earlier + before
        if state.is_main_process:
            nearest = nearest_training_images(tally.images[:NEIGHBOURS].numpy(), real.whole.images)
            measured.append(compute_metrics(tally, train_tally, class_names, nearest.distances))
    if pipeline is not None:
        record["compiled"] = is_compiled(pipeline.unet)  # now that it was tried
    if state.is_main_process:
        # Samples may be copies of any image that was trained on, but held-out images must not be compared with themselves.
        of_held_out = nearest_training_images(held_out_tally.images.numpy(), real.train.images)
        limit = compute_metrics(held_out_tally, train_tally, class_names, of_held_out.distances)
        if extractor.judges and (reason := why_not_trusted(extractor.record["judges"], len(class_names))):
            record["judges_not_trusted"] = reason
            for metrics in (*measured, limit):
                withhold(metrics)
        results["samples"], results["samples_std"] = mean_and_deviation(measured)
        results["held_out_real"] = limit
        groups = held_out_tally.groups
        halves = [sum(half[1:], half[0]) for half in (groups[: GROUPS // 2], groups[GROUPS // 2 :])]
        if min(int(half.count) for half in halves) > 1:
            results["held_out_real"]["frechet_distance_between_halves"] = frechet_distance(*halves)
        copies = output.with_name(f"{output.stem}-copies.png")
        of_others = nearest_others(real.train.images, len(of_held_out.rows))
        searched = (nearest, of_held_out, of_others, real.whole.images)
        results["copies"] = find_copies(tally, held_out_tally, train_tally, *searched, class_names, copies)
        if protocol.usefulness:
            rows = slice(protocol.usefulness_images)
            drawn = LabelledImages(tally.images[rows].numpy(), tally.image_rows[rows, 1].numpy(), class_names)
            given_real, unseen, may_be_seen = images_for_usefulness(real, training)
            results["usefulness"] = measure_usefulness(drawn, given_real, unseen, state.device)
            results["usefulness"]["held_out_may_be_trained_on"] = may_be_seen
        results["seconds"] = time.perf_counter() - started + earlier
        results["warnings"] = [*list_warnings(results, extractor.dim, real), *warn_of_copies(results["copies"])]
        write_report(output, results, tally, class_names, real.whole.images)
        for file in files:
            file.unlink(missing_ok=True)
    state.wait_for_everyone()
    return results


def _check_arguments(
    protocol: EvaluationConfig, output: Path, pipeline, samples: Path | None, keep: Path | None, arguments
) -> None:
    if (pipeline is None) == (samples is None):
        raise ValueError("samples: expected either a model or samples; give one of the two.")
    if samples is not None and (arguments or keep is not None or protocol.repeats > 1):
        names = [*arguments, *(["keep"] if keep else []), *(["repeats"] if protocol.repeats > 1 else [])]
        raise ValueError(f"samples: expected no sampling settings with given samples, got {', '.join(names)}; leave them out.")
    if output.is_dir():
        raise ValueError(f"output: expected a file to write, such as {output / 'results.json'}, got a folder.")


def _given_share(given: LabelledImages, done: int, state) -> Iterator[tuple[list[int], np.ndarray, np.ndarray | None]]:
    """This process's share of given samples, in random order, without its first `done` batches."""
    order = np.random.default_rng(0).permutation(len(given.images))
    starts = range(0, len(order), 500)[state.process_index :: state.num_processes][done:]
    for start in starts:
        rows = np.arange(start, min(start + 500, len(order)))
        labels = given.labels[order[rows]]
        yield rows.tolist(), given.images[order[rows]], None if labels[0] == UNKNOWN else labels


def _sampled_share(pipeline, labels, seeds, done: int, progress: bool, arguments: dict) -> Iterator:
    """This process's share of the pipeline's samples, without its first `done` batches."""
    for rows, images in sample_batches(pipeline, labels, seeds, progress=progress, skip=done, **arguments):
        yield rows, images, [labels[row] for row in rows]


def _fold(
    stream, extractor: Extractor, like: Tally, num_images: int, output: Path, key: list, state
) -> tuple[Tally, list[Path], float]:
    """Fold a stream of images into statistics, saved regularly so that an interrupted evaluation can resume.

    Args:
        stream: number of batches to skip -> (rows, images, labels) of each batch after them.
        extractor: turns images into features.
        like: statistics of the same shape.
        num_images: how many images to keep.
        output: the saved statistics are hidden files in its folder.
        key: what the statistics depend on.
        state: of the processes.

    Returns:
        The statistics, merged on the main process; the files to remove after the report is written; and the seconds that the
        interrupted evaluation had taken.
    """
    new = lambda: Tally(extractor, like.num_classes, like.subset, like.images.shape[1:], num_images)  # noqa: E731
    output.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{output.stem}-{value_fingerprint(key)}"
    files = [output.with_name(f"{stem}-{rank}.safetensors") for rank in range(state.num_processes)]
    own_file, tally, done, earlier = files[state.process_index], new(), 0, 0.0
    if own_file.is_file():
        tensors = load_file(own_file)
        tally.load(tensors)
        done, earlier = int(tensors["done"]), float(tensors.get("seconds", 0.0))

    def save_statistics() -> None:
        seconds = earlier + time.perf_counter() - started
        tensors = {**tally.tensors(), "done": torch.tensor(done), "seconds": torch.tensor(seconds, dtype=torch.float64)}
        write(own_file, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    started = saved = time.perf_counter()
    for rows, images, labels in stream(done):
        tally.update(rows, images, labels)
        done += 1
        if time.perf_counter() - saved > _SAVE_SECONDS:
            save_statistics()
            saved = time.perf_counter()
    save_statistics()
    state.wait_for_everyone()
    if state.is_main_process and len(files) > 1:
        tally = new()
        for file in files:
            tally.merge(new().load(load_file(file)))
    return tally, files, earlier
