"""What a run would do on this machine, and how long it would take, without doing it.

May import: `config, models, processes`, and everything of `training` but the loop.
"""

import math
import os
import time
from pathlib import Path

from cond_ddpm.config import TrainConfig
from cond_ddpm.models import MODELS, forward_flop
from cond_ddpm.processes import make_accelerator, on_main
from cond_ddpm.training.batches import load_training_data
from cond_ddpm.training.checkpoint import made_with, recorded_precision, recorded_settings, resume
from cond_ddpm.training.horizon import Horizon
from cond_ddpm.training.optimizer import learning_rate_at
from cond_ddpm.training.run_folder import starting_point
from cond_ddpm.training.speed import with_precision
from cond_ddpm.training.state import TrainingState
from cond_ddpm.training.step import memory_of_steps, train_step

_TIMED_STEPS, _TIMED_SECONDS = 5, 10.0  # whichever is first, but at least one step


def dry_run(config: TrainConfig) -> str:
    """Data, parameters, FLOP, steps and time of `train(config)`, from a few of its real steps.

    Raises:
        ValueError, OSError: as `train` does, before its first step. Nothing is written.
    """
    config = with_precision(config)
    accelerator = make_accelerator(config, recorded_precision(config))

    def look() -> tuple[Path | None, bool]:
        parent = next(path for path in (config.folder, *config.folder.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OSError(
                f"output_dir: expected a folder that can be written, got {config.folder} ({parent} cannot be written); give"
                " another --output_dir."
            )
        return starting_point(config)

    checkpoint, _ = on_main(accelerator, look)
    recorded = None if checkpoint is None else recorded_settings(checkpoint)
    config, data = load_training_data(config, accelerator, recorded)
    with memory_of_steps(accelerator, config, data):
        state = TrainingState.create(config, accelerator, data)
    if checkpoint is not None:
        resume(state, checkpoint, made_with(state, data))
    elif config.init_from is not None:
        state.start_from_base()
    progress, horizon = state.progress, Horizon.of(config, data.steps_per_epoch)
    done, forward = progress.step, forward_flop(state.pipeline.unet)
    with memory_of_steps(accelerator, config, data):
        seconds = _step_seconds(state, data)

    steps = horizon.steps - done
    if horizon.seconds < math.inf:
        steps = min(steps, int(horizon.seconds_left(progress) / seconds))
    steps = max(steps, 0)
    parameters = sum(parameter.numel() for parameter in state.raw_unet.parameters())
    flop = 3 * forward * steps * config.batch_size  # backward costs two forwards
    shape, compiled = "x".join(map(str, data.image_shape)), ", compiled" if config.compile else ""
    lines = {
        "images": f"{len(data.train_indices):,} images to train on, {len(data.val_indices):,} held out,"
        f" {data.num_classes} classes, {shape}",
        **({"chosen": ("\n" + " " * 13).join(data.notes)} if data.notes else {}),
        "network": f"{MODELS[config.model].__name__}, {parameters / 1e6:.2f} million parameters",
        "FLOPs": f"{forward / 1e9:.3f} GFLOP an image forward, about {3 * forward / 1e9:.3f} with backward",
        "steps": f"{steps:,} of {config.batch_size} images ({steps / data.steps_per_epoch:.1f} epochs of"
        f" {data.steps_per_epoch}), {flop:.2g} FLOP" + (f"; {done:,} steps are done" if done else ""),
        "here": f"{accelerator.num_processes} process(es) on {accelerator.device}, {accelerator.mixed_precision}"
        f" precision{compiled}",
        "time": f"about {steps * seconds / 3600:.2f} hours at {config.batch_size / seconds:.0f} images/s"
        " (a few real steps timed; without validation and samples)",
        "run folder": str(config.output_dir),
    }
    found = [str(data.report)] if checkpoint is None and accelerator.is_main_process else []
    return "\n".join([*found, *(f"{name + ':':12} {text}" for name, text in lines.items())])


def _step_seconds(state: TrainingState, data) -> float:
    """The mean time of a training step of this run, without the first one, which compiles and allocates."""
    taken: list[float] = []
    while len(taken) < 1 + _TIMED_STEPS and sum(taken[1:]) < _TIMED_SECONDS:
        started = time.perf_counter()
        loss = train_step(state, data, learning_rate_at(state.config, state.progress.step, share_done=0.0))
        loss.item()  # waits for the device
        taken.append(time.perf_counter() - started)
    return sum(taken[1:]) / len(taken[1:])
