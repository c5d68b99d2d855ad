"""Training: one linear function that reads top to bottom.

May import: `config, data, diffusion, sampling, visualize`, the models and the pipeline; only the script, the command line
and tests import this file. Next on the data's way: the folder `pipeline/`, which everything else reads.
"""

import copy
import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from cond_ddpm.config import TrainConfig, checked_arguments
from cond_ddpm.data import epoch_order, hold_out, load_images, make_batch
from cond_ddpm.diffusion import diffusion_losses, draw_training, draw_validation, make_noise_scheduler
from cond_ddpm.models import MODELS
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.sampling import generate
from cond_ddpm.visualize import class_grid, loss_curve


def train(config: TrainConfig) -> Path:
    """Train a class-conditional UNet, on as many processes as `accelerate launch` started.

    Returns:
        The run's folder: `config.json`, `metrics.csv`, `loss.png`, `samples/epoch_NNNN.png` and `pipeline/`, the weights of
        the epoch with the least validation loss (their moving average, unless `use_ema` is off).

    Raises:
        ValueError: settings that do not fit the data, the network or the number of processes.
        OSError: a data set that is not there, an output folder that cannot be written.
    """
    # 1. The processes and the run's folder
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size % processes:
        raise ValueError(
            f"batch_size: expected a multiple of the {processes} processes, over which it is split, got"
            f" {config.batch_size}; change it or their number."
        )
    if device.type == "cpu":
        # accelerate launch sets OMP_NUM_THREADS=1 where nobody asked for a number.
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(config.num_cpu_threads or max(1, len(os.sched_getaffinity(0)) // local_processes))
    run = Path(config.output_dir)
    if accelerator.is_main_process:
        _make_run_folder(run, config.overwrite_output_dir)

    # 2. Data: decoded once, by the main process
    with accelerator.main_process_first():
        data = load_images(
            config.dataset,
            config.train_split,
            config.resolution,
            config.channels,
            config.dataset_config_name,
            config.image_column,
            config.label_column,
        )
    train_indices, val_indices = hold_out(data, config.num_validation_images)
    if len(train_indices) < config.batch_size:
        raise ValueError(f"batch_size: expected at most the {len(train_indices)} training images, got {config.batch_size}.")
    random_flip = data.flippable if config.random_flip is None else config.random_flip
    image_shape, num_classes = data.images.shape[1:], len(data.class_names)

    # 3. Network, its moving average, noise schedule, optimizer
    set_seed(config.seed)
    unet = make_unet(config, image_shape, num_classes)
    averaged_unet = copy.deepcopy(unet).eval().requires_grad_(False).to(device)  # what is validated, sampled and saved
    noise_scheduler = make_noise_scheduler(config)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    unet, optimizer = accelerator.prepare(unet, optimizer)
    raw_unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False)
    ema = None
    if config.use_ema:
        ema = EMAModel(
            raw_unet.parameters(),
            decay=config.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=config.ema_inv_gamma,
            power=config.ema_power,
            foreach=True,
        )
    id2label = dict(enumerate(data.class_names))
    preview_scheduler = DDIMScheduler.from_config(noise_scheduler.config, timestep_spacing="trailing")
    preview = CondDDPMPipeline(averaged_unet, preview_scheduler, id2label)

    # 4. How long
    steps_per_epoch = len(train_indices) // config.batch_size  # the last images of an epoch's order wait for another
    total_steps = config.max_train_steps or config.num_epochs * steps_per_epoch
    num_epochs = math.ceil(total_steps / steps_per_epoch)
    val_draw = draw_validation(len(val_indices), config.num_train_timesteps, image_shape)
    if accelerator.is_main_process:
        _write_config(run, config, accelerator, raw_unet, random_flip, data)

    metrics, best_loss, epochs_since_best, step = [], math.inf, 0, 0
    bar = tqdm(total=total_steps, unit="step", disable=not accelerator.is_main_process, dynamic_ncols=True)
    for epoch in range(1, num_epochs + 1):
        # 5. An epoch of optimizer steps
        unet.train()
        order = epoch_order(train_indices, config.seed, epoch)
        loss_sum, epoch_steps, shown, started = torch.zeros((), device=device), 0, 0.0, time.perf_counter()
        for first in range(0, steps_per_epoch * config.batch_size, config.batch_size):
            if step == total_steps:
                break
            # The batch and its noise: a function of (seed, step), of which this process takes its part.
            draw = draw_training(config, step, image_shape, device).part(rank, processes)
            indices = order[first : first + config.batch_size].reshape(processes, -1)[rank]
            batch = make_batch(data, indices, draw.flip if random_flip else None, device)
            torch.manual_seed(draw.dropout_seed)

            # Forward, backward.
            losses = diffusion_losses(
                unet, noise_scheduler, batch.images, batch.class_labels, draw, num_classes, config.min_snr_gamma
            )
            loss = losses.mean()
            accelerator.backward(loss)

            # Update.
            if config.max_grad_norm:
                accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * lr_factor(config, step, total_steps)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.step(raw_unet.parameters())

            # Watch. Reading the loss waits for the device, so it is read once a second.
            step, epoch_steps = step + 1, epoch_steps + 1
            loss_sum += loss.detach()
            now = time.perf_counter()
            if now - shown > 1:
                shown = now
                rate = epoch_steps * config.batch_size / (now - started)
                bar.set_description(f"epoch {epoch}/{num_epochs}", refresh=False)
                bar.set_postfix_str(f"loss {loss_sum.item() / epoch_steps:.4f}, {rate:.0f} images/s", refresh=False)
            bar.update()
        seconds = time.perf_counter() - started

        # 6. Validate the averaged weights, save them if they are the best so far
        source = raw_unet.parameters() if ema is None else ema.shadow_params
        _copy(source, averaged_unet.parameters())
        val_loss = _validation_loss(accelerator, averaged_unet, noise_scheduler, data, val_indices, val_draw, config)
        train_loss = accelerator.reduce(loss_sum / epoch_steps, reduction="mean").item()
        best_loss, epochs_since_best = (val_loss, 0) if val_loss < best_loss else (best_loss, epochs_since_best + 1)
        if epochs_since_best == 0 and accelerator.is_main_process:
            _save_pipeline(CondDDPMPipeline(averaged_unet, noise_scheduler, id2label), run / "pipeline")
        stop_early = config.patience is not None and epochs_since_best >= config.patience
        last = stop_early or step == total_steps

        # 7. Report
        metrics.append(
            {
                "epoch": epoch,
                "step": step,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "images_per_second": epoch_steps * config.batch_size / seconds,
            }
        )
        if config.save_images_epochs and (last or epoch % config.save_images_epochs == 0):
            labels = [label for label in range(num_classes) for _ in range(config.num_images_per_class)]
            with accelerator.autocast():
                images = generate(
                    preview,
                    labels,
                    seeds=range(len(labels)),  # the same noise each time, so that epochs compare
                    batch_size=min(config.batch_size, 100),
                    num_inference_steps=min(config.num_inference_steps, config.num_train_timesteps),
                    guidance_scale=config.guidance_scale,
                )
            if accelerator.is_main_process:
                class_grid(images, data.class_names, run / "samples" / f"epoch_{epoch:04d}.png", f"epoch {epoch}")
                loss_curve(metrics, run / "loss.png")
        if accelerator.is_main_process:
            _write_csv(run / "metrics.csv", metrics)
            loss_curve(metrics, run / "loss.png") if last else None
            bar.write(f"epoch {epoch}/{num_epochs}  step {step}  train loss {train_loss:.5f}  validation {val_loss:.5f}")
        if last:
            if stop_early and accelerator.is_main_process:
                bar.write(f"stopped early: no better validation loss for {config.patience} epochs")
            break
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run


def make_unet(config: TrainConfig, image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
    """The UNet that `config.model` and `config.unet` name, for images (C, H, W) of that many classes."""
    class_ = MODELS[config.model]
    by_data = {
        "sample_size": image_shape[1],
        "in_channels": image_shape[0],
        "out_channels": image_shape[0],
        "num_classes": num_classes,
    }
    return class_(**by_data, **checked_arguments(class_, config.unet, "unet", skip=set(by_data)))


def lr_factor(config: TrainConfig, step: int, total_steps: int) -> float:
    """Share of the learning rate in step `step` (from 0): linear warm-up, then the course to the end of the run."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    done = (step - config.lr_warmup_steps) / max(1, total_steps - config.lr_warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_scheduler]


@torch.no_grad()
def _validation_loss(accelerator, unet, noise_scheduler, data, indices, draw, config) -> float:
    """Mean loss over the held-out images, spread over the processes."""
    unet.eval()
    device, parts = accelerator.device, accelerator.num_processes
    mine = range(accelerator.process_index, len(indices), parts)
    total = torch.zeros((), device=device, dtype=torch.float64)
    for start in range(0, len(mine), config.batch_size):
        rows = list(mine[start : start + config.batch_size])
        batch = make_batch(data, indices[rows], device=device)
        part = dataclasses.replace(
            draw,
            timesteps=draw.timesteps[rows].to(device),
            noise=draw.noise[rows].to(device),
            drop_label=draw.drop_label[rows].to(device),
        )
        with accelerator.autocast():
            losses = diffusion_losses(
                unet, noise_scheduler, batch.images, batch.class_labels, part, unet.config.num_classes, config.min_snr_gamma
            )
        total += losses.double().sum()
    return accelerator.reduce(total, reduction="sum").item() / len(indices)


@torch.no_grad()
def _copy(source, target) -> None:
    for from_, to in zip(source, target, strict=True):
        to.copy_(from_)


def _make_run_folder(run: Path, overwrite: bool) -> None:
    if (run / "config.json").exists() and not overwrite:
        raise ValueError(
            f"output_dir: expected a folder without a run, got {run}, which has one; give another --output_dir, or"
            " --overwrite_output_dir true to replace it."
        )
    try:
        for name in ("config.json", "metrics.csv", "loss.png"):
            (run / name).unlink(missing_ok=True)
        for name in ("samples", "pipeline"):
            shutil.rmtree(run / name, ignore_errors=True)
        (run / "samples").mkdir(parents=True)
        (run / "config.json").touch()
    except OSError as error:
        raise OSError(
            f"output_dir: expected a folder that can be written, got {run} ({error.strerror}); give another --output_dir."
        ) from None


def _write_config(run, config, accelerator, unet, random_flip, data) -> None:
    """config.json: what ran, resolved, so that it can be run again."""
    record = {
        "config": dataclasses.asdict(config),
        "resolved": {
            "unet": {name: value for name, value in unet.config.items() if not name.startswith("_")},
            "mixed_precision": accelerator.mixed_precision,
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "random_flip": random_flip,
            "class_names": data.class_names,
            "num_images": len(data),
        },
        "command": sys.argv,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "accelerate", "datasets", "numpy")},
    }
    (run / "config.json").write_text(json.dumps(record, indent=2) + "\n")


def _save_pipeline(pipeline: CondDDPMPipeline, folder: Path) -> None:
    """Write the folder under another name first, so that a killed run leaves the last good one."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
