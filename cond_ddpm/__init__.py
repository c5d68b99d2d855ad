"""cond_ddpm: class-conditional DDPMs on small labelled images, the Hugging Face way.

The public names resolve on first use, so that `import cond_ddpm` and the command line's help cost neither torch nor diffusers.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"

# `train` is not among them, since a module has that name: `from cond_ddpm.train import train`.
_PUBLIC = {
    "SimpleUNet2DModel": "models.cond_unet",
    "AttentionUNet2DModel": "models.cond_unet",
    "HybridUNet2DModel": "models.cond_unet",
    "CondDDPMPipeline": "pipelines.pipeline_cond_ddpm",
    "TrainConfig": "config",
    "LabelledImages": "data",
    "load_images": "data",
    "generate": "sampling",
    "load_exported": "export",
}
__all__ = sorted(_PUBLIC)

# `pipelines` and `configs` lie beside this package in a checkout and inside it once installed (setup.cfg maps them); this
# lets a checkout that is not installed, or shadows an installation, find its own.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pipelines" / "pipeline_cond_ddpm.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__ + ["__version__"]
