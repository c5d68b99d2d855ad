"""The folder of a run: locked against other runs, checked, then emptied or taken back to the checkpoint that is resumed.

May import: `config, files, hub, processes`, and `training.{batches, checkpoint, horizon, records, state}`.
"""

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

from cond_ddpm import hub
from cond_ddpm.config import TrainConfig
from cond_ddpm.files import LOCK, NotWritten, held, is_full, read_lines, remove, steps_of, write
from cond_ddpm.processes import on_main
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.checkpoint import checkpoints, find_checkpoint, prune_checkpoints, what_is_good
from cond_ddpm.training.horizon import Horizon
from cond_ddpm.training.records import save_pipeline, to_lines, write_config, write_metrics
from cond_ddpm.training.state import Progress, TrainingState

RUN_FILES = (
    "config.yaml",
    "data.txt",
    "data.png",
    "first_batch.png",
    "metrics.csv",
    "metrics.jsonl",
    "loss.png",
    "guidance.png",
    "report.html",
    "samples",
    "pipeline",
    "ema",
    "logs",
)


@contextlib.contextmanager
def open_run(config: TrainConfig, accelerator: Accelerator) -> Iterator[Path]:
    """The folder, made and locked until the run ends.

    Raises:
        OSError: it cannot be written; while the run writes to it: what could not be written, and what to do.
        ValueError: it holds other files, and gets no lock; or another run writes to it.
    """
    run = config.folder
    with contextlib.ExitStack() as lock:
        on_main(accelerator, lambda: _make_and_lock(run, lock))
        try:
            yield run
        except OSError as error:
            if not isinstance(error, NotWritten) and not is_full(error):
                raise
            is_named = isinstance(error, NotWritten)
            text = error if is_named else f"{error.filename or run}: could not be written: {error.strerror}"
            raise OSError(f"{text}; {what_is_good(run)}") from error


def _make_and_lock(run: Path, stack: contextlib.ExitStack) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not _is_empty(run):
            _settings_of(run)
        stack.enter_context(held(run, "output_dir"))
    except OSError as error:
        raise OSError(
            f"output_dir: expected a folder that can be written, got {run} ({error.strerror or error}); give another"
            " --output_dir."
        ) from None


def starting_point(config: TrainConfig) -> tuple[Path | None, bool]:
    """The checkpoint to start from, if any, and whether it belongs to this folder. Nothing is changed yet.

    Raises:
        ValueError: the folder holds a run that was not to be replaced; a checkpoint that is missing or broken.
        OSError: with `push_to_hub`, a Hub that cannot be reached or refuses.
    """
    run, which = config.folder, config.resume_from_checkpoint
    checkpoint = find_checkpoint(run, which) if which else None
    resuming = checkpoint is not None and checkpoint.resolve().parent == run.resolve()
    if not resuming:
        _check_run_folder(run, config)
    if config.push_to_hub:
        assert config.hub_model_id is not None  # TrainConfig asks for both
        hub.check_name(config.hub_model_id)
        hub.check_access()
    return checkpoint, resuming


def _is_empty(run: Path) -> bool:
    return not run.exists() or all(path.name.startswith(LOCK) for path in run.iterdir())


def _settings_of(run: Path) -> dict:
    try:
        return dict(json.loads((run / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output_dir: expected an empty folder or one of a run, got {run}, which has other files; give another"
            " --output_dir."
        ) from None


def _check_run_folder(run: Path, config: TrainConfig) -> None:
    """Raise unless the folder is empty, or holds a run that may be replaced or started again."""
    if _is_empty(run):
        return
    before = _settings_of(run)
    # A run killed before its first checkpoint starts again; one whose checkpoints are broken or not wanted is not touched.
    unstarted = config.resume_from_checkpoint == "latest" and before.get("checkpointing_steps") and not checkpoints(run)
    if not config.overwrite_output_dir and not unstarted:
        raise ValueError(
            f"output_dir: expected a folder without a run, got {run}, which has one; give another --output_dir,"
            " --resume_from_checkpoint latest to go on from its newest good checkpoint (if it has one), or"
            " --overwrite_output_dir true to replace it."
        )


def prepare_run(run: Path, state: TrainingState, data: TrainingData, horizon: Horizon, resuming: bool) -> float:
    """Make the folder what it was at the checkpoint, or empty.

    Returns:
        The validation loss of the weights in `pipeline/`; infinite where there are none.

    Raises:
        ValueError: the run is over, and no weights have been validated yet.
    """
    progress, best, pipeline = state.progress, state.best, state.pipeline
    published = best is not None or (resuming and 0 < _published_step(run) <= progress.step)
    if horizon.is_over(progress) and not published:
        raise ValueError(
            f"max_train_steps: expected more than the {progress.step} steps that are done, for no weights have been"
            f" validated yet, got an end after {horizon}; train longer."
        )
    if resuming:
        _set_aside(run, state)
    else:
        _empty(run)
    write_config(run, state, data)
    if best is not None and not _holds(run / "pipeline", best["weights"]):
        pipeline.unet.load_state_dict(best["weights"])
        pipeline.companions = {"results.json": best["results"].encode()}
        save_pipeline(pipeline, run / "pipeline")
    (run / "samples").mkdir(exist_ok=True)
    rows = [row for row in read_lines(run / "metrics.jsonl") if row["step"] <= progress.step]
    write(run / "metrics.jsonl", to_lines(rows))
    if progress.metrics:
        write_metrics(run, progress.metrics)
    return progress.best_loss if published else math.inf  # old checkpoints have a loss without its weights


def _empty(run: Path) -> None:
    """Remove what runs write, and nothing else."""
    # config.json is the last to go and the first to come, so that the folder is still known as a run's after a kill.
    names = [*(run / name for name in RUN_FILES), *run.glob("checkpoint-*"), *run.glob("abandoned-*"), run / "config.json"]
    for path in (*_partial(run), *names):
        remove(path)


def _partial(run: Path) -> list[Path]:
    """What a killed run had begun to write."""
    names = ("config.json", *RUN_FILES)
    found = [run / f"{name}.partial" for name in names]
    return [*found, *(path for folder in ("checkpoint-*", "ema/*", "samples/*") for path in run.glob(f"{folder}.partial"))]


def _set_aside(run: Path, state: TrainingState) -> None:
    """Move what the run wrote after the checkpoint that it goes back to into abandoned-STEP-N.

    Lines of metrics.jsonl alone, which each kill leaves, are not kept: those steps will be done again.
    """
    progress = state.progress
    for path in _partial(run):
        remove(path)
    prune_checkpoints(run, state.config.checkpoints_total_limit, progress.step)  # a kill may have interrupted it
    later = _written_after(run, progress, state.best)
    if not later:
        return
    number = 1
    while (folder := run / f"abandoned-{progress.step}-{number}").exists():
        number += 1
    folder.mkdir()
    if (run / "metrics.jsonl").exists():
        shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
    for path in later:
        target = folder / path.relative_to(run)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    print(f"the run goes back to step {progress.step}; what it had written after it is now in {folder}", file=sys.stderr)


def _written_after(run: Path, progress: Progress, best: dict | None) -> list[Path]:
    # The newest checkpoint is moved first. If a kill interrupts the moving, "latest" is the newest checkpoint that is left,
    # and the next run moves what is later than that one.
    later = [path for path, step in reversed(steps_of(checkpoints(run), "").items()) if step > progress.step]
    later += [path for path, step in steps_of(run.glob("ema/step-*"), ".safetensors").items() if step > progress.step]
    epoch = max((row["epoch"] for row in progress.metrics), default=0)
    later += [path for path in run.glob("samples/epoch_*.png") if path.stem[6:].isdecimal() and int(path.stem[6:]) > epoch]
    if any("val_loss" in row and row["step"] > progress.step for row in read_lines(run / "metrics.jsonl")):
        later += [path for name in ("metrics.csv", "loss.png", "report.html") if (path := run / name).exists()]
    has_later_weights = _published_step(run) > progress.step if best is None else not _holds(run / "pipeline", best["weights"])
    if has_later_weights and (run / "pipeline").exists():
        later.append(run / "pipeline")
    return later


def _holds(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    """Whether a pipeline folder has these weights."""
    try:
        found = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    except (OSError, SafetensorError):
        return False
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def _published_step(run: Path) -> int:
    """The step of the weights in pipeline/, by its results.json; 0 if that does not say."""
    try:
        return int(json.loads((run / "pipeline" / "results.json").read_text())["training"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
