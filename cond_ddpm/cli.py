"""The command line, `cond-ddpm COMMAND`: parse, call, and turn errors of the user's input into one line.

May import: `config`; whatever a command needs, it imports when it is called, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable

import cond_ddpm


def parse_train(arguments: list[str] | None = None, prog: str | None = None) -> "cond_ddpm.config.TrainConfig":
    """The settings of a run from `--config FILE` and flags, flags last; exits with code 2 on those it cannot take."""
    import jsonargparse

    from cond_ddpm.config import TrainConfig

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--FLAG VALUE ...]",
        description="Train a class-conditional DDPM.",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it override it.")
    parser.add_class_arguments(TrainConfig)
    settings = parser.parse_args(arguments).as_dict()
    settings.pop("config")
    try:
        return TrainConfig(**settings)
    except ValueError as error:
        parser.error(str(error))


def run_train(config: "cond_ddpm.config.TrainConfig") -> None:
    from cond_ddpm.train import train

    print(f"run folder: {train(config)}")


def _train(arguments: list[str]) -> None:
    run_train(parse_train(arguments, prog="cond-ddpm train"))


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a model, in this one process (several: accelerate launch train_cond_ddpm.py)"),
}


def guarded(function: Callable, *arguments) -> int:
    """Call; what the user's input caused becomes one line and exit code 1. COND_DDPM_TRACEBACK=1 shows where it arose."""
    try:
        function(*arguments)
    except (ValueError, OSError) as error:
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
