"""Completing a pipeline folder: the grid of samples, and the model card with the metadata that the Hub reads.

May import: `hub.folder, hub.measured, processes, text, visualize`, the pipeline. It reads only the folder and its
results.json; training calls `complete` at the end of a run. Next in the data flow: `checks.py`.
"""

import io
from pathlib import Path
from typing import Any

from cond_ddpm import REPOSITORY
from cond_ddpm.hub.folder import OTHER_RESULTS, load_folder, one_line, read_results, save_config
from cond_ddpm.hub.measured import guidance_text, judge_text, most_of, usefulness_text
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.text import literal, markdown, shown

# As long as a card contains this line, it may be overwritten.
MARKER = "<!-- Written by cond_ddpm, and written anew when it publishes, unless you delete this line. -->"
MADE_WITH = f"[cond_ddpm]({REPOSITORY})" if REPOSITORY else "cond_ddpm"
_ASKED_NOBODY = "The weights and the code are under Apache-2.0."  # in the cards of versions that had no --license
TRIED = {"diffusers": ("0.39.0", "0.42.1"), "torch": ("2.9.1", "2.13.0")}  # the lowest and the newest; docs/compatibility.md
TASK = "unconditional-image-generation"  # the nearest that the Hub lists; the tag says class-conditional
AUGMENTED = "each change (shifted, enlarged, turned, mirrored) of {:.0%} of the images; the network is told of it"
FEATURES = {
    "classifier": "a classifier's features",
    "inception": "Inception-v3's features",
    "dinov2": "DINOv2's features",
    "imagenet": "features of EfficientNet-Lite0, trained on ImageNet",
}
METRICS = {  # metric in results.json -> its name in the card, and the Hub's name for it
    "frechet_distance": ("Fréchet distance", "frechet_distance"),
    "frechet_distance_infinite": ("Fréchet distance, extrapolated to infinitely many samples", None),
    "kernel_distance": ("kernel distance (KID)", "kid"),
    "inception_score": ("inception score", "inception_score"),
    "label_accuracy": ("share recognised as the requested class, by the stricter of the classifiers", "accuracy"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "nearest_training_distance": ("median distance to the nearest training image (of 255)", None),
}


def complete(
    folder: Path,
    repo_id: str | None = None,
    pictures: dict[str, bytes] | None = None,
    licences: tuple[str | None, str | None] = (None, None),
) -> None:
    """Add what a pipeline folder needs to be published: the grid of samples if there is none, and a new model card.

    Args:
        folder: a pipeline folder, which is saved again with these files.
        repo_id: what the card tells people to load; by default the folder's name.
        pictures: other files to add, such as `loss.png`.
        licences: of the weights and of the training images; None for what the card says already, or else what the training's
            record says.

    Raises:
        ValueError: licences for a card that is the user's own; a folder that does not load; a results.json that was not
            written by evaluation or training.
    """
    pipeline = load_folder(folder)
    files = {**pipeline.companions, **(pictures or {})}
    results = read_results(files)
    if "samples.png" not in files:
        files["samples.png"] = _samples_picture(pipeline)
    is_ours = MARKER.encode() in files.get("README.md", MARKER.encode())
    if any(licences) and not is_ours:
        raise ValueError(
            f"license, dataset_license: expected none with a card of your own, got {', '.join(filter(None, licences))}; write"
            f" it into the first lines of {folder / 'README.md'}, as `license: NAME`."
        )
    if is_ours:
        known = _licences(files.get("README.md"), results)
        both = (licences[0] or known[0], licences[1] or known[1])
        try:
            card = model_card(pipeline, results, set(files), repo_id or folder.resolve().name, both)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:  # a value is missing or of another type
            raise ValueError(
                f"results.json: expected what training or `cond-ddpm evaluate` writes, got something else"
                f" ({type(error).__name__}: {one_line(error)}); {OTHER_RESULTS}."
            ) from error
        files["README.md"] = card.encode()
    pipeline.companions = files
    save_config(pipeline, folder)


def _samples_picture(pipeline: CondDDPMPipeline, columns: int = 8, rows: int = 20) -> bytes:
    """A PNG with a row for each of the first 20 classes, sampled with the pipeline's defaults."""
    from cond_ddpm.processes import process_state
    from cond_ddpm.visualize import class_grid

    pipeline.to(process_state().device)
    classes = range(min(rows, pipeline.unet.config.num_classes))
    pipeline.set_progress_bar_config(disable=True)
    (images,) = pipeline(
        [label for label in classes for _ in range(columns)],
        seeds=range(len(classes) * columns),
        output_type="pt",
        return_dict=False,
    )
    names = [pipeline.class_name(label) for label in classes]
    steps = pipeline.default_steps(pipeline.scheduler)
    file = io.BytesIO()
    title = f"{steps} steps, guidance {pipeline.guidance_scale:g}"
    class_grid((images * 255).round().byte().cpu().numpy(), names, file, title)
    return file.getvalue()


def licence_of(folder: Path) -> str | None:
    """The licence of the weights that the card names."""
    return _licences((folder / "README.md").read_bytes(), {})[0]


def _licences(card: bytes | None, results: dict) -> tuple[str | None, str | None]:
    """Of the weights and of the training images: as the card says, or else as the training was told."""
    from huggingface_hub import ModelCard

    training = results.get("training")
    config = training.get("config") if isinstance(training, dict) else None
    found = config if isinstance(config, dict) else {}
    if card is not None:
        try:
            read = ModelCard(card.decode()).data.to_dict()
        except Exception as error:  # of YAML, or whatever the Hub's library makes of it
            raise ValueError(
                f"README.md: expected the first lines of a model card, got {type(error).__name__}: {one_line(error)}; correct"
                " or remove the file."
            ) from error
        said = {name: value for name, value in read.items() if value}
        if MARKER.encode() in card and _ASKED_NOBODY.encode() in card:
            said.pop("license", None)
        found = {**found, **said}
    return found.get("license"), found.get("dataset_license")


def model_card(
    pipeline: CondDDPMPipeline,
    results: dict,
    files: set[str],
    repo_id: str,
    licences: tuple[str | None, str | None] = (None, None),
) -> str:
    """The text of README.md, with the metadata that the Hub reads.

    Args:
        pipeline: what is published.
        results: what results.json holds: `training`, and the other keys if there was an evaluation; {} if nothing is known. If
            `training` has a `dataset_note`, a sentence on the training images, it is shown below the table of the training.
        files: names of the other files in the folder.
        repo_id: what the card tells people to load.
        licences: of the weights and of the training images.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config, scheduler = pipeline.unet.config, pipeline.scheduler.config
    training = results.get("training")
    training = training if isinstance(training, dict) and "config" in training else {}  # it is that of a study, or not known
    protocol, samples = results.get("protocol", {}), results.get("samples")
    real = results.get("held_out_real", {})
    dataset = shown(training.get("dataset") or protocol.get("dataset") or "")
    colours = {1: "grey ", 3: "RGB "}.get(config.in_channels, "")
    title = shown(repo_id.rpartition("/")[2])
    guided = pipeline.class_dropout_prob != 0
    more: dict[str, Any] = {"dataset_license": licences[1]} if licences[1] else {}
    data = ModelCardData(
        library_name="diffusers",
        license=licences[0],
        base_model=shown(training["base_model"]) if training.get("base_model_on_hub") else None,
        **more,
        pipeline_tag=TASK,
        tags=["diffusers", "class-conditional-image-generation", "ddpm", "cond_ddpm"],
        datasets=[training["dataset"]] if training.get("dataset_on_hub") else None,
        model_name=title,
        eval_results=_eval_results(results, dataset) if samples else None,
    )
    measured = {
        "Fréchet distance, kernel distance, precision, recall, accuracy of the classes": samples,
        "FID with Inception-v3, as in the literature": protocol.get("features") == "inception",
        "Fréchet distance with DINOv2": protocol.get("features") == "dinov2",
        "the spread over seeds": results.get("samples_std"),
        "whether a classifier can be trained on the samples": results.get("usefulness"),
        "the spread over trainings": False,
    }
    copies, accuracy = "Whether samples are copies of training images has not been measured.", ""
    if samples:
        copies = _distances_text(samples.get("nearest_training_distance"), real.get("nearest_training_distance"))
        if results.get("copies"):
            copies += f" {copies_text(results['copies'])}"
        if samples.get("label_accuracy") is not None:
            accuracy = f"; the classifier takes {1 - samples['label_accuracy']:.0%} of them for another class"
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md")),
        title=markdown(title),
        colours=colours,
        size=f"{config.sample_size}x{config.sample_size}",
        num_classes=config.num_classes,
        network=type(pipeline.unet).__name__,
        parameters=f"{sum(parameter.numel() for parameter in pipeline.unet.parameters()) / 1e6:.2f}",
        repo_id=literal(repo_id),
        tried=" and ".join(f"{name} {lowest} to {newest}" for name, (lowest, newest) in TRIED.items()),
        example=literal(pipeline.id2label[0]) if pipeline.id2label else "0",
        guidance_scale=f"{pipeline.guidance_scale:g}",
        classes=[(label, markdown((pipeline.id2label or {}).get(label, ""))) for label in range(config.num_classes)],
        sampler=type(pipeline.scheduler).__name__,
        steps=pipeline.default_steps(pipeline.scheduler),
        guided=guided,
        training=[(name, markdown(value)) for name, value in _training_rows(training, scheduler)],
        dataset_note=markdown(training.get("dataset_note", "")),
        has_loss="loss.png" in files,
        evaluation=_evaluation_rows(samples, real) if samples else None,
        protocol=markdown(_protocol_text(results)) if samples else None,
        per_class=_class_rows(samples, real) if samples else None,
        has_confusion=samples is not None and "results-confusion.png" in files,
        has_copies=samples is not None and "results-copies.png" in files,
        has_neighbours=samples is not None and "results-neighbours.png" in files,
        guidance=markdown(guidance_text(results["guidance"])) if results.get("guidance") else "",
        has_guidance="guidance.png" in files,
        usefulness=markdown(usefulness_text(results["usefulness"])) if results.get("usefulness") else "",
        warnings=[markdown(warning) for warning in results.get("warnings", [])],
        not_measured="; ".join(what for what, found in measured.items() if not found),
        memorisation=copies,
        how_often=accuracy,
        licence=markdown(licences[0] or ""),
        dataset_licence=markdown(licences[1] or ""),
        data=[(name, markdown(value)) for name, value in _data_rows(training.get("data") or {})],
        made_with=MADE_WITH,
        marker=MARKER,
    )
    return card.content.strip() + "\n"


def _text(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _training_rows(training: dict, scheduler) -> list[tuple[str, str]]:
    if not training:
        return []
    config = training["config"]
    weighting = "unweighted" if config["min_snr_gamma"] is None else f"min-SNR weights with gamma {config['min_snr_gamma']:g}"
    average = "not averaged"
    if config["use_ema"]:
        average = f"a power-function average with relative width {config['ema_std']:g}"
    betas = f", beta {scheduler.beta_start:g} to {scheduler.beta_end:g}"
    betas = "" if scheduler.beta_schedule == "squaredcos_cap_v2" else betas  # the cosine schedule ignores them
    guided_from = training.get("guided_from")
    precision = {"no": "float32", None: "float32"}.get(training["mixed_precision"], training["mixed_precision"])
    return [
        *([("base model", f"{training['base_model']}, from whose weights it started")] if training.get("base_model") else []),
        ("data", f"{training['dataset']}, split {config['train_split']}: {training['num_images']:,} images"),
        ("held out", f"{training['num_validation_images']:,} of that split, to choose the epoch"),
        ("mirrored", "half of the images" if training["random_flip"] else "no"),
        *([("augmented", AUGMENTED.format(config["augmentation_prob"]))] if config.get("augmentation_prob") else []),
        *([("classes", "drawn equally often")] if config.get("class_sampling") == "balanced" else []),
        ("noise schedule", f"{scheduler.beta_schedule}{betas}, {scheduler.num_train_timesteps} timesteps"),
        ("objective", f"{scheduler.prediction_type}, {weighting}, {config['timestep_sampling']} timesteps"),
        ("labels dropped", f"{config['class_dropout_prob']:.0%}"),
        *([("guidance learned", f"{config['model_guidance_scale']:g}, from step {guided_from:,}")] if guided_from else []),
        (
            "optimizer",
            f"{config['optimizer']}, learning rate {config['learning_rate']:g} ({config['lr_scheduler']}), batch"
            f" {config['batch_size']}",
        ),
        (
            "weights",
            f"{average}, at step {training['step']:,} (epoch {training['epoch']}, the one with the lowest validation loss)",
        ),
        ("validation loss", f"{training['val_loss']:.5f}"),
        (
            "compute",
            f"{training['minutes']:.0f} minutes on {training['num_processes']} process(es), {training['device']}, {precision};"
            f" {training['images_seen']:,} images, about {training['training_flop']:.2g} FLOP",
        ),
        ("seed", str(config["seed"])),
    ]


def _data_rows(facts: dict) -> list[tuple[str, str]]:
    """What the data report found, without the names of files."""
    if not facts:
        return []
    counts = facts["classes"]
    few = list(counts.items())[:20]
    more = f" and {len(counts) - 20} more classes" if len(counts) > 20 else ""
    return [
        ("pictures", f"{facts['num_pictures']:,}: " + ", ".join(f"{name} {count:,}" for name, count in few) + more),
        ("their median size", f"{facts['median_size'][0]}x{facts['median_size'][1]}, made square by: {facts['fit']}"),
        ("their modes", ", ".join(f"{mode} {count:,}" for mode, count in facts["modes"].items())),
        (
            "doubled pictures",
            f"{facts['duplicates']:,} exactly, {facts['near_duplicates']:,} nearly,"
            f" {facts['duplicates_in_other_classes']:,} of them in different classes",
        ),
    ]


def _protocol_text(results: dict) -> str:
    protocol, count, real = results["protocol"], results["samples"]["num_images"], results["held_out_real"]
    spread = f", mean of {protocol['repeats']} evaluations" if protocol.get("repeats", 1) > 1 else ""
    if "samples" in protocol:
        made = f"{count:,} given samples"
    else:
        numbers = sorted({row["num_images"] for row in results["samples"]["classes"].values()})
        each = ", equally many of each class" if len(numbers) == 1 else ""
        each = f", {numbers[0]:,} to {numbers[-1]:,} of each class" if len(numbers) > 1 else each
        made = (
            f"{count:,} samples{each}, seeds {protocol['seeds'][0]} to"
            f" {protocol['seeds'][1]}, {protocol['scheduler']}, {protocol['num_inference_steps']} steps, guidance"
            f" {protocol['guidance_scale']:g}{spread}"
        )
    extractor = protocol["feature_extractor"]
    features = FEATURES.get(protocol["features"], protocol["features"])
    accuracy = f", {judge_text(extractor)}" if judge_text(extractor) else ""
    reference = f"{real['num_images']:,} held-out real images (split: {protocol['test_split']})"
    text = (
        f"{made}; compared with the {protocol['split_images']:,} images of {protocol['dataset']}'s split"
        f" {protocol['split']} in {features} ({extractor['backend']} {extractor['version']}, weights"
        f" {extractor['checksum']}{accuracy}). The same metrics of {reference} are reported as the reference."
    )
    if real["num_images"] != count:
        text += " With fewer images the Fréchet distance is biased upward more, so these two distances cannot be compared."
    return text


def copies_text(copies: dict) -> str:
    """How many samples are nearer to a training image than 99% of real images are to other real ones, in a sentence."""
    kinds = {name: copies[name] for name in ("pixels", "features") if name in copies}
    if not kinds:
        return "There are too few training images, or none was held out, to say how many samples are copies of them."
    shares = " and ".join(f"{kind['share']:.1%} in {name}" for name, kind in kinds.items())
    searched = " and ".join(f"{kind['searched']:,}" for kind in kinds.values())
    by_chance = max(kind["by_chance"] for kind in kinds.values())
    num_real = min(kind.get("num_real", copies.get("num_held_out")) for kind in kinds.values())  # older: held out
    return (
        f"Of {copies['num_samples']:,} samples, {shares} are nearer to a training image than"
        f" {most_of(copies['quantile'], num_real)} real images are to other real ones ({searched} training"
        f" images were searched); by chance {by_chance:.1%} would be."
    )


def _distances_text(sample_distance: float | None, real_distance: float | None) -> str:
    """What the median distances to the nearest training image, of samples and of held-out real images, say about copies."""
    if sample_distance is None:
        return "Whether samples are copies of training images has not been measured."
    text = f"The median distance of samples to the nearest training image is {_text(sample_distance)}"
    unit = " (root mean square over pixels, of 255)"
    if not real_distance:  # earlier versions compared these images with themselves, and so recorded 0
        return f"{text}{unit}; that of held-out real images has not been measured."
    verdict = "many samples may be copies" if sample_distance < real_distance / 2 else "copies would be much nearer"
    return f"{text}, that of held-out real images is {_text(real_distance)}{unit}; {verdict}."


def _distance(row: dict, other: dict) -> str:
    """A Fréchet distance, with its number of images if that of the other row is different."""
    value, numbers = row.get("frechet_distance"), {found.get("num_images") for found in (row, other)}
    return _text(value) + (f" (of {row['num_images']:,})" if value is not None and len(numbers) > 1 else "")


def _evaluation_rows(samples: dict, real: dict) -> list[list[str]]:
    rows = []
    for name, (label, _) in METRICS.items():
        if samples.get(name) is not None:
            both = ((samples, real), (real, samples))
            cells = [_distance(*pair) if name == "frechet_distance" else _text(pair[0].get(name)) for pair in both]
            rows.append([label, *cells])
    return rows


def _class_rows(samples: dict, real: dict) -> list[list[str]]:
    rows = []
    for name, row in samples["classes"].items():
        real_row = real["classes"].get(name, {})
        accuracies = [_text(found.get("accuracy")) for found in (row, real_row)]
        rows.append([markdown(name), *accuracies, _distance(row, real_row), _distance(real_row, row)])
    return rows


def _eval_results(results: dict, dataset: str) -> list | None:
    from huggingface_hub import EvalResult

    protocol: dict[str, Any] = results["protocol"]
    found: list[EvalResult] = []
    if protocol.get("judges_not_trusted") and protocol["features"] == "classifier":
        return None
    for name, (label, metric) in METRICS.items():
        value = results["samples"].get(name)
        if metric is None or value is None:
            continue
        if name == "frechet_distance":
            label += f" in {FEATURES.get(protocol['features'], protocol['features'])}"
            metric = "fid" if protocol["features"] == "inception" else metric
        found.append(
            EvalResult(
                task_type=TASK,
                task_name="class-conditional image generation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=shown(protocol["split"]),
                metric_type=metric,
                metric_name=label,
                metric_value=value,
                metric_config=shown(_protocol_text(results)),
            )
        )
    return found
