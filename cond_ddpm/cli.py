"""The command line, `cond-ddpm COMMAND`: a table of the commands, and errors of the user's input in one line.

May import: `commands, config, text`. The settings of a command become its flags in `config/flags.py`; what it does is in
`commands.py`. Both are imported when it is called, so that `--help` answers at once.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Optional

import cond_ddpm
from cond_ddpm.text import shown

if TYPE_CHECKING:
    from cond_ddpm.config import Settings, TrainConfig


class Command(NamedTuple):
    """A function of `commands.py`, the class of its settings in `config/`, and what --help says; or a table of its own."""

    function: str
    settings: str
    text: str
    kinds: Optional["dict[str, Command]"] = None


KINDS = {
    "forward": Command(
        "forward",
        "visualization.ForwardConfig",
        "a real image at t = 0 to the last, the signal-to-noise ratio under each",
    ),
    "denoising": Command("denoising", "visualization.DenoisingConfig", "x_t and the x_0 predicted from it, of one class"),
    "gif": Command("gif", "visualization.GifConfig", "noise becoming images, a row a class"),
    "classes": Command("classes", "visualization.ClassGridConfig", "samples, a row a class"),
    "guidance": Command("guidance", "visualization.GuidanceSweepConfig", "a column for each guidance_scale"),
    "steps": Command("steps", "visualization.StepsSweepConfig", "a column for each num_inference_steps"),
    "epochs": Command("epochs", "visualization.EpochsConfig", "the same noise at moments of the training"),
    "neighbours": Command(
        "neighbours",
        "visualization.NeighboursConfig",
        "samples and the training images nearest to them: a check of memorisation",
    ),
    "loss": Command("loss", "visualization.LossConfig", "training and validation loss of one run or several"),
}
COMMANDS = {
    "train": Command(
        "train",
        "training.TrainCommandConfig",
        "train a model, in this one process (several: accelerate launch train_cond_ddpm.py)",
    ),
    "sample": Command(
        "sample",
        "sampling.SampleConfig",
        "images of the classes asked for (on several processes: accelerate launch -m cond_ddpm.cli sample)",
    ),
    "visualize": Command("", "", "pictures: noising, denoising, classes, guidance, steps, epochs, neighbours, losses", KINDS),
    "evaluate": Command(
        "evaluate",
        "evaluation.EvaluateConfig",
        "measure a model or samples against real images (several: accelerate launch -m cond_ddpm.cli)",
    ),
    "study": Command(
        "study", "experiments.StudyConfig", "train and measure several models on the same data, with the same judge"
    ),
    "tune": Command("tune", "experiments.TuneConfig", "search settings of training with Optuna"),
    "publish": Command(
        "publish",
        "publishing.PublishConfig",
        "check a pipeline folder, write its card, upload it to the Hub; a demo Space, too",
    ),
    "export": Command(
        "export",
        "sampling.ExportConfig",
        "the network as ONNX, or as torch's exported program, to sample without its weights and code",
    ),
    "ema": Command(
        "ema",
        "publishing.EmaConfig",
        "from a run's snapshots, write a pipeline averaged over another horizon, without training",
    ),
}


def settings_of(command: Command, arguments: list[str] | None = None, prog: str | None = None) -> "Settings":
    """The settings of a command from `--config FILE` and flags; exits with code 2 on those it cannot take."""
    from cond_ddpm.config.flags import parse

    module, _, name = command.settings.rpartition(".")
    class_ = getattr(importlib.import_module(f"cond_ddpm.config.{module}"), name)
    return parse(class_, sys.argv[1:] if arguments is None else arguments, prog, command.text)


def run(command: Command, arguments: list[str] | None = None, prog: str | None = None) -> None:
    settings = settings_of(command, arguments, prog)
    text = getattr(importlib.import_module("cond_ddpm.commands"), command.function)(settings)
    if text is not None:
        print(text)


def parse_train(arguments: list[str] | None = None) -> "TrainConfig":
    """The settings of a run, as the command line would have them."""
    from cond_ddpm.config import TrainConfig

    return settings_of(COMMANDS["train"], arguments).part(TrainConfig)


def run_train() -> None:
    """What `train_cond_ddpm.py` runs: `cond-ddpm train` with this process's arguments."""
    run(COMMANDS["train"])


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
    if arguments[:1] == ["--version"]:
        print(cond_ddpm.__version__)
        return 0
    return _choose(COMMANDS, "cond-ddpm", "COMMAND", arguments)


def _choose(table: dict[str, Command], prog: str, what: str, arguments: list[str]) -> int:
    """Run the command of a table that the first argument names."""
    lines = "\n".join(f"  {name:10} {command.text}" for name, command in table.items())
    usage = f"usage: {prog} {what} [--help] [--config FILE] [--FLAG VALUE ...]\n\n{lines}"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in table:
        print(f"{usage}\n\nerror: expected one of {', '.join(table)}, got {name!r}", file=sys.stderr)
        return 2
    command = table[name]
    if command.kinds is not None:
        return _choose(command.kinds, f"{prog} {name}", "KIND", rest)
    return guarded(run, command, rest, f"{prog} {name}")


if __name__ == "__main__":
    sys.exit(main())
