"""cond_ddpm: class-conditional DDPMs on small labelled images, the Hugging Face way.

The public names resolve on first use, so that `import cond_ddpm` and the command line's help cost neither torch nor diffusers.
"""

import importlib.util
import sys
from pathlib import Path
from typing import ClassVar

__version__ = "0.2.0"
# The address of the public repository, such as https://github.com/USER/cond_ddpm; empty as long as there is none. The card,
# the Spaces, the site and PyPI's page take it from here, and a test compares CITATION.cff and whatever else names it.
REPOSITORY = ""

_PUBLIC = {
    "SimpleUNet2DModel": "models.cond_unet",
    "AttentionUNet2DModel": "models.cond_unet",
    "HybridUNet2DModel": "models.cond_unet",
    "CondDDPMPipeline": "pipelines.pipeline_cond_ddpm",
    "TrainConfig": "config",
    "train": "api",
    "EvaluateConfig": "config",
    "evaluate": "api",
    "LabelledImages": "data",
    "load_images": "data",
    "generate": "sampling",
    "load_exported": "export",
    "pretrained": "pretrained_models",
}
__all__ = sorted(_PUBLIC)


def install_hint(extra: str) -> str:
    """How to install what only some commands need, for messages: from PyPI, or in a checkout."""
    return f'pip install "{__name__}[{extra}]" (in a checkout: pip install ".[{extra}]")'


class _Checkout:
    """Finds the packages that lie beside this one in a checkout and inside it once installed (setup.cfg maps them), so that a
    checkout that is not installed, or shadows an installation, finds its own."""

    names: ClassVar = {"pipelines": "pipelines", "configs": "configs", "pretrained_data": "pretrained"}
    folders: ClassVar = {f"{__name__}.{k}": Path(__file__).resolve().parents[1] / v for k, v in names.items()}

    @classmethod
    def find_spec(cls, name: str, path=None, target=None):
        folder = cls.folders.get(name)
        if folder is None or not (folder / "__init__.py").is_file():
            return None
        return importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if (_Checkout.folders[f"{__name__}.pipelines"] / "pipeline_cond_ddpm.py").is_file():
    sys.meta_path.insert(0, _Checkout)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__ + ["__version__"]
