"""The presets: files of settings that come with the package, found by their names, and the list of `cond-ddpm presets`.

May import: `config.settings`. Next in the data flow: `flags.py` reads the file that `--config` names.
"""

import importlib.resources
import itertools
import os
import re
from pathlib import Path

from cond_ddpm.config.settings import Settings


class PresetsConfig(Settings):
    """Settings of `cond-ddpm presets`, which has none."""


def presets() -> dict[str, Path]:
    """The files by their names: `configs/` of a checkout, which lies inside the package once that is installed."""
    folder = Path(str(importlib.resources.files("cond_ddpm.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def path_or_preset(given: str) -> Path:
    """What `--config` names: the file of that path if there is one, or else the preset of that name."""
    path = Path(os.path.expanduser(given))
    return path if path.exists() and not path.is_dir() else presets().get(given, path)


def preset_table() -> str:
    """A row for each preset, read from the comment at its head: its command, and the first sentence of cost and result."""
    rows = [("preset", "command", "cost", "result")]
    for name, path in presets().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        head = " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        command = "train" if head.startswith("accelerate launch") else head.split()[1]
        cost, result = (re.search(rf"\b{word}: (.*?)\.( |$)", head) for word in ("Cost", "Result"))
        rows.append((name, command, cost[1] if cost else "not known", result[1] if result else "not known"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(
        [*table, "", "To run one: cond-ddpm COMMAND --config PRESET; with --print_config it only shows the settings."]
    )
