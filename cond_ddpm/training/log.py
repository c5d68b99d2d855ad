"""The losses of a run's steps: read back from the device several together, then written to metrics.jsonl, a tracker and a bar.

May import: `training.{checkpoint, horizon, records, state}`.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tqdm import tqdm

from cond_ddpm.training.checkpoint import find_checkpoint
from cond_ddpm.training.horizon import Horizon
from cond_ddpm.training.records import append_lines
from cond_ddpm.training.state import TrainingState


class Log:
    """A context manager: the progress bar ends with it."""

    def __init__(self, run: Path, state: TrainingState, horizon: Horizon, clock: Callable[[], float] = time.perf_counter):
        self.run, self.state, self.horizon, self.clock = run, state, horizon, clock
        # To read a loss waits for the device; on a CPU there is nothing to wait for.
        self.interval = state.config.logging_steps or (1 if state.accelerator.device.type == "cpu" else 10)
        self.pending: list[tuple[int, float, torch.Tensor]] = []  # (step, learning rate, loss) not read yet
        self.epoch, self.epoch_started, self.epoch_steps = 0, 0.0, 0
        self.bar = tqdm(
            total=None if horizon.steps == math.inf else horizon.steps,
            initial=state.progress.step,
            unit="step",
            disable=not state.accelerator.is_main_process,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def start_step(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.epoch_started, self.epoch_steps = epoch, self.clock(), 0

    def end_step(self, learning_rate: float, loss: torch.Tensor) -> None:
        self.pending.append((self.state.progress.step, learning_rate, loss))
        self.epoch_steps += 1
        self.bar.update()

    @property
    def is_due(self) -> bool:
        return len(self.pending) >= self.interval

    @property
    def images_per_second(self) -> float:
        """Over the epoch so far, or the part of it that this process has trained."""
        return self.epoch_steps * self.state.config.batch_size / (self.clock() - self.epoch_started)

    def write(self) -> None:
        """Read the pending losses, averaged over the processes, and write a row for each.

        Raises:
            FloatingPointError: a loss that is not finite; no checkpoint has been written after it.
        """
        accelerator, progress, rate = self.state.accelerator, self.state.progress, self.images_per_second
        losses = accelerator.reduce(torch.stack([loss for _, _, loss in self.pending]), reduction="mean").tolist()
        rows: list[dict[str, Any]] = []
        for (step, learning_rate, _), loss in zip(self.pending, losses):
            if not math.isfinite(loss):
                raise self._not_finite(step, learning_rate, loss)
            rows.append({"step": step, "epoch": self.epoch, "loss": loss, "learning_rate": learning_rate})
        self.pending = []
        progress.epoch_losses += losses
        last = rows[-1]
        last |= {"images_per_second": round(rate, 2), "memory_gb": round(_memory(accelerator) / 1e9, 3)}
        last["elapsed_seconds"] = round(progress.elapsed_seconds, 1)
        if accelerator.is_main_process:
            append_lines(self.run / "metrics.jsonl", rows)
        watched = ("loss", "learning_rate", "images_per_second", "memory_gb")
        accelerator.log({name: last[name] for name in watched}, progress.step)

        shown = {"loss": f"{last['loss']:.4f}", "images/s": f"{rate:.0f}", "GB": last["memory_gb"]}
        if self.horizon.seconds < math.inf:
            shown["minutes left"] = f"{self.horizon.seconds_left(progress) / 60:.1f}"
        self.bar.set_description(f"epoch {self.epoch}", refresh=False)
        self.bar.set_postfix(shown, refresh=False)

    def _not_finite(self, step: int, learning_rate: float, loss: float) -> FloatingPointError:
        checkpoint = find_checkpoint(self.run, "latest")
        last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        return FloatingPointError(
            f"step {step}: the loss is {loss} at learning rate {learning_rate:g}; {last}. Lower --learning_rate, clip"
            " gradients, or leave out --mixed_precision fp16."
        )


def start_trackers(state: TrainingState, resumed: bool) -> None:
    """Start the tracker that `report_to` names."""
    config = state.config
    if config.report_to == "none":
        return
    project = "logs" if config.report_to == "tensorboard" else "cond_ddpm"
    settings = {name: str(value) for name, value in dataclasses.asdict(config).items()}
    # TensorBoard shows no events of steps that will be done again.
    purge = {"tensorboard": {"purge_step": state.progress.step + 1}} if resumed else {}
    state.accelerator.init_trackers(project, settings, init_kwargs=purge)


def log_images(accelerator: Accelerator, images, step: int) -> None:
    """Images, uint8 (N, C, H, W), to the trackers."""
    for tracker in accelerator.trackers:
        more = {"dataformats": "NCHW"} if tracker.name == "tensorboard" else {}
        shown = images if more else images.transpose(0, 2, 3, 1)
        tracker.log_images({"samples": shown}, step=step, **more)


def _memory(accelerator: Accelerator) -> int:
    """Bytes: the most that the device has held, or what this process holds now."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
