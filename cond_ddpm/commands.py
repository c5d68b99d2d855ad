"""What each command does, given its settings: load what they name, call the package, return the text to show.

May import: everything but the command line, which calls these functions. Each command imports what it needs when it is
called, so that light commands start at once.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cond_ddpm import install_hint
from cond_ddpm.config import visualization
from cond_ddpm.config.data import DataConfig, RealImagesConfig
from cond_ddpm.config.demo import LOOPBACK, DemoConfig
from cond_ddpm.config.evaluation import EvaluateConfig
from cond_ddpm.config.experiments import StudyConfig, TuneConfig
from cond_ddpm.config.presets import PresetsConfig, preset_table
from cond_ddpm.config.publishing import EmaConfig, PublishConfig
from cond_ddpm.config.quickstart import QuickstartConfig
from cond_ddpm.config.sampling import ExportConfig, SampleConfig
from cond_ddpm.config.training import TrainCommandConfig, TrainConfig
from cond_ddpm.files import is_free
from cond_ddpm.loading import from_pretrained, load
from cond_ddpm.pretrained_models import pretrained_pipelines

if TYPE_CHECKING:
    import numpy as np

    from cond_ddpm.data import LabelledImages
    from cond_ddpm.demo import Model
    from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline

MOMENTS_STD = TrainConfig.ema_std  # the width of the averages of earlier moments of a training


def quickstart(config: QuickstartConfig) -> str:
    from cond_ddpm.quickstart import quickstart

    return quickstart(config)


def presets(config: PresetsConfig) -> str:
    return preset_table()


def data(config: DataConfig) -> str:
    from cond_ddpm.data import compare, prepare, report

    prepared = prepare(config.dataset, config.split, config)
    written = report(config.dataset, prepared)
    compare(written, config.dataset, prepared, config.test_split)
    if config.output is not None:
        from cond_ddpm.visualize import contact_sheet

        contact_sheet(prepared.images, prepared.random_flip, _new(config.output))
    text = written.whole if config.all_files else str(written)
    if written.named and not config.all_files:
        text += "\nWhere more files are counted than named, --all_files true names them all."
    return text if config.output is None else f"{text}\n{config.output}"


def train(config: TrainCommandConfig) -> str | None:
    from cond_ddpm.api import train
    from cond_ddpm.training import dry_run

    if config.dry_run:
        text = dry_run(config.part(TrainConfig))
        return text if os.environ.get("RANK", "0") == "0" else None
    run = train(config.part(TrainConfig), choose_guidance=config.choose_guidance)
    return f"run folder: {run}" if os.environ.get("RANK", "0") == "0" else None


def sample(config: SampleConfig) -> str | None:
    from cond_ddpm.fingerprints import value_fingerprint
    from cond_ddpm.heartbeat import together
    from cond_ddpm.processes import process_state
    from cond_ddpm.sampling import drawn_by, generate, save_samples

    with together(process_state()):
        pipeline, arguments = load(config.model, config.revision, config)
        classes = None if config.unconditional else _labels(pipeline, config.class_labels)
        labels = None if classes is None else [label for label in classes for _ in range(config.num_images_per_class)]
        seeds = range(config.seed, config.seed + (config.num_images_per_class if labels is None else len(labels)))
        is_main = process_state().is_main_process
        if config.output.suffix.lower() == ".png":
            images = generate(pipeline, labels, seeds, progress=True, **arguments)
            if is_main:
                from cond_ddpm.visualize import class_grid

                class_grid(images, [pipeline.class_name(label) for label in classes or (None,)], _new(config.output))
        else:
            key = value_fingerprint([drawn_by(pipeline, arguments), pipeline.id2label])
            unfinished, _ = save_samples(pipeline, labels, seeds, config.output, progress=True, resume_key=key, **arguments)
            process_state().wait_for_everyone()  # until every process has seen that all images are there
            for file in unfinished if is_main else ():
                file.unlink(missing_ok=True)
        return f"{len(seeds)} images: {config.output}" if is_main else None


def evaluate(config: EvaluateConfig) -> str | None:
    from cond_ddpm.api import evaluate
    from cond_ddpm.evaluation.report import summary
    from cond_ddpm.processes import process_state

    results = evaluate(config)
    return f"{summary(results)}\n{config.output}" if process_state().is_main_process else None


def report(config: visualization.ReportConfig) -> str:
    from cond_ddpm.visualize import run_report

    return str(run_report(config.run))


def study(config: StudyConfig) -> str:
    from cond_ddpm.experiments.study import study

    folder = study(config)
    return f"{(folder / 'study.md').read_text(encoding='utf-8')}{folder}"


def tune(config: TuneConfig) -> str:
    from cond_ddpm.experiments.tune import tune

    folder = tune(config)
    best = folder / "best.yaml"
    return f"{best.read_text() if best.is_file() else ''}{folder}"


def publish(config: PublishConfig) -> None:
    from cond_ddpm.hub import publish

    publish(
        config.model,
        config.repo_id,
        config.private,
        config.dry_run,
        config.space,
        config.space_hardware,
        licences=(config.license, config.dataset_license),
    )


def export(config: ExportConfig) -> str:
    pipeline = from_pretrained(config.model, config.revision)
    if config.format == "web":
        from cond_ddpm.web import export_page

        # The page is public: of a folder elsewhere on this machine it says only the name.
        folder = Path(config.model)
        source = folder.resolve().name if folder.is_absolute() or ".." in folder.parts else config.model
        difference = export_page(pipeline, config.output, source, Path(source).name, config.runtime)
        megabytes = sum(file.stat().st_size for file in config.output.rglob("*") if file.is_file()) / 1e6
        return (
            f"{config.output}: {megabytes:.1f} MB, the same as the network to within {difference:.1e}\n"
            f"to see it: python {config.output / 'serve.py'}"
        )
    from cond_ddpm.export import export

    difference = export(pipeline, config.format, config.output)
    return f"{config.output}: the same as the network to within {difference:.1e}, over batches and timesteps"


def demo(config: DemoConfig) -> None:
    try:
        from cond_ddpm.demo import launch, make_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(f"demo: expected gradio, which is not installed; {install_hint('demo')}.") from None
    models, pictures = _demo_models(config), None
    if config.dataset:
        first = models[0].load()
        models[0] = dataclasses.replace(models[0], load=lambda: first)  # it is not loaded twice
        pictures = _demo_pictures(config.dataset, first)
    page = make_demo(models, real_pictures=pictures)
    password = config.visitors_password
    if config.host not in LOOPBACK and password is None:
        print(f"anyone who can reach {config.host}:{config.port} can use this machine's time: --password keeps others out")
    launch(
        page,
        server_name=config.host,
        server_port=config.port or None,
        auth=None if password is None else ("demo", password),
        inbrowser=config.open_browser and config.host in LOOPBACK,
    )


def ema(config: EmaConfig) -> str:
    from cond_ddpm.ema import combine_snapshots
    from cond_ddpm.training import save_pipeline

    default = config.run / (f"pipeline-ema-{config.std}" + ("" if config.step is None else f"-step-{config.step}"))
    output = config.output or default
    if not is_free(output) and output.resolve() != default.resolve():
        what = "is the run's own pipeline" if output.resolve() == (config.run / "pipeline").resolve() else "has other files"
        raise ValueError(f"output: expected a new or empty folder, got {output}, which {what}; give another.")
    weights, rest = combine_snapshots(config.run / "ema", config.std, config.step)
    pipeline = from_pretrained(str(config.run / "pipeline"))
    pipeline.unet.load_state_dict(weights)
    pipeline.companions = {}  # those belong to other weights
    save_pipeline(pipeline, output)
    return f"{output}: averaged with relative width {config.std:g}; the snapshots cannot represent {rest:.1%} of that profile"


# visualize KIND


def forward(config: visualization.ForwardConfig) -> str:
    from cond_ddpm import visualize

    pipeline = from_pretrained(config.model, config.revision)
    label = _label(pipeline, config.class_label)
    data = _real_images(config, pipeline)
    of_class = [index for index, found in enumerate(data.labels) if found == label]
    if not 0 <= config.index < len(of_class):
        raise ValueError(f"index: expected 0 to {len(of_class) - 1}, the images of that class, got {config.index}.")
    title = f"{pipeline.class_name(label)}, a real image with increasing noise"
    image = data.images[of_class[config.index]]
    visualize.forward_strip(image, pipeline.scheduler, _new(config.output), title, seed=config.seed)
    return str(config.output)


def denoising(config: visualization.DenoisingConfig) -> str:
    from cond_ddpm import visualize

    pipeline, arguments = load(config.model, config.revision, config)
    label = _label(pipeline, config.class_label)
    visualize.denoising_strip(pipeline, label, _new(config.output), config.columns, config.seed, **arguments)
    return str(config.output)


def gif(config: visualization.GifConfig) -> str:
    from cond_ddpm import visualize

    pipeline, arguments = load(config.model, config.revision, config)
    labels = _labels(pipeline, config.class_labels)
    visualize.denoising_gif(pipeline, labels, _new(config.output), config.columns, seed=config.seed, **arguments)
    return str(config.output)


def classes(config: visualization.ClassGridConfig) -> str:
    from cond_ddpm import visualize
    from cond_ddpm.sampling import generate

    pipeline, arguments = load(config.model, config.revision, config)
    classes = _labels(pipeline, config.class_labels)
    labels = [label for label in classes for _ in range(config.columns)]
    images = generate(pipeline, labels, range(config.seed, config.seed + len(labels)), progress=True, **arguments)
    visualize.class_grid(images, [pipeline.class_name(label) for label in classes], _new(config.output))
    return str(config.output)


def guidance(config: visualization.GuidanceSweepConfig) -> str:
    from cond_ddpm import visualize

    pipeline, arguments = load(config.model, config.revision, config)
    labels = _labels(pipeline, config.class_labels)
    visualize.guidance_sweep(pipeline, labels, _new(config.output), config.scales, config.seed, **arguments)
    return str(config.output)


def steps(config: visualization.StepsSweepConfig) -> str:
    from cond_ddpm import visualize

    pipeline, arguments = load(config.model, config.revision, config)
    labels = _labels(pipeline, config.class_labels)
    visualize.steps_sweep(pipeline, labels, _new(config.output), config.steps, config.seed, **arguments)
    return str(config.output)


def epochs(config: visualization.EpochsConfig) -> str:
    from cond_ddpm import visualize

    pipeline, arguments = load(str(config.run / "pipeline"), None, config)
    labels = _labels(pipeline, config.class_labels)
    output = _new(config.output)
    visualize.epochs_strip(config.run, pipeline, labels, output, config.columns, config.std, config.seed, **arguments)
    return str(config.output)


def neighbours(config: visualization.NeighboursConfig) -> str:
    from cond_ddpm import visualize
    from cond_ddpm.sampling import generate

    pipeline, arguments = load(config.model, config.revision, config)
    labels = _labels(pipeline, config.class_labels)
    data = _real_images(config, pipeline)
    if config.columns > len(data):  # before images are made
        raise ValueError(f"columns: expected at most the {len(data)} training images, got {config.columns}.")
    images = generate(pipeline, labels, range(config.seed, config.seed + len(labels)), progress=True, **arguments)
    visualize.nearest_neighbours(
        images, [pipeline.class_name(label) for label in labels], data.images, _new(config.output), config.columns
    )
    return str(config.output)


def loss(config: visualization.LossConfig) -> str:
    from cond_ddpm import visualize

    names = [run.name for run in config.run]
    names = [name if names.count(name) == 1 else str(run) for name, run in zip(names, config.run)]
    runs = {name: visualize.read_metrics(run) for name, run in zip(names, config.run)}
    visualize.loss_curve(runs, _new(config.output))
    return str(config.output)


# What commands share


def _demo_models(config: DemoConfig) -> list["Model"]:
    """The model of the demo, and those to compare it with: all that are named, and the moments of their trainings."""
    model = config.model
    if model is None and pretrained_pipelines():
        model = next(iter(pretrained_pipelines()))
    if model in (None, "newest"):
        model = str(_newest_run())
    found = {one.name: one for name in [model, *(config.compare or ())] for one in _demo_model(name, config.revision)}
    return list(found.values())


def _demo_model(model: str, revision: str | None) -> list["Model"]:
    """A model and, of a run, the earlier moments of its training that have a snapshot."""
    from cond_ddpm.demo import Model
    from cond_ddpm.ema import combine_snapshots, snapshot_steps
    from cond_ddpm.processes import process_state

    folder = Path(model)
    run = folder if (folder / "pipeline" / "model_index.json").is_file() else folder.parent
    source = str(folder / "pipeline") if run == folder else model
    is_run = (run / "ema").is_dir() and (run / "pipeline").resolve() == Path(source).resolve()
    if not folder.exists() and model in pretrained_pipelines():
        imports, argument = "CondDDPMPipeline, pretrained", f"pretrained({model!r})"
    else:
        imports, argument = "CondDDPMPipeline", repr(source) + (f", revision={revision!r}" if revision else "")
    lines = f"from cond_ddpm import {imports}\n\npipeline = CondDDPMPipeline.from_pretrained({argument})"

    def loaded(step: int | None = None) -> "CondDDPMPipeline":
        pipeline = from_pretrained(source, revision)
        if step is not None:
            pipeline.unet.load_state_dict(combine_snapshots(run / "ema", MOMENTS_STD, step)[0])
        return pipeline.to(process_state().device)

    models = [Model(model, loaded, lines)]
    for step in snapshot_steps(run / "ema")[:-1] if is_run else ():
        averaged = f"{run}/pipeline-ema-{MOMENTS_STD}-step-{step}"
        first = f"# first: cond-ddpm ema --run {run} --std {MOMENTS_STD} --step {step}\n"
        moment = f"{first}from cond_ddpm import CondDDPMPipeline\n\npipeline = CondDDPMPipeline.from_pretrained({averaged!r})"
        models.append(Model(f"{model}, step {step}", functools.partial(loaded, step), moment))
    return models


def _newest_run() -> Path:
    """The run folder below this one whose pipeline was written last."""
    found = [*Path().glob("pipeline/model_index.json"), *Path().glob("*/pipeline/model_index.json")]
    found += Path().glob("*/*/pipeline/model_index.json")
    if not found:
        raise ValueError(
            "model: expected a pipeline folder, a run folder or a Hub repository, or a run below this folder, found none;"
            " train one by `cond-ddpm quickstart`, or name one."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def _demo_pictures(dataset: str, pipeline: "CondDDPMPipeline") -> "dict[str, np.ndarray]":
    """The first real picture of each of the first classes."""
    from cond_ddpm.data import load_images
    from cond_ddpm.hub.folder import trained_fit

    unet = pipeline.unet.config
    data = load_images(dataset, "train", unet.sample_size, unet.in_channels, fit=trained_fit(pipeline.companions))
    labels = list(data.labels)
    return {name: data.images[labels.index(label)] for label, name in enumerate(data.class_names[:12]) if label in labels}


def _labels(pipeline: "CondDDPMPipeline", given: Sequence[str | int] | None) -> list[int]:
    """The ids of the given classes (names are tried before ids); every class, if none was given."""
    if given is None:
        return list(range(pipeline.unet.config.num_classes))
    names = (pipeline.id2label or {}).values()
    is_id = lambda label: label not in names and re.fullmatch("-?[0-9]+", label)  # noqa: E731
    return pipeline.label_ids([int(label) if is_id(label) else label for label in map(str, given)])


def _label(pipeline: "CondDDPMPipeline", given: str | int | None) -> int:
    """The id of the given class; the first class, if none was given."""
    return _labels(pipeline, None if given is None else [given])[0]


def _real_images(config: RealImagesConfig, pipeline: "CondDDPMPipeline") -> "LabelledImages":
    """The data set, at the network's size."""
    from cond_ddpm.data import load_images
    from cond_ddpm.hub.folder import trained_fit

    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    columns = (config.dataset_config_name, config.image_column, config.label_column)
    fit = config.fit or trained_fit(pipeline.companions)
    data = load_images(config.dataset, config.split, size, channels, *columns, fit)
    names = list((pipeline.id2label or {}).values())
    if names and names != data.class_names:
        raise ValueError(f"dataset: expected the model's classes, {', '.join(names)}, got {', '.join(data.class_names)}.")
    return data


def _new(file: Path) -> Path:
    """The path, once its folder has been made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
