"""The command line, `cond-ddpm COMMAND`: a table of the commands. An error in the user's input is one line.

May import: `commands, config, text`. The settings of a command become its flags in `config/flags.py`; what it does is in
`commands.py`. Both are imported only when a command is called, so that `--help` answers at once.
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
    """A function of `commands.py`, the class of its settings in `config/`, and its help; or, in `kinds`, its subcommands."""

    function: str
    settings: str
    text: str
    kinds: Optional["dict[str, Command]"] = None


KINDS = {
    "forward": Command(
        "forward",
        "visualization.ForwardConfig",
        "a real image with increasing noise, and the signal-to-noise ratio below each",
    ),
    "denoising": Command("denoising", "visualization.DenoisingConfig", "x_t and the x_0 predicted from it, of one class"),
    "gif": Command("gif", "visualization.GifConfig", "an animation of noise turning into images, a row for each class"),
    "classes": Command("classes", "visualization.ClassGridConfig", "samples, a row for each class"),
    "guidance": Command("guidance", "visualization.GuidanceSweepConfig", "a column for each guidance_scale"),
    "steps": Command("steps", "visualization.StepsSweepConfig", "a column for each num_inference_steps"),
    "epochs": Command("epochs", "visualization.EpochsConfig", "samples from the same noise at several points in the training"),
    "neighbours": Command(
        "neighbours",
        "visualization.NeighboursConfig",
        "samples and the training images nearest to them: a check of memorisation",
    ),
    "loss": Command("loss", "visualization.LossConfig", "training and validation loss of one run or several"),
}
COMMANDS = {
    "quickstart": Command(
        "quickstart",
        "quickstart.QuickstartConfig",
        "from nothing to class-conditional digits: train a small model, judge and draw its samples",
    ),
    "presets": Command("presets", "presets.PresetsConfig", "the names that --config takes, each with its cost and result"),
    "data": Command(
        "data",
        "data.DataConfig",
        "look at a data set: sizes, classes, copies, faults, what training would choose, and a picture of it",
    ),
    "train": Command(
        "train",
        "training.TrainCommandConfig",
        "train a model in one process (on several: accelerate launch train_cond_ddpm.py)",
    ),
    "sample": Command(
        "sample",
        "sampling.SampleConfig",
        "images of the requested classes (on several processes: accelerate launch -m cond_ddpm.cli sample)",
    ),
    "visualize": Command("", "", "pictures: noising, denoising, classes, guidance, steps, epochs, neighbours, losses", KINDS),
    "report": Command(
        "report", "visualization.ReportConfig", "report.html: a run's pictures, losses and measurements on one page"
    ),
    "evaluate": Command(
        "evaluate",
        "evaluation.EvaluateConfig",
        "measure a model or samples against real images (on several processes: accelerate launch -m cond_ddpm.cli evaluate)",
    ),
    "demo": Command("demo", "demo.DemoConfig", "a page in the browser to draw, watch and compare; needs the extra demo"),
    "study": Command(
        "study", "experiments.StudyConfig", "train and measure several models on the same data, with the same classifier"
    ),
    "tune": Command("tune", "experiments.TuneConfig", "search training settings with Optuna"),
    "publish": Command(
        "publish",
        "publishing.PublishConfig",
        "check a pipeline folder, write its card, upload it to the Hub, and a demo Space if requested",
    ),
    "export": Command(
        "export",
        "sampling.ExportConfig",
        "the network as ONNX or as torch's exported program, to sample without the original code; or a page that draws",
    ),
    "ema": Command(
        "ema",
        "publishing.EmaConfig",
        "from a run's snapshots, write a pipeline averaged with another width, without training",
    ),
}


def settings_class(command: Command) -> "type[Settings]":
    module, _, name = command.settings.rpartition(".")
    return getattr(importlib.import_module(f"cond_ddpm.config.{module}"), name)


def settings_of(command: Command, arguments: list[str] | None = None, prog: str | None = None) -> "Settings":
    """The settings of a command from `--config FILE` and flags; exits with code 2 if any of them is invalid."""
    from cond_ddpm.config.flags import parse

    return parse(settings_class(command), sys.argv[1:] if arguments is None else arguments, prog, command.text)


def run(command: Command, arguments: list[str] | None = None, prog: str | None = None) -> None:
    settings = settings_of(command, arguments, prog)
    text = getattr(importlib.import_module("cond_ddpm.commands"), command.function)(settings)
    if text is not None:
        print(text)


def parse_train(arguments: list[str] | None = None) -> "TrainConfig":
    """The training settings that these arguments give."""
    from cond_ddpm.config import TrainConfig

    return settings_of(COMMANDS["train"], arguments).part(TrainConfig)


def run_train() -> None:
    """What `train_cond_ddpm.py` runs: `cond-ddpm train` with this process's arguments."""
    run(COMMANDS["train"])


def guarded(function: Callable, *arguments) -> int:
    """Call the function; an error in the user's input is one line and exit code 1; COND_DDPM_TRACEBACK=1 shows a traceback."""
    try:
        function(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has enough of it, as in `cond-ddpm presets | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python reports it once more when it ends
        return 141  # 128 + SIGPIPE, as from a shell
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("COND_DDPM_TRACEBACK") == "1":
            raise
        # Line by line: names from elsewhere may contain control codes of the terminal.
        print("error: " + "\n".join(map(shown, str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before training, which would finish its step first; or a second Ctrl-C
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
    """Run the command that the first argument names in `table`."""
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
