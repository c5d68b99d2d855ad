"""The end of an epoch: validate the averaged weights, keep them if they are the best so far, report.

May import: `diffusion, files, sampling, visualize`, and `training.{batches, horizon, log, records, state, step}`.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cond_ddpm.diffusion import StepRandomness
from cond_ddpm.files import write
from cond_ddpm.sampling import generate
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.horizon import Horizon
from cond_ddpm.training.log import Log, log_images
from cond_ddpm.training.records import append_lines, save_pipeline, training_record, write_metrics
from cond_ddpm.training.state import TrainingState
from cond_ddpm.training.step import validation_loss
from cond_ddpm.visualize import class_grid


def end_epoch(
    run: Path,
    state: TrainingState,
    data: TrainingData,
    horizon: Horizon,
    log: Log,
    learning_rate: float,
    val_randomness: StepRandomness,
    on_epoch: Callable[[dict], None] | None,
) -> None:
    """Also called where a run ends within an epoch."""
    config, progress, accelerator = state.config, state.progress, state.accelerator
    row = {
        "epoch": log.epoch,
        "step": progress.step,
        "train_loss": sum(progress.epoch_losses) / len(progress.epoch_losses),
        "val_loss": 0.0,
        "val_loss_raw": 0.0,
        "learning_rate": learning_rate,
        "images_per_second": log.images_per_second,
    }
    state.use_raw_weights()
    row["val_loss"] = row["val_loss_raw"] = validation_loss(state, data, val_randomness)
    if state.ema is not None:
        state.use_averaged_weights()
        row["val_loss"] = validation_loss(state, data, val_randomness)

    is_better = _count(state, row, ends_whole=progress.step % (data.steps_per_epoch * config.validation_epochs) == 0)
    if is_better and accelerator.is_main_process:
        _keep_best(run, state, data, row)
    is_last = horizon.is_over(progress)
    images = None
    validations = log.epoch // config.validation_epochs
    if config.save_images_epochs and (is_last or validations % config.save_images_epochs == 0):
        images = _preview_images(state, data.num_classes)
    accelerator.log({name: row[name] for name in ("train_loss", "val_loss", "val_loss_raw")}, progress.step)
    if accelerator.is_main_process:
        if images is not None:
            picture = io.BytesIO()
            class_grid(images, data.images.class_names, picture, f"epoch {log.epoch}")
            write(run / "samples" / f"epoch_{log.epoch:04d}.png", picture.getvalue())
            log_images(accelerator, images, progress.step)
        write_metrics(run, progress.metrics, picture=images is not None or is_last)
        append_lines(run / "metrics.jsonl", [row])
        log.bar.write(
            f"epoch {log.epoch}  step {progress.step}  train loss {row['train_loss']:.5f}"
            f"  validation {row['val_loss']:.5f} (raw weights {row['val_loss_raw']:.5f})"
        )
        if on_epoch is not None:
            on_epoch(row)


def _count(state: TrainingState, row: dict[str, Any], ends_whole: bool) -> bool:
    """Put the epoch's row into the progress; whether its validation loss is the best so far."""
    progress = state.progress
    if ends_whole:
        progress.epoch_losses = []
    # A run that ended within this epoch and was resumed has a row of it already.
    has_row = bool(progress.metrics) and progress.metrics[-1]["epoch"] == row["epoch"]
    progress.metrics[len(progress.metrics) - has_row :] = [row]
    is_better = row["val_loss"] < progress.best_loss
    progress.best_loss = min(progress.best_loss, row["val_loss"])
    progress.epochs_since_best = 0 if is_better else progress.epochs_since_best + (not has_row)
    return is_better


def _keep_best(run: Path, state: TrainingState, data: TrainingData, row: dict[str, Any]) -> None:
    """Save the pipeline, and remember its weights for the checkpoint."""
    results = json.dumps({"training": training_record(state, data, row)}, indent=2) + "\n"
    state.pipeline.companions = {"results.json": results.encode()}
    save_pipeline(state.pipeline, run / "pipeline")
    weights = {name: tensor.cpu().clone() for name, tensor in state.pipeline.unet.state_dict().items()}
    state.best = {"weights": weights, "results": results}


def _preview_images(state: TrainingState, num_classes: int) -> np.ndarray:
    """The epoch's samples, a row for each class, from the same noise in every epoch, so that epochs compare."""
    config = state.config
    labels = [label for label in range(num_classes) for _ in range(config.num_images_per_class)]
    with state.accelerator.autocast():
        return generate(
            state.pipeline,
            labels,
            seeds=range(len(labels)),
            batch_size=min(config.batch_size, 100),
        )
