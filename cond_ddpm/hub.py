"""A pipeline folder as the world gets it: completed by card and pictures, checked, uploaded as one commit.

May import: `models, processes, text, visualize`, the pipeline. It reads the folder with its results.json, never the trainer,
which calls `complete` when a run is over. The last step of the data's way.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cond_ddpm
from cond_ddpm.models import weights_checksum
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS, CondDDPMPipeline
from cond_ddpm.text import literal, markdown, read_json, shown

# While a card has this line, it is ours to write anew.
MARKER = "<!-- Written by cond_ddpm, and written anew when it publishes, unless you delete this line. -->"
LICENCE = "apache-2.0"
TASK = "unconditional-image-generation"  # the nearest that the Hub lists; the tag says class-conditional
FEATURES = {"classifier": "a classifier's features", "inception": "Inception-v3's features", "dinov2": "DINOv2's features"}
FIGURES = {  # figure of results.json -> how the card names it, and the Hub's name of the metric
    "frechet_distance": ("Fréchet distance", "frechet_distance"),
    "frechet_distance_infinite": ("Fréchet distance, extrapolated to infinitely many samples", None),
    "kernel_distance": ("kernel distance (KID)", "kid"),
    "inception_score": ("inception score", "inception_score"),
    "label_accuracy": ("share that is what was asked for, by the classifier", "accuracy"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "nearest_training_distance": ("median distance to the nearest training image, of 255", None),
}


# The folder, complete


def complete(folder: Path, repo_id: str | None = None, pictures: dict[str, bytes] | None = None) -> None:
    """Add what a pipeline folder lacks of a published one: the grid of samples, and the card, which is written anew.

    Args:
        folder: of a pipeline; written by `save_config` of the same pipeline.
        repo_id: what the card tells people to load; if not known yet, the folder's name.
        pictures: other companions to lie beside, such as `loss.png`.

    Raises:
        ValueError: a folder that does not load; a results.json of something else than an evaluation or a training.
    """
    pipeline = _load(folder)
    files = {**pipeline.companions, **(pictures or {})}
    results = _results(files)
    if "samples.png" not in files:
        files["samples.png"] = _samples_picture(pipeline)
    if MARKER.encode() in files.get("README.md", MARKER.encode()):
        try:
            card = model_card(pipeline, results, set(files), repo_id or folder.resolve().name)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:  # a value is not there, or is other
            raise ValueError(
                f"results.json: expected what training or `cond-ddpm evaluate` writes, got other values"
                f" ({type(error).__name__}: {_one_line(error)}); {_OTHER_RESULTS}."
            ) from error
        files["README.md"] = card.encode()
    pipeline.companions = files
    pipeline.save_config(folder)


def _load(folder: Path) -> CondDDPMPipeline:
    """The pipeline of a folder.

    Raises:
        ValueError: whatever is wrong with it, in one line.
    """
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if (folder / name).is_file():
            _json_of(folder, name)
    try:
        return CondDDPMPipeline.from_pretrained(folder)
    except (ValueError, OSError):
        raise
    except Exception as error:  # whatever diffusers, torch or safetensors raise at settings or weights that are not theirs
        raise ValueError(
            f"model: expected a pipeline folder that loads, got {folder}, which does not ({type(error).__name__}:"
            f" {_one_line(error)}); save it anew."
        ) from error


def _json_of(folder: Path, name: str) -> dict:
    return read_json((folder / name).read_bytes(), f"model: {folder / name}", "save the pipeline anew")


_OTHER_RESULTS = "evaluate the model anew into it, or remove it"
_PARTS = {"protocol": dict, "samples": dict, "held_out_real": dict, "warnings": list}


def _results(companions: dict[str, bytes]) -> dict:
    """What results.json holds; {} if there is none.

    Raises:
        ValueError: it is not JSON, or its parts are other than an evaluation's.
    """
    results = read_json(companions.get("results.json", b"{}"), "results.json", _OTHER_RESULTS)
    for name, kind in _PARTS.items():
        if not isinstance(results.get(name, kind()), kind):
            wanted = {dict: "an object", list: "a list"}[kind]
            raise ValueError(f"results.json: expected {wanted} as {name}, got {results[name]!r:.40}; {_OTHER_RESULTS}.")
    return results


def _one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200]


def _samples_picture(pipeline: CondDDPMPipeline, columns: int = 8, rows: int = 20) -> bytes:
    """A PNG with a row a class, of the first 20, as the pipeline samples by default."""
    from cond_ddpm.processes import process_state
    from cond_ddpm.visualize import class_grid

    pipeline.to(process_state().device)
    classes = range(min(rows, pipeline.unet.config.num_classes))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [label for label in classes for _ in range(columns)],
        seeds=range(len(classes) * columns),
        output_type="pt",
    ).images
    names = [(pipeline.id2label or {}).get(label, f"class {label}") for label in classes]
    steps = pipeline.default_steps(pipeline.scheduler)
    file = io.BytesIO()
    title = f"{steps} steps, guidance {pipeline.guidance_scale:g}"
    class_grid((images * 255).round().byte().cpu().numpy(), names, file, title)
    return file.getvalue()


# The card


def model_card(pipeline: CondDDPMPipeline, results: dict, files: set[str], repo_id: str) -> str:
    """The text of README.md, with the metadata that the Hub reads.

    Args:
        pipeline: what is published.
        results: what results.json holds: `training`, and of an evaluation the rest; {} if nothing is known.
        files: names of the companions that will lie beside it.
        repo_id: what to load.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config, scheduler = pipeline.unet.config, pipeline.scheduler.config
    training = results.get("training")
    training = training if isinstance(training, dict) and "config" in training else {}  # else a study's, or not known
    protocol, samples = results.get("protocol", {}), results.get("samples")
    real = results.get("held_out_real", {})
    dataset = shown(training.get("dataset") or protocol.get("dataset") or "")
    colours = {1: "grey ", 3: "RGB "}.get(config.in_channels, "")
    title = shown(repo_id.rpartition("/")[2])
    guided = pipeline.class_dropout_prob != 0
    data = ModelCardData(
        library_name="diffusers",
        license=LICENCE,
        pipeline_tag=TASK,
        tags=["diffusers", "class-conditional-image-generation", "ddpm", "cond_ddpm"],
        datasets=[training["dataset"]] if training.get("dataset_on_hub") else None,
        model_name=title,
        eval_results=_eval_results(results, dataset) if samples else None,
    )
    measured = {
        "Fréchet distance, kernel distance, precision, recall, accuracy of the classes": samples,
        "FID by Inception-v3, as the literature has it": protocol.get("features") == "inception",
        "Fréchet distance by DINOv2": protocol.get("features") == "dinov2",
        "the spread over other seeds": results.get("samples_std"),
        "the spread over other trainings": False,
    }
    copies, accuracy = "Whether samples are copies of training images has not been measured.", ""
    if samples:
        copies = _copies_text(samples.get("nearest_training_distance"), real.get("nearest_training_distance"))
        if samples.get("label_accuracy") is not None:
            accuracy = f", as {1 - samples['label_accuracy']:.0%} of them are by the judge"
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
        example=literal(pipeline.id2label[0]) if pipeline.id2label else "0",
        guidance_scale=f"{pipeline.guidance_scale:g}",
        classes=[(label, markdown((pipeline.id2label or {}).get(label, ""))) for label in range(config.num_classes)],
        sampler=type(pipeline.scheduler).__name__,
        steps=pipeline.default_steps(pipeline.scheduler),
        guided=guided,
        training=[(name, markdown(value)) for name, value in _training_rows(training, scheduler)],
        has_loss="loss.png" in files,
        evaluation=_evaluation_rows(samples, real) if samples else None,
        protocol=markdown(_protocol_text(results)) if samples else None,
        per_class=_class_rows(samples, real) if samples else None,
        has_confusion=samples is not None and "results-confusion.png" in files,
        has_neighbours=samples is not None and "results-neighbours.png" in files,
        warnings=[markdown(warning) for warning in results.get("warnings", [])],
        not_measured="; ".join(what for what, found in measured.items() if not found),
        memorisation=copies,
        how_often=accuracy,
        licence=LICENCE.capitalize(),
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
    average = "the weights as they were"
    if config["use_ema"]:
        average = f"a power-function average of them, of relative width {config['ema_std']:g}"
    betas = f", beta {scheduler.beta_start:g} to {scheduler.beta_end:g}"
    betas = "" if scheduler.beta_schedule == "squaredcos_cap_v2" else betas  # which has none
    precision = {"no": "float32", None: "float32"}.get(training["mixed_precision"], training["mixed_precision"])
    return [
        ("data", f"{training['dataset']}, split {config['train_split']}: {training['num_images']:,} images"),
        ("held out", f"{training['num_validation_images']:,} of that split, for the choice of the epoch"),
        ("mirrored", "half of the images" if training["random_flip"] else "no"),
        (
            "noise schedule",
            f"{scheduler.beta_schedule}{betas}, {scheduler.num_train_timesteps} timesteps",
        ),
        ("objective", f"{scheduler.prediction_type}, {weighting}, {config['timestep_sampling']} timesteps"),
        ("labels dropped", f"{config['class_dropout_prob']:.0%}"),
        (
            "optimizer",
            f"{config['optimizer']}, learning rate {config['learning_rate']:g} ({config['lr_scheduler']}), batch"
            f" {config['batch_size']}",
        ),
        ("weights", f"{average}, at step {training['step']:,} (epoch {training['epoch']}, the least validation loss)"),
        ("validation loss", f"{training['val_loss']:.5f}"),
        (
            "compute",
            f"{training['minutes']:.0f} minutes on {training['num_processes']} process(es), {training['device']}, {precision};"
            f" {training['images_seen']:,} images, about {training['training_flop']:.2g} FLOP",
        ),
        ("seed", str(config["seed"])),
    ]


def _protocol_text(results: dict) -> str:
    protocol, count, limit = results["protocol"], results["samples"]["num_images"], results["held_out_real"]
    spread = f", mean of {protocol['repeats']} evaluations" if protocol.get("repeats", 1) > 1 else ""
    if "samples" in protocol:
        made = f"{count:,} given samples"
    else:
        numbers = sorted({row["num_images"] for row in results["samples"]["classes"].values()})
        each = ", as many of each class" if len(numbers) == 1 else ""
        each = f", {numbers[0]:,} to {numbers[-1]:,} of each class" if len(numbers) > 1 else each
        made = (
            f"{count:,} samples{each}, seeds {protocol['seeds'][0]} to"
            f" {protocol['seeds'][1]}, {protocol['scheduler']}, {protocol['num_inference_steps']} steps, guidance"
            f" {protocol['guidance_scale']:g}{spread}"
        )
    extractor = protocol["feature_extractor"]
    judge = FEATURES.get(protocol["features"], protocol["features"])
    held_out = extractor.get("held_out_accuracy")
    accuracy = f", right on {held_out:.1%} of unseen real images" if held_out else ""
    beside = ", as many, stand beside as the limit."
    if limit["num_images"] != count:
        beside = (
            f", {limit['num_images']:,} of them, stand beside as the limit; of fewer images a Fréchet distance is biased"
            " upward more, so that distances of so different numbers cannot be compared."
        )
    return (
        f"{made}; compared with the {protocol['split_images']:,} images of {protocol['dataset']}'s split"
        f" {protocol['split']} in {judge} ({extractor['backend']} {extractor['version']}, weights"
        f" {extractor['checksum']}{accuracy}). Real images that were not trained on ({protocol['test_split']}){beside}"
    )


def _copies_text(mine: float | None, its: float | None) -> str:
    """Of the median distances of samples, and of unseen real images, to the nearest training image."""
    if mine is None:
        return "Whether samples are copies of training images has not been measured."
    text = f"The median distance of samples to the nearest training image is {_text(mine)}"
    unit = " (root mean square over pixels, of 255)"
    if not its:  # 0 is that of images to themselves, as in records of before it was measured without them
        return f"{text}{unit}; that of unseen real images has not been measured."
    verdict = "so near that many may be copies" if mine < its / 2 else "copies would be much nearer"
    return f"{text}, of unseen real images {_text(its)}{unit}; {verdict}."


def _distance(row: dict, other: dict) -> str:
    """A Fréchet distance, and of how many images it is where the one beside it is of another number."""
    value, numbers = row.get("frechet_distance"), {found.get("num_images") for found in (row, other)}
    return _text(value) + (f" (of {row['num_images']:,})" if value is not None and len(numbers) > 1 else "")


def _evaluation_rows(samples: dict, real: dict) -> list[tuple[str, str, str]]:
    rows = []
    for name, (label, _) in FIGURES.items():
        if samples.get(name) is not None:
            both = ((samples, real), (real, samples))
            cells = [_distance(*pair) if name == "frechet_distance" else _text(pair[0].get(name)) for pair in both]
            rows.append((label, *cells))
    return rows


def _class_rows(samples: dict, real: dict) -> list[list[str]]:
    rows = []
    for name, row in samples["classes"].items():
        its = real["classes"].get(name, {})
        accuracies = [_text(found.get("accuracy")) for found in (row, its)]
        rows.append([markdown(name), *accuracies, _distance(row, its), _distance(its, row)])
    return rows


def _eval_results(results: dict, dataset: str) -> list:
    from huggingface_hub import EvalResult

    protocol, found = results["protocol"], []
    for name, (label, metric) in FIGURES.items():
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


# The check


def check(folder: Path) -> list[str]:
    """What keeps a folder from being published, a line each: it is loaded as strangers will, without this package.

    Raises:
        ValueError: it is no pipeline folder.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model: expected a pipeline folder, with a model_index.json, got {folder}; a run's is its pipeline/."
        )
    required, known = _expected_files(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    there = {name for name in there if "__pycache__/" not in name}
    problems = [f"{name} is missing" for name in sorted(required - there)]
    problems += [f"{name} does not belong to a pipeline; move it away" for name in sorted(there - known)]
    for name in sorted(there & known):
        problems += [f"{name} {problem}" for problem in _private_text(folder / name, folder)]
    if problems:
        return problems  # nothing of it is run

    pipeline = _load(folder)
    checksum = weights_checksum(pipeline.unet)
    results = _results(pipeline.companions)
    measured = results.get("protocol", {}).get("weights_checksum", checksum)
    if measured != checksum:
        problems.append(f"results.json was measured of other weights ({measured}, not {checksum}); evaluate these")
    broken = [name for name, tensor in pipeline.unet.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        return [*problems, f"its weights have values that are not finite, in {', '.join(broken[:3])}"]
    return problems + _load_without_package(folder)


def _expected_files(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the files that a published folder must have, and of those that it may have."""
    index = _json_of(folder, "model_index.json")
    try:
        (stem, _), (unet, _) = index["_class_name"], index["unet"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"model: expected the folder of a CondDDPMPipeline, got {folder}, whose model_index.json is other."
        ) from None
    required = {"model_index.json", f"{stem}.py", "scheduler/scheduler_config.json", "README.md", "samples.png"}
    required |= {f"unet/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors", f"{unet}.py")}
    return required, required | set(COMPANIONS)


# Of the Hub (also by OAuth, and of organisations), GitHub, GitLab, AWS, Google, Slack, PyPI, OpenAI and its like; signed web
# tokens; private keys.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|hf_oauth_[\w.-]{20,}|api_org_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|glpat-[\w-]{20,}|A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])|AIza[\w-]{35}|xox[abeprs]-[\w-]{20,}"
    r"|pypi-[\w-]{50,}|sk-[\w-]{32,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.ASCII,
)
# Of two names or more from the root; from a home; of a Windows drive or share. Not what follows letters, a dot or another
# slash, as in relative paths and "and/or"; not a Markdown link within a site. URLs are taken away before.
_LOCAL_PATH = re.compile(
    r"(?<![\w.~/\\])(?<!\]\()/(?:[\w.@+~%-]+/)+[\w.@+~%-]+"
    r"|(?<![\w~/])~(?:[^\W\d][\w.-]*)?/[\w.-]+"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+[\w.$@~-]+|/(?!/)[\w.$@~-]+)"
    r"|(?<![\w\\])\\\\{1,3}[\w.?$-]+\\+[\w.$-]+|(?<![\w:/.])//[\w.$-]+/[\w.$-]+|(?<!\w)file:/+[^\s\"'<>]*",
    re.IGNORECASE,
)

_URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def _private_text(file: Path, folder: Path) -> list[str]:
    """What a file has that must not be told: tokens, and paths of this machine (also of the folder itself)."""
    from huggingface_hub import get_token

    is_text = file.suffix not in (".safetensors", ".png")
    content, problems = file.read_bytes().decode("utf-8" if is_text else "latin-1", errors="replace"), []
    if file.suffix == ".json":  # as it is read: `\/` is a slash, and `\\` one backslash
        with contextlib.suppress(ValueError, RecursionError):  # which whoever loads it will say
            content = "\n".join(_strings(json.loads(content)))
    token = get_token() or ""
    if _TOKEN.search(content) or (len(token) > 8 and token in content):
        problems.append("holds a token; remove it, and revoke the token if the file has been elsewhere")
    if is_text:
        path = _LOCAL_PATH.search(_URL.sub("", content))
        places = (folder.resolve().parent, Path.cwd(), Path.home())
        own = next((place for place in places if len(place.parts) > 1 and f"{place}/" in content), None)
        if path or own:
            problems.append(f"names a path of this machine, {shown(path.group() if path else str(own))}; remove it")
    return problems


def _strings(value) -> Iterator[str]:
    """All that are in what a JSON file holds, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value:
            yield from _strings(inner)
        if isinstance(value, dict):
            yield from _strings(list(value.values()))


# What people will do who do not have this package. No token is at hand for the code that is run.
_STRANGER = """
import sys
sys.modules["cond_ddpm"] = None  # as if it were not installed
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
pipeline([0], seeds=[0], num_inference_steps=min(20, pipeline.scheduler.config.num_train_timesteps))
"""


def _load_without_package(folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as home:
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-I", "-c", _STRANGER, str(folder.resolve())],
            env={**keep, "HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"},
            cwd=home,
            capture_output=True,
            text=True,
        )
    said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [f"it does not load and sample without this package: {said}"] if done.returncode else []


# The upload


def publish(
    folder: Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    space: bool = False,
    say: Callable[[str], None] = print,
) -> str | None:
    """Complete a pipeline folder, check it, and upload it to the Hub as one commit; again, if it is there already.

    Args:
        folder: what `save_pretrained` wrote, such as RUN/pipeline.
        repo_id: USER/NAME; made, if it does not exist.
        private: only for those whom its owner lets in.
        dry_run: show what would be uploaded, and upload nothing.
        space: also a demo Space of the same name, that loads this commit.
        say: takes each line of what is to be shown.

    Returns:
        The commit's hash, None for a dry run.

    Raises:
        ValueError: a name that is not allowed; a folder that does not load, or has what must not be published; a
            repository of something else.
        ConnectionError, PermissionError, OSError: no connection; no token, or one without the right; another answer of the
            Hub. Nothing is half published then: it can be repeated.
    """
    check_name(repo_id)
    if private and space:
        raise ValueError("space: expected a public model, which a Space can load without a token; leave out one of the two.")
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model: expected a pipeline folder, with a model_index.json, got {folder}; a run's is its pipeline/."
        )
    complete(folder, repo_id)
    problems = check(folder)
    if problems:
        raise ValueError(f"model: {folder} cannot be published:\n" + "\n".join(f"  {problem}" for problem in problems))
    names = sorted(name for name in _expected_files(folder)[1] if (folder / name).is_file())
    files = {name: folder / name for name in names}
    say(f"checked: {folder} loads without cond_ddpm, samples, and has finite weights")
    _show(f"{'private ' if private else ''}model {repo_id}", files, say)
    demo = _space_files(folder, repo_id, "COMMIT") if space else {}
    if space:
        _show(f"Space {repo_id}", demo, say)
    if dry_run:
        say("dry run: nothing was uploaded")
        return None

    commit = _uploaded(repo_id, "model", files, private)
    say(f"{_endpoint()}/{repo_id}")
    say("from diffusers import DiffusionPipeline")
    say(f'pipeline = DiffusionPipeline.from_pretrained("{repo_id}", revision="{commit}", trust_remote_code=True)')
    say("pipeline(class_labels=[0], seeds=[0]).images[0]")
    if space:
        _uploaded(repo_id, "space", _space_files(folder, repo_id, commit), private)
        say(f"{_endpoint()}/spaces/{repo_id}")
    return commit


def check_name(repo_id: str) -> None:
    """Raise ValueError unless the Hub allows this name, with its owner."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ValueError(f"repo_id: expected USER/NAME, of letters, digits and - _ . only, got {repo_id!r}: {error}") from None


def check_access() -> str:
    """The user whom the Hub knows this machine's token by; asked before a long run, whose end would be a bad time to ask.

    Raises:
        ConnectionError, PermissionError, OSError: as `publish`.
    """
    from huggingface_hub import HfApi

    return _asked("whoami", lambda: HfApi(_endpoint(), _token()).whoami()["name"])


def _show(what: str, files: dict[str, Path | bytes], say: Callable[[str], None]) -> None:
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    say(f"{what}: {len(files)} files, {sum(sizes.values()) / 1e6:.2f} MB")
    for name, size in sizes.items():
        say(f"  {size:>12,}  {name}")


def _space_files(folder: Path, repo_id: str, commit: str) -> dict[str, Path | bytes]:
    """A gradio app that loads this commit of the model, without this package."""
    from importlib.metadata import version

    card = (
        f"---\ntitle: {repo_id.rpartition('/')[2]}\nsdk: gradio\napp_file: app.py\nlicense: {LICENCE}\n"
        f"models:\n- {repo_id}\n---\n\n"
        f"Images of a class, by [{repo_id}](https://huggingface.co/{repo_id}). Made with cond_ddpm.\n"
    )
    app = (
        "from demo import make_demo\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{repo_id}", revision="{commit}", trust_remote_code=True)\n'
        "make_demo(pipeline).launch()\n"
    )
    requirements = [f"{name}=={version(name).partition('+')[0]}\n" for name in ("torch", "diffusers", "safetensors")]
    return {
        "README.md": card.encode(),
        "app.py": app.encode(),
        "demo.py": Path(__file__).with_name("demo.py"),
        "requirements.txt": "".join([*requirements, "transformers\naccelerate\n"]).encode(),
    }


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise PermissionError("the Hub takes uploads by token only, and there is none here; `hf auth login`, or set HF_TOKEN.")
    return token


def _uploaded(repo_id: str, repo_type: str, files: dict[str, Path | bytes], private: bool) -> str:
    """Make the repository, if need be, and one commit after which it has these files and no others of theirs.

    Returns:
        The commit's hash.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(_endpoint(), _token())

    def attempt() -> str:
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, **sdk)
        now = api.repo_info(repo_id, repo_type=repo_type)
        there = {file.rfilename for file in now.siblings or ()} - {".gitattributes"}
        ours = set(COMPANIONS) | {name for name in there if name in files}
        foreign = sorted(there - ours) if repo_type == "model" else []
        if "model_index.json" in there and "pipeline_cond_ddpm.py" not in there:
            foreign = ["model_index.json"]
        if foreign:
            raise ValueError(
                f"repo_id: expected a new repository, or one of a pipeline like this, got {repo_id}, which has"
                f" {', '.join(foreign[:5])}; take another name."
            )
        if private and now.private is False:
            raise ValueError(f"private: expected a private repository, but {repo_id} exists and is public; change it there.")
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in sorted(there - set(files)) if repo_type == "model"]
        message = f"Published by cond_ddpm {cond_ddpm.__version__}"
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=now.sha).oid

    return _asked(repo_id, attempt)


def _asked(what: str, call: Callable[[], str], waits: tuple[float, ...] = (1, 3)) -> str:
    """`call()`, which may be repeated: again after a server's error or a lost connection; other errors in plain words."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for wait in (*waits, None):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise ConnectionError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 or wait is None:
                raise _in_plain_words(what, status, error) from None
        except (httpx2.TransportError, json.JSONDecodeError) as error:
            if wait is None:
                raise ConnectionError(
                    f"no connection to {_endpoint()}, or it was cut or not the Hub's ({type(error).__name__}); nothing was"
                    " published by this attempt, or all of it: repeat the command."
                ) from None
        time.sleep(wait)
    raise AssertionError("unreachable")


def _in_plain_words(what: str, status: int, error) -> OSError:
    said = f" The Hub says: {error.server_message}" if error.server_message else ""
    if status == 401:
        return PermissionError(
            f"{what}: the Hub does not know this token (401); `hf auth login`, or set HF_TOKEN to another.{said}"
        )
    if status == 403:
        return PermissionError(f"{what}: this token may not write there (403); take your own name, or a token that may.{said}")
    if status in (409, 412):
        return OSError(f"{what}: it is being changed by someone else just now ({status}); repeat the command.{said}")
    advice = "repeat the command later" if status >= 500 else "nothing was published"
    return OSError(f"{what}: the Hub answered {status}; {advice}.{said}")
