"""The command line, `cond-ddpm COMMAND`: parse, call, and turn errors of the user's input into one line.

May import: `config`; whatever a command needs, it imports when it is called, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable

import cond_ddpm


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
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="cond-ddpm ema", description=_COMMANDS["ema"][1])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, with its ema/ and pipeline/")
    parser.add_argument("--std", type=float, required=True, help="relative width, a share of the run: 0.02 to 0.25")
    parser.add_argument("--step", type=int, help="where the average ends, one of the snapshots (default: the last)")
    parser.add_argument("--output", type=Path, help="pipeline folder to write (default: RUN/pipeline-ema-STD)")
    given = parser.parse_args(arguments)

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.ema import combine_snapshots

    weights, rest = combine_snapshots(given.run / "ema", given.std, given.step)
    pipeline = CondDDPMPipeline.from_pretrained(given.run / "pipeline")
    pipeline.unet.load_state_dict(weights)
    output = given.output or given.run / f"pipeline-ema-{given.std:g}"
    pipeline.save_pretrained(output)
    print(f"{output}: averaged with relative width {given.std:g}; the snapshots miss {rest:.1%} of that profile")


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a model, in this one process (several: accelerate launch train_cond_ddpm.py)"),
    "ema": (_ema, "from a run's snapshots, write a pipeline averaged over another horizon, without training"),
}


def guarded(function: Callable, *arguments) -> int:
    """Call; what the user's input caused becomes one line and exit code 1. COND_DDPM_TRACEBACK=1 shows where it arose."""
    try:
        function(*arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("COND_DDPM_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
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
