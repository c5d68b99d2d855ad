"""Resumable state: written whole or not at all, verified by checksums, the newest good one found, old ones pruned.

May import: `files, fingerprints`. A checkpoint is for resuming only; everything else reads the run's `pipeline/` folder.

    checkpoint-N/  unet.safetensors, ema.safetensors, optimizer.pt, scaler.pt (fp16), best.pt, progress.json, manifest.json

It holds no random states and no data position, because there are none: the order is a function of (seed, epoch) and all
chance of a step one of (seed, step), so the step says it all (`data.epoch_order`, `diffusion.draw_training`).
"""

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cond_ddpm.files import NotWritten, remove, replacing, step_of
from cond_ddpm.fingerprints import file_checksum

_MANIFEST = "manifest.json"
_NEEDED = {"unet.safetensors", "optimizer.pt", "progress.json"}


@dataclasses.dataclass
class Progress:
    """Where a run is; with weights and optimizer, all that a resumed run needs."""

    step: int = 0  # optimizer steps done
    elapsed_seconds: float = 0.0
    best_loss: float = float("inf")
    epochs_since_best: int = 0
    epoch_losses: list[float] = dataclasses.field(default_factory=list)  # of the steps of the epoch begun
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)  # a row an epoch


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
    found = [path for path in run.glob("checkpoint-*") if step_of(path, "") is not None]
    return sorted(found, key=lambda path: step_of(path, ""), reverse=True)


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


def prune_checkpoints(run: Path, keep: int | None, step: int) -> None:
    """Keep `keep`, that of `step`, just written and safe, and the newest before it; later ones (broken) do not count."""
    earlier = [folder for folder in checkpoints(run) if step_of(folder, "") <= step]
    for folder in earlier[keep:] if keep else ():
        remove(folder)


def _flush(path: Path) -> None:
    """To the disk, not only to the system's cache: a rename that outlives its content would be a broken checkpoint."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
