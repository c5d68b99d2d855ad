"""One optimizer step, and the validation loss.

May import: `config, data, diffusion, hardware, processes`, and `training.state` and `training.batches`. The loop, `--dry_run`
and benchmarks call the same step. Next in the data flow: `log.py` reads its loss back.
"""

import contextlib
import dataclasses
import functools
import math

import numpy as np
import torch
from accelerate import Accelerator

from cond_ddpm.config import TrainConfig
from cond_ddpm.data import Batch, make_batch
from cond_ddpm.diffusion import StepRandomness, diffusion_losses, draw_training
from cond_ddpm.hardware import eager_if_not_compiled
from cond_ddpm.processes import memory_for
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.state import TrainingState

_ENOUGH_DRAWS = 128


def memory_of_steps(accelerator: Accelerator, config: TrainConfig, data: TrainingData) -> contextlib.AbstractContextManager:
    """If the memory does not suffice for the run's steps, the error is one line that says what to change."""
    parts = config.gradient_accumulation_steps
    advice = (
        f"--gradient_accumulation_steps {2 * parts} computes the batch in smaller parts; or lower --batch_size, --resolution"
        " or the size of the network (--unet.size)"
    )
    return memory_for(accelerator.device, f"a step of {config.batch_size} images of {data.image_shape}", advice)


def train_step(state: TrainingState, data: TrainingData, learning_rate: float) -> torch.Tensor:
    """Forward, backward and update, on this process's share of the batch, which (seed, step) determines.

    Returns:
        The mean loss of this process's images, a scalar on the device. Reading it waits for the device.
    """
    config, accelerator, progress = state.config, state.accelerator, state.progress
    device, processes, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    state.unet.train()
    indices = data.batch_indices(progress.step).reshape(processes, -1)[rank]
    randomness = draw_training(config, progress.step, data.image_shape, device).part(rank, processes)

    # Forward and backward, once for each part of gradient accumulation.
    parts, mean_loss = config.gradient_accumulation_steps, torch.zeros((), device=device)
    for part, part_indices in enumerate(indices.reshape(parts, -1)):
        part_randomness = randomness.part(part, parts)
        batch = data.batch(part_indices, part_randomness, device)
        is_last_part = part == parts - 1
        with contextlib.nullcontext() if is_last_part else accelerator.no_sync(state.unet):
            losses = eager_if_not_compiled(functools.partial(_losses, state, batch, part_randomness, data.num_classes))
            loss = losses.mean() / parts
            accelerator.backward(loss)
        mean_loss += loss.detach()

    # Update.
    if config.max_grad_norm:
        accelerator.clip_grad_norm_(state.unet.parameters(), config.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    progress.step += 1
    if state.ema is not None:
        state.ema.update(state.raw_unet.parameters(), progress.step)
    return mean_loss


def _losses(state: TrainingState, batch: Batch, randomness: StepRandomness, num_classes: int) -> torch.Tensor:
    """The losses of the images, (B,), by the network that is trained."""
    torch.manual_seed(randomness.dropout_seed)
    return diffusion_losses(
        state.unet,
        state.noise_scheduler,
        batch.images,
        batch.class_labels,
        randomness,
        num_classes,
        state.config.min_snr_gamma,
        state.model_guidance_scale,
        batch.augment_labels,
    )


def validation_draws(num_held_out: int, num_images: int) -> int:
    """How often each held-out image is used in a validation, each time with other noise and at another timestep.

    At one timestep for each of six images, chance would choose the best epoch; so there are 128 draws, but no more than half
    of the images that are trained on: a validation, forward only, takes at most a sixth of an epoch's time. The number follows
    from the data alone, so that the losses of all runs on the same data can be compared.
    """
    return max(1, min(math.ceil(_ENOUGH_DRAWS / num_held_out), num_images // (2 * num_held_out)))


@torch.no_grad()
def validation_loss(state: TrainingState, data: TrainingData, randomness: StepRandomness) -> float:
    """Mean loss of the pipeline's weights over the held-out images, which the processes share.

    Args:
        randomness: the random choices for the held-out images, from `diffusion.draw_validation`; for each of them, or several
            times as many.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    config, accelerator, unet = state.config, state.accelerator, state.pipeline.unet
    device, indices = accelerator.device, np.resize(data.val_indices, len(randomness.timesteps))
    own = range(accelerator.process_index, len(indices), accelerator.num_processes)
    total = torch.zeros((), device=device)
    for start in range(0, len(own), config.batch_size):
        rows = list(own[start : start + config.batch_size])
        batch = make_batch(data.images, indices[rows], device=device)
        part = dataclasses.replace(
            randomness,
            timesteps=randomness.timesteps[rows].to(device),
            noise=randomness.noise[rows].to(device),
            drop_label=randomness.drop_label[rows].to(device),
        )
        with accelerator.autocast():
            losses = diffusion_losses(
                unet,
                state.noise_scheduler,
                batch.images,
                batch.class_labels,
                part,
                data.num_classes,
                config.min_snr_gamma,
                state.model_guidance_scale,
            )
        total += losses.sum()
    loss = accelerator.reduce(total, reduction="sum").item() / len(indices)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}; lower --learning_rate, or leave out --mixed_precision fp16.")
    return loss
