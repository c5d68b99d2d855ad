"""How fast this machine trains, by which `plan.py` chooses: a few steps of each network that comes into question.

May import: `config, processes`, and `training.{network, optimizer, plan}`. Next in the data flow: `batches.py`.
"""

import dataclasses
import os
import statistics
import time

import torch
from accelerate import Accelerator

from cond_ddpm.config import TrainConfig
from cond_ddpm.processes import memory_for, on_main
from cond_ddpm.training.network import make_unet
from cond_ddpm.training.optimizer import make_optimizer
from cond_ddpm.training.plan import plan, uses_minutes

_TIMED_STEPS = 4


def chosen_here(
    config: TrainConfig, accelerator: Accelerator, image_shape: tuple[int, int, int], num_images: int, num_classes: int
) -> tuple[TrainConfig, list[str]]:
    """`plan` for this machine, whose speed is measured by the main process."""

    def speed(candidate: TrainConfig) -> float | None:
        return measured_speed(candidate, accelerator, image_shape, num_classes)

    parts = accelerator.num_processes * config.gradient_accumulation_steps
    is_gpu = accelerator.device.type != "cpu"
    return on_main(accelerator, lambda: plan(config, num_images, num_classes, speed, is_gpu, parts, image_shape[0]))


def measured_speed(
    config: TrainConfig, accelerator: Accelerator, image_shape: tuple[int, int, int], num_classes: int
) -> float | None:
    """Images per second of a training with these settings on this machine, by a few steps with noise in place of images.

    Args:
        config: the settings, with the network and the batch.
        accelerator: of the run; all its processes are taken to be equally fast.
        image_shape: (C, H, W).
        num_classes: of the data.

    Returns:
        None if a step does not fit into the memory.
    """
    device = accelerator.device
    size = config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps
    unet = optimizer = None
    try:
        with memory_for(device, "a step", "--minutes chooses a smaller network"):
            unet = make_unet(config, image_shape, num_classes).to(device).train()
            optimizer = make_optimizer(config, unet)
            sample, labels = (
                torch.zeros(size, *image_shape, device=device),
                torch.zeros(size, dtype=torch.int64, device=device),
            )
            taken = []
            for _ in range(1 + _TIMED_STEPS):  # the first one allocates
                started = time.perf_counter()
                for _ in range(config.gradient_accumulation_steps):
                    with accelerator.autocast():
                        loss = unet(sample, 0, labels).sample.float().square().mean()
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                loss.item()  # waits for the device
                taken.append(time.perf_counter() - started)
            return config.batch_size / statistics.median(taken[1:])
    except MemoryError:
        return None


def with_precision(config: TrainConfig) -> TrainConfig:
    """The settings with `mixed_precision: auto`, where it is open and `minutes` chooses."""
    is_open = config.mixed_precision is None and "ACCELERATE_MIXED_PRECISION" not in os.environ
    return dataclasses.replace(config, mixed_precision="auto") if is_open and uses_minutes(config) else config
