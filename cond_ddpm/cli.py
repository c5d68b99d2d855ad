"""The command line, `cond-ddpm COMMAND`: parse, call, and turn errors of the user's input into one line.

May import: `config, text`; whatever a command needs, it imports when it is called, so that `--help` answers at once.
"""

import argparse
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable

import cond_ddpm
from cond_ddpm.text import shown


def parse_train(arguments: list[str] | None = None, prog: str | None = None) -> "cond_ddpm.config.TrainConfig":
    """The settings of a run from `--config FILE` and flags, flags last; exits with code 2 on those it cannot take."""
    return _parse_train(arguments, prog)[0]


def _parse_train(arguments: list[str] | None, prog: str | None) -> tuple["cond_ddpm.config.TrainConfig", bool]:
    import jsonargparse

    from cond_ddpm.config import TrainConfig

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--FLAG VALUE ...] [--dry_run]",
        description="Train a class-conditional DDPM.",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it override it.")
    parser.add_argument("--dry_run", action="store_true", help="print what would run and how long, and run nothing.")
    parser.add_class_arguments(TrainConfig)
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument.partition("=")[0] == "--config" for argument in arguments[1:]):
        parser.error("--config: expected it first, since a file overrides the flags before it; move it to the front")
    try:
        settings = parser.parse_args(arguments).as_dict()
    except (AttributeError, UnicodeDecodeError, TypeError):  # what jsonargparse raises on a file of something else
        parser.error(f"--config: expected a YAML file of settings, got {arguments[1:2]}; a run's is its config.yaml")
    settings.pop("config")
    dry_run = settings.pop("dry_run")
    try:
        return TrainConfig(**settings), dry_run
    except ValueError as error:
        parser.error(str(error))


def run_train(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """`cond-ddpm train`, and what `train_cond_ddpm.py` runs."""
    config, dry = _parse_train(arguments, prog)

    from cond_ddpm.train import dry_run, train

    if dry:
        print(dry_run(config))
    else:
        run = train(config)
        if os.environ.get("RANK", "0") == "0":
            print(f"run folder: {run}")


def _train(arguments: list[str]) -> None:
    run_train(arguments, prog="cond-ddpm train")


def _ema(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cond-ddpm ema", description=_COMMANDS["ema"][1])
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a run, with its ema/ and pipeline/")
    parser.add_argument("--std", type=float, required=True, help="relative width, a share of the run: 0.02 to 0.25")
    parser.add_argument("--step", type=int, help="where the average ends, one of the snapshots (default: the last)")
    parser.add_argument(
        "--output", type=pathlib.Path, help="new folder (default: RUN/pipeline-ema-STD, or -STD-step-N; written anew)"
    )
    given = parser.parse_args(arguments)

    from cond_ddpm.ema import combine_snapshots
    from cond_ddpm.train import save_pipeline

    default = given.run / (f"pipeline-ema-{given.std}" + ("" if given.step is None else f"-step-{given.step}"))
    output = given.output or default
    taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if taken and output.resolve() != default.resolve():
        what = "is the run's own pipeline" if output.resolve() == (given.run / "pipeline").resolve() else "has other files"
        raise ValueError(f"output: expected a new or empty folder, got {output}, which {what}; give another.")
    weights, rest = combine_snapshots(given.run / "ema", given.std, given.step)
    pipeline = _from_pretrained(str(given.run / "pipeline"))
    pipeline.unet.load_state_dict(weights)
    pipeline.companions = {}  # those are of other weights
    save_pipeline(pipeline, output)
    print(f"{output}: averaged with relative width {given.std:g}; the snapshots miss {rest:.1%} of that profile")


def _pipeline_parser(command: str, text: str, without: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """The flags of every command that samples, those of `CondDDPMPipeline.__call__`, but for some that a command has not."""
    flags = {
        "model": {"required": True, "help": "pipeline folder, such as RUN/pipeline, or Hub repository"},
        "revision": {"help": "of the Hub repository"},
        "seed": {"type": int, "default": 0, "help": "of the first image; the next one has the next (default: 0)"},
        "num_inference_steps": {"type": int, "help": "default: 20, or for ddpm every timestep trained on"},
        "guidance_scale": {"type": float, "help": "1 conditional, 0 unconditional (default: the model's)"},
        "guidance_interval": {"type": float, "nargs": 2, "metavar": ("LO", "HI"), "help": "noise levels to guide at"},
        "guidance_rescale": {"type": float, "default": 0.0, "help": "0 (default) to 1"},
        "guide": {"help": "folder or repository of a worse model to guide by, in place of the null label"},
        "sampler": {"help": "ddpm, ddim, dpm++1, dpm++2, dpm++3, dpm++sde, unipc, heun or euler (default: the model's)"},
        "timestep_spacing": {"help": "leading, trailing, linspace, karras or quadratic (default: the sampler's)"},
        "batch_size": {"type": int, "default": 100, "help": "images at a time in each process (default: 100)"},
        "mixed_precision": {"choices": ("no", "bf16", "fp16"), "default": "no", "help": "autocast (default: no)"},
    }
    parser = argparse.ArgumentParser(prog=f"cond-ddpm {command}", description=text, allow_abbrev=False)
    for name, settings in flags.items():
        if name not in without:
            parser.add_argument(f"--{name}", **settings)
    if "mixed_precision" not in without:
        parser.add_argument(
            "--fast", action="store_true", help="bf16, compiled: half a minute to start, then the fastest for many images"
        )
    return parser


_CALL_ARGUMENTS = {"num_inference_steps", "guidance_scale", "guidance_interval", "guidance_rescale", "sampler"}
_CALL_ARGUMENTS |= {"timestep_spacing", "batch_size", "mixed_precision"}


def _load(given: argparse.Namespace) -> tuple["cond_ddpm.CondDDPMPipeline", dict]:
    """The pipeline, on this process's device, and the arguments to call it with."""
    from cond_ddpm.processes import process_state

    device = process_state().device
    pipeline = _from_pretrained(given.model, given.revision).to(device)
    arguments = {name: value for name, value in vars(given).items() if name in _CALL_ARGUMENTS}
    if getattr(given, "guide", None):
        arguments["guide"] = _from_pretrained(given.guide).to(device)
    fast, precision = getattr(given, "fast", False), getattr(given, "mixed_precision", "no")
    if (fast or precision != "no") and next(pipeline.unet.parameters(), None) is None:
        raise ValueError("fast, mixed_precision: expected neither with an exported model, which runs as it was exported.")
    if fast:
        if precision == "fp16":
            raise ValueError("fast: expected no --mixed_precision fp16 beside it, for it computes in bf16.")
        arguments["mixed_precision"] = "bf16"
        for one in (pipeline, arguments.get("guide")):
            if one is not None:
                one.unet.compile()
    return pipeline, arguments


def _from_pretrained(model: str, revision: str | None = None) -> "cond_ddpm.CondDDPMPipeline":
    folder = pathlib.Path(model)
    if (folder / "export.json").is_file():
        from cond_ddpm.export import load_exported

        return load_exported(folder)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        hint = "; a run's is its pipeline/, and `cond-ddpm ema --run RUN --std 0.05 --step N` writes one of an earlier step"
        raise ValueError(f"expected a pipeline folder, with a model_index.json, got {model}{hint}")
    return cond_ddpm.CondDDPMPipeline.from_pretrained(model, revision=revision)


def _labels(pipeline: "cond_ddpm.CondDDPMPipeline", given: list[str] | None) -> list[int]:
    """Ids of the classes named on the command line, a name before an id; every class, if none is."""
    if given is None:
        return list(range(pipeline.unet.config.num_classes))
    names = (pipeline.id2label or {}).values()
    is_id = lambda label: label not in names and re.fullmatch("-?[0-9]+", label)  # noqa: E731
    return pipeline.label_ids([int(label) if is_id(label) else label for label in given])


def _sample(arguments: list[str]) -> None:
    parser = _pipeline_parser("sample", _COMMANDS["sample"][1])
    parser.add_argument("--class_labels", nargs="+", help="names or ids (default: every class)")
    parser.add_argument("--unconditional", action="store_true", help="images of no class in particular")
    parser.add_argument("--num_images_per_class", type=int, default=8)
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="NAME.png, a labelled grid; NAME.npz; or a folder of CLASS/SEED.png"
    )
    given = parser.parse_args(arguments)
    if given.unconditional and given.class_labels:
        parser.error("--unconditional: expected no --class_labels beside it")
    if given.num_images_per_class < 1:
        parser.error(f"--num_images_per_class: expected 1 or more, got {given.num_images_per_class}")

    from cond_ddpm.processes import process_state
    from cond_ddpm.sampling import generate, save_samples

    pipeline, settings = _load(given)
    classes = [None] if given.unconditional else _labels(pipeline, given.class_labels)
    labels = None if given.unconditional else [label for label in classes for _ in range(given.num_images_per_class)]
    seeds = range(given.seed, given.seed + len(classes) * given.num_images_per_class)
    is_main = process_state().is_main_process
    if given.output.suffix.lower() == ".png":
        images = generate(pipeline, labels, seeds, progress=True, **settings)
        if is_main:
            from cond_ddpm.visualize import class_grid

            names = {**(pipeline.id2label or {}), None: "any class"}
            given.output.parent.mkdir(parents=True, exist_ok=True)
            class_grid(images, [names.get(label, f"class {label}") for label in classes], given.output)
    else:
        save_samples(pipeline, labels, seeds, given.output, progress=True, **settings)
    if is_main:
        print(f"{len(seeds)} images: {given.output}")


_KINDS = {
    "forward": "a real image at t = 0 to the last, the signal-to-noise ratio under each",
    "denoising": "x_t and the x_0 predicted from it, of one class",
    "gif": "noise becoming images, a row a class",
    "classes": "samples, a row a class",
    "guidance": "a column for each guidance_scale",
    "steps": "a column for each num_inference_steps",
    "epochs": "the same noise at moments of the training",
    "neighbours": "samples and the training images nearest to them: a check of memorisation",
    "loss": "training and validation loss of one run or several",
}
_ALL_CALLS = ("revision", "guide", *_CALL_ARGUMENTS)
_WITHOUT = {  # flags that would have no effect
    "forward": (*_ALL_CALLS[1:],),
    "guidance": ("guidance_scale",),
    "steps": ("num_inference_steps",),
    "epochs": ("model", "revision"),
    "loss": ("model", "seed", *_ALL_CALLS),
}
_COLUMNS = {"denoising": 9, "gif": 4, "classes": 8, "epochs": 8, "neighbours": 5}


def _visualize(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in _KINDS:
        lines = "\n".join(f"  {name:11} {text}" for name, text in _KINDS.items())
        usage = f"usage: cond-ddpm visualize KIND --output FILE [--FLAG VALUE ...]\n\n{lines}"
        if arguments[:1] in (["-h"], ["--help"]):
            print(usage)
            return
        wrong = f", got {arguments[0]!r}" if arguments else ""
        print(f"{usage}\n\nerror: expected one of {', '.join(_KINDS)}{wrong}", file=sys.stderr)
        raise SystemExit(2)
    kind = arguments[0]
    parser = _pipeline_parser(f"visualize {kind}", _KINDS[kind], _WITHOUT.get(kind, ()))
    parser.add_argument("--output", type=pathlib.Path, required=True, help="picture to write")
    if kind == "loss":
        parser.add_argument("--run", type=pathlib.Path, nargs="+", required=True, help="run folder, or several")
    elif kind in ("forward", "denoising"):
        parser.add_argument("--class_label", help="name or id (default: the first)")
    else:
        parser.add_argument("--class_labels", nargs="+", help="names or ids (default: every class)")
    if kind == "epochs":
        parser.add_argument("--run", type=pathlib.Path, required=True, help="run folder")
        parser.add_argument("--std", type=float, default=0.05, help="relative width of the averages (default: 0.05)")
    if kind in _COLUMNS:
        parser.add_argument("--columns", type=int, default=_COLUMNS[kind], help=f"default: {_COLUMNS[kind]}")
    if kind in ("forward", "neighbours"):
        parser.add_argument("--dataset", required=True, help="as for cond-ddpm train")
        parser.add_argument("--split", default="train", help="default: train")
    if kind == "forward":
        parser.add_argument("--index", type=int, default=0, help="which image of the class (default: 0)")
    if kind == "guidance":
        parser.add_argument("--scales", type=float, nargs="+", default=(0, 0.5, 1, 1.5, 2, 3, 5, 8), help="default: 0 to 8")
    if kind == "steps":
        parser.add_argument("--steps", type=int, nargs="+", default=(2, 3, 5, 10, 20, 50, 100), help="default: 2 to 100")
    given = parser.parse_args(arguments[1:])
    suffix = ".gif" if kind == "gif" else ".png"
    if given.output.suffix.lower() != suffix:
        parser.error(f"--output: expected a name ending in {suffix}, got {given.output}")
    least = 2 if kind == "denoising" else 1  # the first and the last step
    if getattr(given, "columns", least) < least:
        parser.error(f"--columns: expected {least} or more, got {given.columns}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    _draw(kind, given)
    print(given.output)


def _draw(kind: str, given: argparse.Namespace) -> None:
    from cond_ddpm import visualize

    if kind == "loss":
        names = [run.name for run in given.run]
        names = [name if names.count(name) == 1 else str(run) for name, run in zip(names, given.run)]
        runs = {name: visualize.read_metrics(run) for name, run in zip(names, given.run)}
        visualize.loss_curve(runs, given.output)
        return
    if kind == "epochs":
        given.model, given.revision = given.run / "pipeline", None
    pipeline, settings = _load(given)
    one = getattr(given, "class_label", None)
    classes = _labels(pipeline, [one] if one is not None else getattr(given, "class_labels", None))
    names = [(pipeline.id2label or {}).get(label, f"class {label}") for label in classes]
    where = {"path": given.output, "seed": given.seed}
    columns = getattr(given, "columns", 1)
    if kind == "forward":
        data = _data(given, pipeline)
        of_class = [index for index, label in enumerate(data.labels) if label == classes[0]]
        if not 0 <= given.index < len(of_class):
            raise ValueError(f"index: expected 0 to {len(of_class) - 1}, the images of that class, got {given.index}.")
        visualize.forward_strip(
            data.images[of_class[given.index]], pipeline.scheduler, title=f"{names[0]}, a real image, noised", **where
        )
    elif kind == "denoising":
        visualize.denoising_strip(pipeline, classes[0], columns=columns, **where, **settings)
    elif kind == "gif":
        visualize.denoising_gif(pipeline, classes, columns=columns, **where, **settings)
    elif kind == "guidance":
        visualize.guidance_sweep(pipeline, classes, scales=given.scales, **where, **settings)
    elif kind == "steps":
        visualize.steps_sweep(pipeline, classes, steps=given.steps, **where, **settings)
    elif kind == "epochs":
        visualize.epochs_strip(given.run, pipeline, classes, columns=columns, std=given.std, **where, **settings)
    else:
        from cond_ddpm.sampling import generate

        labels = [label for label in classes for _ in range(columns if kind == "classes" else 1)]
        if kind == "neighbours":  # before images are made
            data = _data(given, pipeline)
            if columns > len(data):
                raise ValueError(f"columns: expected at most the {len(data)} training images, got {columns}.")
        images = generate(pipeline, labels, range(given.seed, given.seed + len(labels)), progress=True, **settings)
        if kind == "classes":
            visualize.class_grid(images, names, given.output)
        else:
            visualize.nearest_neighbours(images, names, data.images, given.output, columns)


def _data(given: argparse.Namespace, pipeline: "cond_ddpm.CondDDPMPipeline") -> "cond_ddpm.LabelledImages":
    """The data set, at the network's size."""
    from cond_ddpm.data import load_images

    data = load_images(given.dataset, given.split, pipeline.unet.config.sample_size, pipeline.unet.config.in_channels)
    names = list((pipeline.id2label or {}).values())
    if names and names != data.class_names:
        raise ValueError(f"dataset: expected the model's classes, {', '.join(names)}, got {', '.join(data.class_names)}.")
    return data


def _evaluate(arguments: list[str]) -> None:
    parser = _pipeline_parser("evaluate", _COMMANDS["evaluate"][1], ("model",))
    path = pathlib.Path
    parser.add_argument("--model", help="pipeline folder, such as RUN/pipeline, or Hub repository")
    parser.add_argument("--samples", type=path, help="in place of a model: a folder of CLASS/*.png, or an .npz")
    parser.add_argument("--dataset", required=True, help="real images, as for cond-ddpm train")
    parser.add_argument("--split", default="train", help="that samples are compared with (default: train)")
    parser.add_argument("--test_split", help="real images whose figures are the limit (default: test, or a tenth of --split)")
    parser.add_argument("--num_samples", type=int, default=50_000, help="default: 50000, the literature's")
    parser.add_argument("--features", default="classifier", help="classifier (default), inception, dinov2, or DINOv2's folder")
    parser.add_argument("--weights", help="of Inception or DINOv2, where they cannot be downloaded")
    parser.add_argument("--repeats", type=int, default=1, help="with other seeds, for mean and deviation (default: 1)")
    parser.add_argument(
        "--subset", type=int, default=5000, help="images that KID, precision and recall are of (default: 5000)"
    )
    parser.add_argument("--resolution", type=int, default=32, help="of --samples (default: 32)")
    parser.add_argument("--save_samples", type=path, help="keep the samples: an .npz, or a new folder")
    parser.add_argument("--dataset_config_name", help="as for cond-ddpm train, like the two below")
    parser.add_argument("--image_column")
    parser.add_argument("--label_column")
    parser.add_argument("--output", type=path, required=True, help="results.json")
    given = parser.parse_args(arguments)
    if (given.model is None) == (given.samples is None):
        parser.error("--model: expected either a model or --samples")
    fixed = {"samples", "dataset", "output"}
    fixed |= {f"{name}split" for name in ("", "test_")} | {"features", "weights", "subset", "resolution"}
    fixed |= {"dataset_config_name", "image_column", "label_column"}
    for name, value in vars(given).items():
        if given.samples is not None and name not in fixed and value != parser.get_default(name):
            parser.error(f"--{name}: expected none with --samples, which are made already")
    if given.model is not None and given.resolution != parser.get_default("resolution"):
        parser.error("--resolution: expected none with --model, which has its own")

    from cond_ddpm.evaluate.evaluate import Protocol, evaluate
    from cond_ddpm.evaluate.report import summary
    from cond_ddpm.processes import process_state

    settings = {name: value for name, value in vars(given).items() if name in Protocol.__dataclass_fields__}
    protocol = Protocol(**settings)
    if given.samples is not None:
        results = evaluate(protocol, given.output, samples=given.samples)
    else:
        pipeline, settings = _load(given)
        results = evaluate(protocol, given.output, given.model, pipeline, keep=given.save_samples, **settings)
        is_its_own = given.output.resolve() == pathlib.Path(given.model).resolve() / "results.json"
        if is_its_own and process_state().is_main_process:
            from cond_ddpm.hub import complete

            complete(given.output.parent)  # its card tells what was measured
    if process_state().is_main_process:
        print(summary(results))
        print(given.output)


def _study(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cond-ddpm study", description=_COMMANDS["study"][1], allow_abbrev=False)
    parser.add_argument("--config", type=pathlib.Path, required=True, help="such as configs/study.yaml")
    given = parser.parse_args(arguments)

    from cond_ddpm.experiments.study import read_study, study

    folder = study(read_study(given.config))
    print((folder / "study.md").read_text(encoding="utf-8"), end="")
    print(folder)


def _tune(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cond-ddpm tune", description=_COMMANDS["tune"][1], allow_abbrev=False)
    parser.add_argument("--config", type=pathlib.Path, required=True, help="such as configs/tune.yaml")
    given = parser.parse_args(arguments)

    from cond_ddpm.experiments.tune import read_tune, tune

    folder = tune(read_tune(given.config))
    if (folder / "best.yaml").is_file():
        print((folder / "best.yaml").read_text(), end="")
    print(folder)


def _publish(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cond-ddpm publish", description=_COMMANDS["publish"][1], allow_abbrev=False)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="pipeline folder, such as RUN/pipeline")
    parser.add_argument("--repo_id", required=True, help="USER/NAME on the Hub; made, if it does not exist")
    parser.add_argument("--private", action="store_true", help="only for those whom its owner lets in")
    parser.add_argument("--space", action="store_true", help="also a demo Space of the same name")
    parser.add_argument("--dry_run", action="store_true", help="check, show what would be uploaded, and upload nothing")
    given = parser.parse_args(arguments)

    from cond_ddpm.hub import publish

    publish(given.model, given.repo_id, given.private, given.dry_run, given.space)


def _export(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cond-ddpm export", description=_COMMANDS["export"][1], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="pipeline folder, such as RUN/pipeline, or Hub repository")
    parser.add_argument("--revision", help="of the Hub repository")
    parser.add_argument("--format", choices=("onnx", "torch"), required=True, help="onnx, or torch's own exported program")
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="folder to write; --model takes it where images are made"
    )
    given = parser.parse_args(arguments)

    from cond_ddpm.export import export

    difference = export(_from_pretrained(given.model, given.revision), given.format, given.output)
    print(f"{given.output}: the same as the network to within {difference:.1e}, over batches and timesteps")


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a model, in this one process (several: accelerate launch train_cond_ddpm.py)"),
    "sample": (_sample, "images of the classes asked for (on several processes: accelerate launch -m cond_ddpm.cli sample)"),
    "visualize": (_visualize, "pictures: noising, denoising, classes, guidance, steps, epochs, neighbours, losses"),
    "evaluate": (_evaluate, "measure a model or samples against real images (several: accelerate launch -m cond_ddpm.cli)"),
    "study": (_study, "train and measure several models on the same data, with the same judge"),
    "tune": (_tune, "search settings of training with Optuna"),
    "publish": (_publish, "check a pipeline folder, write its card, upload it to the Hub; a demo Space, too"),
    "export": (_export, "the network as ONNX, or as torch's exported program, to sample without its weights and code"),
    "ema": (_ema, "from a run's snapshots, write a pipeline averaged over another horizon, without training"),
}


def guarded(function: Callable, *arguments) -> int:
    """Call; what the user's input caused becomes one line and exit code 1. COND_DDPM_TRACEBACK=1 shows where it arose."""
    try:
        function(*arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("COND_DDPM_TRACEBACK") == "1":
            raise
        # Line by line: what others have named may hold what a terminal obeys.
        print("error: " + "\n".join(map(shown, str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before training has begun, which would finish its step; or a second one
        if os.environ.get("COND_DDPM_TRACEBACK") == "1":
            raise
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    lines = "\n".join(f"  {name:10} {text}" for name, (_, text) in _COMMANDS.items())
    usage = f"usage: cond-ddpm COMMAND [--help] [--FLAG VALUE ...]\n\n{lines}\n"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(cond_ddpm.__version__)
        return 0
    if arguments[0] not in _COMMANDS:
        print(f"{usage}\nerror: expected one of {', '.join(_COMMANDS)}, got {arguments[0]!r}", file=sys.stderr)
        return 2
    return guarded(_COMMANDS[arguments[0]][0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
