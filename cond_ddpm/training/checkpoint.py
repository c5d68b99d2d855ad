"""Checkpoints: written whole or not at all, verified by checksums, the newest good one found, old ones pruned.

May import: `config, files, fingerprints`, and `training.state` and `training.batches`. A checkpoint is for resuming only;
everything else reads the run's `pipeline/` folder.

    checkpoint-N/  unet.safetensors, ema.safetensors, optimizer.pt, scaler.pt (fp16), best.pt, progress.json, manifest.json

It holds no random states and no position in the data, because there are none: the order of the images is a function of
(seed, epoch), and all randomness of a step one of (seed, step) (`data.epoch_order`, `diffusion.draw_training`).
"""

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cond_ddpm.config import TrainConfig, may_change_at_resume
from cond_ddpm.config.settings import with_defaults
from cond_ddpm.files import NotWritten, remove, replacing, steps_of
from cond_ddpm.fingerprints import file_checksum
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.state import Progress, TrainingState

_MANIFEST = "manifest.json"
_NEEDED = {"unet.safetensors", "optimizer.pt", "progress.json"}


def save_checkpoint(
    run: Path, tensors: dict[str, dict[str, torch.Tensor]], states: dict[str, Any], progress: Progress, settings: dict
) -> Path:
    """Write `run/checkpoint-N` under another name, flush it to the disk, then rename it.

    Args:
        tensors: file stem -> named tensors, saved as safetensors.
        states: file stem -> nested dicts of tensors and numbers, saved by torch.save.
        progress: where the run is; N is its step.
        settings: what the run was made with, its config and its data; compared at resuming.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are as they were.
    """
    folder = run / f"checkpoint-{progress.step}"
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            for stem, named in tensors.items():
                save_file({name: tensor.contiguous() for name, tensor in named.items()}, partial / f"{stem}.safetensors")
            for stem, state in states.items():
                torch.save(state, partial / f"{stem}.pt")
            record = {"progress": dataclasses.asdict(progress), "settings": settings}
            (partial / "progress.json").write_text(json.dumps(record))
            manifest = {path.name: file_checksum(path) for path in sorted(partial.iterdir())}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
            for path in (*partial.iterdir(), partial):
                _flush(path)
        _flush(run)
    except NotWritten as error:
        raise OSError(f"{error}; {what_is_good(run)}") from error
    return folder


def what_is_good(run: Path) -> str:
    """The end of an error's line, when something could not be written: what is left, and what to do."""
    last = next((folder for folder in checkpoints(run) if fault(folder) is None), None)
    if last is None:
        return "there is no earlier checkpoint; free space and start again."
    return f"the last good one is {last}; free space and resume, by --resume_from_checkpoint latest."


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, newest first, whether good or not."""
    return list(reversed(steps_of(run.glob("checkpoint-*"), "")))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if all that is needed is there, as its manifest says, and readable."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name in sorted(_NEEDED - set(manifest)):
            return f"{name} is not in the manifest"
        for name, checksum in manifest.items():
            if file_checksum(folder / name) != checksum:
                return f"{name} is not what the manifest says"
        load_checkpoint(folder)
    except Exception as error:  # whatever a reader makes of a file that something else wrote
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def newest_good_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose manifest holds; broken ones are passed over with a warning that names them."""
    for folder in checkpoints(run):
        wrong = fault(folder)
        if wrong is None:
            return folder
        warnings.warn(f"{folder} is broken and skipped: {wrong}.", stacklevel=2)
    return None


def find_checkpoint(run: Path, which: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means: "latest" (None if there is none yet), a name or a path.

    Raises:
        ValueError: a checkpoint that is not there, or broken.
    """
    if which == "latest":
        return newest_good_checkpoint(run)
    folder = run / which if (run / which).is_dir() else Path(which)
    wrong = fault(folder)
    if wrong:
        names = ", ".join(path.name for path in checkpoints(run)) or "none"
        raise ValueError(
            f"resume_from_checkpoint: expected 'latest' or a good checkpoint, got {which} ({wrong}); {run} has {names}."
        )
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], Progress, dict]:
    """What `save_checkpoint` was given, read back on the CPU: the manifest's files; no pickled code is executed."""
    files = [folder / name for name in json.loads((folder / _MANIFEST).read_text())]
    tensors = {path.stem: load_file(path) for path in files if path.suffix == ".safetensors"}
    states = {path.stem: torch.load(path, map_location="cpu", weights_only=True) for path in files if path.suffix == ".pt"}
    record = json.loads((folder / "progress.json").read_text())
    return tensors, states, Progress(**record["progress"]), record["settings"]


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings and the data that a good checkpoint was made with, as `made_with` gives them."""
    return dict(json.loads((folder / "progress.json").read_text())["settings"])


def recorded_precision(config: TrainConfig) -> str | None:
    """The precision of the checkpoint from which a run with `mixed_precision: auto` resumes; None if it does not resume.

    Raises:
        ValueError: a checkpoint that is not there, or broken.
    """
    if config.mixed_precision != "auto" or config.resume_from_checkpoint is None:
        return None
    checkpoint = find_checkpoint(config.folder, config.resume_from_checkpoint)
    return None if checkpoint is None else recorded_settings(checkpoint)["mixed_precision"]


def made_with(state: TrainingState, data: TrainingData) -> dict[str, Any]:
    """What a checkpoint records, to be compared when a run resumes from it: the settings and the data."""
    precision = state.accelerator.mixed_precision  # also where `accelerate launch` chose it
    return {**dataclasses.asdict(state.config), "mixed_precision": precision, "data": data.identity()}


def resume(state: TrainingState, folder: Path, now: dict[str, Any]) -> None:
    """Load a checkpoint into the state.

    Args:
        now: `made_with` of this run.

    Raises:
        ValueError: the checkpoint was made with other data or settings, so that the run would be neither the one nor the
            other.
    """
    tensors, states, progress, settings = load_checkpoint(folder)
    now = json.loads(json.dumps(now))
    if settings["mixed_precision"] is None:  # of an older version, which did not record what `accelerate launch` chose
        now["mixed_precision"] = state.config.mixed_precision
    data, data_now = settings.pop("data", None), now.pop("data")
    before = with_defaults(TrainConfig, settings)
    changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
    changed -= may_change_at_resume(TrainConfig)
    if changed:
        differences = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in sorted(changed))
        own = folder.parent / "config.yaml"
        back = f"change them back, or give --config {own}" if own.is_file() else "change them back"
        raise ValueError(f"{folder}: expected the settings it was made with, got {differences}; {back}.")
    if data is None and state.accelerator.is_main_process:
        warnings.warn(
            f"{folder} is of an older version and does not record its data: whether they are the same is not checked.",
            stacklevel=2,
        )
    if data is not None and data != data_now:
        raise ValueError(
            f"{folder}: expected the data it was made with, got {_data_difference(data, data_now)}; bring them back, or"
            " start again in another --output_dir."
        )
    state.load_state_dict(tensors, states, progress)


def _data_difference(before: dict, now: dict) -> str:
    names, names_now = before["class_names"], now["class_names"]
    if len(names) != len(names_now):
        return f"other class names ({len(names)} -> {len(names_now)} classes)"
    for label, (name, name_now) in enumerate(zip(names, names_now)):
        if name != name_now:
            return f"other class names (label {label}: {name!r} -> {name_now!r})"
    if before["num_images"] != now["num_images"]:
        return f"another number of images ({before['num_images']} -> {now['num_images']})"
    return "other contents (as many images of the same classes, but other pixels, labels or another order)"


def prune_checkpoints(run: Path, keep: int | None, step: int) -> None:
    """Keep the checkpoint of `step`, which has just been written, and the newest before it, `keep` in all.

    Later ones, which are broken, are neither counted nor removed.
    """
    up_to_step = [folder for folder, of_folder in steps_of(checkpoints(run), "").items() if of_folder <= step]
    for folder in up_to_step[:-keep] if keep else ():
        remove(folder)


def _flush(path: Path) -> None:
    """To the disk, not only to the system's cache: a rename that outlives its content would be a broken checkpoint."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
