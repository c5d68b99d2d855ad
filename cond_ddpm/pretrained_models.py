"""The trained models and classifiers that come with the package, in `pretrained/` of a checkout, and inside it if installed.

May import: the standard library. Next in the data flow: `CondDDPMPipeline.from_pretrained` loads the folder, and
`evaluation/classifier.py` finds its classifiers.
"""

import importlib.resources
from pathlib import Path


def pretrained(name: str) -> Path:
    """The folder of a trained pipeline, for `CondDDPMPipeline.from_pretrained`.

    Args:
        name: of the data set that it was trained on: "cifar10".

    Raises:
        ValueError: there is none of that name.
    """
    folders = pretrained_pipelines()
    if name not in folders:
        raise ValueError(f"pretrained: expected one of {', '.join(sorted(folders))}, got {name!r}.")
    return folders[name]


def pretrained_pipelines() -> dict[str, Path]:
    """The folders of all trained pipelines, by their names."""
    return {path.parent.name: path.parent for path in sorted(pretrained_folder().glob("*/model_index.json"))}


def pretrained_folder() -> Path:
    """Where all trained models and classifiers are."""
    return Path(str(importlib.resources.files("cond_ddpm.pretrained_data")))
