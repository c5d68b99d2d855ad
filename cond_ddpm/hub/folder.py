"""Reading a pipeline folder: its files, its pipeline and its results.json; every error is one line. Writing its settings anew.

May import: `config, files, text`, the pipeline. Next in the data flow: `card.py` completes the folder.
"""

import shutil
from pathlib import Path, PurePosixPath
from typing import cast

from cond_ddpm.config.data import Fit
from cond_ddpm.files import replacing_files
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS, CondDDPMPipeline
from cond_ddpm.text import read_json, shown


def require_pipeline_folder(folder: Path) -> None:
    """Raise ValueError unless this is a pipeline folder."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model: expected a pipeline folder with a model_index.json, got {folder}; a run folder has it in pipeline/."
        )


def load_folder(folder: Path) -> CondDDPMPipeline:
    """The pipeline in a folder.

    Raises:
        ValueError: it does not load; the reason is given in one line.
    """
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if (folder / name).is_file():
            read_part(folder, name)
    try:
        return CondDDPMPipeline.from_pretrained(folder)
    except (ValueError, OSError):
        raise
    except Exception as error:  # diffusers, torch and safetensors raise errors of many types for foreign files
        raise ValueError(
            f"model: expected a pipeline folder that loads, got {folder}, which does not ({type(error).__name__}:"
            f" {one_line(error)}); save it again."
        ) from error


def save_config(pipeline: CondDDPMPipeline, folder: Path) -> None:
    """`pipeline.save_config` into the folder that it was loaded from, so that a kill or a full disk leaves one that loads."""
    with replacing_files(folder, last=["model_index.json"]) as partial:
        for settings in folder.glob("*/*config.json"):  # which are cleaned too
            (partial / settings.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(settings, partial / settings.relative_to(folder))
        pipeline.save_config(partial)


def read_part(folder: Path, name: str) -> dict:
    return read_json((folder / name).read_bytes(), f"model: {folder / name}", "save the pipeline again")


OTHER_RESULTS = "evaluate the model again, or remove the file"
_PARTS = {"protocol": dict, "samples": dict, "held_out_real": dict, "warnings": list}


def read_results(companions: dict[str, bytes]) -> dict:
    """What results.json holds; {} if there is none.

    Raises:
        ValueError: it is not JSON, or was not written by evaluation or training.
    """
    results = read_json(companions.get("results.json", b"{}"), "results.json", OTHER_RESULTS)
    for name, kind in _PARTS.items():
        if not isinstance(results.get(name, kind()), kind):
            wanted = {dict: "an object", list: "a list"}[kind]
            raise ValueError(f"results.json: expected {wanted} as {name}, got {results[name]!r:.40}; {OTHER_RESULTS}.")
    return results


_EXTRA_NAMES = ("LICENSE", "LICENCE", "NOTICE", "CITATION", "COPYING")
_EXTRA_SUFFIXES = {".md", ".txt", ".ipynb", ".bib", ".cff", ".png", ".jpg", ".jpeg", ".gif"}


def is_extra(name: str) -> bool:
    """Whether a file that this package does not write may be published beside the pipeline: texts, notebooks and pictures."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    not_own = path.parts[0] in ("unet", "scheduler") or "__pycache__" in path.parts
    return not hidden and not not_own and (path.name.upper() in _EXTRA_NAMES or path.suffix.lower() in _EXTRA_SUFFIXES)


def published_files(folder: Path) -> set[str]:
    """Names of the files that are published: those of a pipeline folder, and the user's own texts, notebooks and pictures."""
    known = expected_files(folder)[1]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in there if name in known or is_extra(name)}


def trained_fit(companions: dict[str, bytes]) -> Fit:
    """How the pictures that a pipeline was trained on became square; "crop" if its record does not say."""
    results = read_json(companions.get("results.json", b"{}"), "results.json", "remove or correct it")
    training = results.get("training")
    config = training.get("config") if isinstance(training, dict) else None
    return cast(Fit, (config.get("fit") if isinstance(config, dict) else None) or "crop")


def one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200]


def expected_files(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the files that a published folder must contain, and of those that it may contain."""
    index = read_part(folder, "model_index.json")
    try:
        (stem, _), (unet, _) = index["_class_name"], index["unet"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"model: expected the folder of a CondDDPMPipeline, got {folder}, whose model_index.json is that of another kind."
        ) from None
    required = {"model_index.json", f"{stem}.py", "scheduler/scheduler_config.json", "README.md", "samples.png"}
    required |= {f"unet/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors", f"{unet}.py")}
    return required, required | set(COMPANIONS)
