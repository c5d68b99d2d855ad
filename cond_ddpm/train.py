"""Training: one linear function that reads top to bottom.

May import: `config, data, diffusion, sampling, checkpoint, visualize, ema, files, muon, processes, hub`, models, pipelines;
only the script, the command line and tests import this file. Next on the data's way: the folder `pipeline/`, which all else
reads.
"""

import contextlib
import copy
import csv
import dataclasses
import io
import json
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

import cond_ddpm
from cond_ddpm import hub
from cond_ddpm.checkpoint import (
    Progress,
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    what_is_good,
)
from cond_ddpm.config import TrainConfig, checked_arguments, may_change_at_resume
from cond_ddpm.data import LabelledImages, data_fingerprint, epoch_order, hold_out, load_images, make_batch, public_name
from cond_ddpm.diffusion import diffusion_losses, draw_training, draw_validation, make_noise_scheduler
from cond_ddpm.ema import PowerEMA, save_snapshot
from cond_ddpm.files import LOCK, NotWritten, append, beside, held, is_full, remove, step_of, write
from cond_ddpm.models import MODELS, forward_flop
from cond_ddpm.muon import Muon
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS, DEFAULT_SAMPLER, CondDDPMPipeline
from cond_ddpm.processes import Stopping, make_accelerator, on_main
from cond_ddpm.sampling import generate
from cond_ddpm.visualize import class_grid, loss_curve

_SECOND_STD = 0.1  # the other of the two averages kept, from which any horizon can be made (EDM2 keeps 0.05 and 0.1)


def train(config: TrainConfig, on_epoch: Callable[[dict], None] | None = None) -> Path:
    """Train a class-conditional UNet, on as many processes as `accelerate launch` or `torchrun` started.

    Args:
        config: the settings.
        on_epoch: called on the main process with each epoch's row of metrics.csv; what it raises ends the run.

    Returns:
        The run's folder: `config.json`, `metrics.csv` (a row an epoch), `metrics.jsonl` (a row a step), `loss.png`,
        `samples/epoch_NNNN.png`, `checkpoint-N/` for resuming, `ema/`, `logs/`, and `pipeline/`, the weights of the epoch
        with the least validation loss (their moving average, unless `use_ema` is off), with a card, ready to be published.
        Where a run went back to an earlier checkpoint, `abandoned-STEP-N/` has what it had written after it.

    Raises:
        ValueError: settings that do not fit the data, the network, the checkpoint or the number of processes; data other
            than the checkpoint's; a folder that another run is in.
        OSError: a data set that is not there, an output folder that cannot be written, a full disk; with `push_to_hub`, a
            Hub that cannot be reached or refuses.
        FloatingPointError: a loss that is not finite.
        SystemExit: 143 or 130 after SIGTERM or Ctrl-C, with a checkpoint of the last step.
    """
    accelerator, run = make_accelerator(config), config.folder
    with contextlib.ExitStack() as lock:
        on_main(accelerator, lambda: _hold(run, lock))
        try:
            return _train(config, accelerator, run, on_epoch)
        except OSError as error:
            if not isinstance(error, NotWritten) and not is_full(error):
                raise
            said = (
                error if isinstance(error, NotWritten) else f"{error.filename or run}: could not be written: {error.strerror}"
            )
            raise OSError(f"{said}; {what_is_good(run)}") from error


def _train(config: TrainConfig, accelerator: Accelerator, run: Path, on_epoch: Callable[[dict], None] | None) -> Path:
    # 1. The run's folder
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    is_main = accelerator.is_main_process

    def look() -> tuple[Path | None, bool]:
        """The checkpoint, and whether it is this run's; now, before the work. What is there stays until all else fits."""
        which = config.resume_from_checkpoint
        checkpoint = find_checkpoint(run, which) if which else None
        resuming = checkpoint is not None and checkpoint.resolve().parent == run.resolve()
        if not resuming:
            _check_run_folder(run, config)
        if config.push_to_hub:
            hub.check_name(config.hub_model_id)
            hub.check_access()
        return checkpoint, resuming

    checkpoint, resuming = on_main(accelerator, look)

    # 2. Data: decoded once, by the main process
    with accelerator.main_process_first():
        data = load_training_images(config)
    train_indices, val_indices = hold_out(data, config.num_validation_images)
    if len(train_indices) < config.batch_size:
        raise ValueError(f"batch_size: expected at most the {len(train_indices)} training images, got {config.batch_size}.")
    made_with = {
        **dataclasses.asdict(config),
        "mixed_precision": accelerator.mixed_precision,  # also what `accelerate launch` chose
        "data": {"class_names": data.class_names, "num_images": len(data), "fingerprint": data_fingerprint(data)},
    }
    random_flip = data.flippable if config.random_flip is None else config.random_flip
    image_shape, num_classes = data.images.shape[1:], len(data.class_names)

    # 3. Network, noise schedule, optimizer, moving averages
    set_seed(config.seed)
    unet = make_unet(config, image_shape, num_classes)
    averaged_unet = copy.deepcopy(unet).eval().requires_grad_(False).to(device)  # what is validated, sampled and saved
    if config.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    if config.compile:
        unet.compile()
    noise_scheduler = make_noise_scheduler(config)
    optimizer = make_optimizer(config, unet)
    raw_unet = unet  # unwrapping the prepared one would take its autocast away
    unet, optimizer = accelerator.prepare(unet, optimizer)
    names = [name for name, _ in raw_unet.named_parameters()]
    ema = PowerEMA(raw_unet.parameters(), {config.ema_std, _SECOND_STD}) if config.use_ema else None
    # With a sampler of few steps, as it is published; any other comes from its config, which has the same betas.
    id2label, dropout = dict(enumerate(data.class_names)), config.class_dropout_prob
    pipeline = CondDDPMPipeline(averaged_unet, noise_scheduler, id2label, dropout, config.guidance_scale)
    pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)

    # 4. How long, and how far it is already
    steps_per_epoch = len(train_indices) // config.batch_size  # the last images of an epoch's order wait for another
    budget_seconds = math.inf if config.max_train_minutes is None else config.max_train_minutes * 60
    total_steps = config.max_train_steps
    if total_steps is None:
        total_steps = config.num_epochs * steps_per_epoch if budget_seconds == math.inf else sys.maxsize
    progress, best = Progress(), None  # best: the weights in pipeline/, and its results.json
    if checkpoint is not None:
        progress, best = _resume(checkpoint, config, made_with, raw_unet, ema, optimizer, accelerator)
    over = _finished(config, progress, total_steps, budget_seconds)

    def prepare() -> float:
        """The folder as it was at the checkpoint, or empty; the best loss of what is in pipeline/."""
        published = best is not None or (resuming and 0 < _published_step(run) <= progress.step)
        if over and not published:
            raise ValueError(
                f"max_train_steps: expected more than the {progress.step} steps that are done, for no weights have been"
                f" validated yet, got an end after {_end(config, total_steps)}; train longer."
            )
        if resuming:
            _set_aside(run, progress, best)
        else:
            _empty_run_folder(run)
        _write_config(run, config, accelerator, raw_unet, random_flip, data)
        if best is not None and not _holds(run / "pipeline", best):
            averaged_unet.load_state_dict(best["weights"])
            pipeline.companions = {"results.json": best["results"].encode()}
            save_pipeline(pipeline, run / "pipeline")
        (run / "samples").mkdir(exist_ok=True)
        rows = [row for row in _read_lines(run / "metrics.jsonl") if row["step"] <= progress.step]
        write(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if progress.metrics:
            _write_metrics(run, progress.metrics)
        return progress.best_loss if published else math.inf  # a loss without its weights, of old checkpoints, is no measure

    progress.best_loss = on_main(accelerator, prepare)
    if over and is_main:
        print(f"{progress.step} steps are done, and the end is after {_end(config, total_steps)}: nothing is to be done")
    if config.report_to != "none":
        project = "logs" if config.report_to == "tensorboard" else "cond_ddpm"
        settings = {name: str(value) for name, value in dataclasses.asdict(config).items()}
        # TensorBoard shows no events of steps that will be done again.
        purge = {"tensorboard": {"purge_step": progress.step + 1}} if checkpoint is not None else {}
        accelerator.init_trackers(project, settings, init_kwargs=purge)
    val_draw = draw_validation(len(val_indices), config.num_train_timesteps, image_shape)
    logging_steps = config.logging_steps or (1 if device.type == "cpu" else 10)

    pending, order, epoch_started, epoch_images = [], None, 0.0, 0
    bar = tqdm(
        total=None if total_steps == sys.maxsize else total_steps,
        initial=progress.step,
        unit="step",
        disable=not is_main,
        dynamic_ncols=True,
    )
    stopping = Stopping(accelerator, progress.elapsed_seconds)
    with stopping, bar:
        while not _finished(config, progress, total_steps, budget_seconds):
            # 5. One optimizer step. Its batch and noise: a function of (seed, step), of which this process takes its part
            epoch, position = progress.step // steps_per_epoch + 1, progress.step % steps_per_epoch
            if order is None or position == 0:
                order = epoch_order(train_indices, config.seed, epoch)
                epoch_started, epoch_images = time.perf_counter(), 0
            unet.train()
            first = position * config.batch_size
            indices = order[first : first + config.batch_size].reshape(processes, -1)[rank]
            draw = draw_training(config, progress.step, image_shape, device).part(rank, processes)

            # Forward, backward.
            parts, step_loss = config.gradient_accumulation_steps, torch.zeros((), device=device)
            for part, part_indices in enumerate(indices.reshape(parts, -1)):
                part_draw = draw.part(part, parts)
                batch = make_batch(data, part_indices, part_draw.flip if random_flip else None, device)
                torch.manual_seed(part_draw.dropout_seed)
                with accelerator.no_sync(unet) if part < parts - 1 else contextlib.nullcontext():
                    losses = diffusion_losses(
                        unet, noise_scheduler, batch.images, batch.class_labels, part_draw, num_classes, config.min_snr_gamma
                    )
                    loss = losses.mean() / parts
                    accelerator.backward(loss)
                step_loss += loss.detach()

            # Update.
            if config.max_grad_norm:
                accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
            done = max(progress.step / total_steps, progress.elapsed_seconds / budget_seconds)
            learning_rate = config.learning_rate * lr_factor(config, progress.step, done)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            if ema is not None:
                ema.update(raw_unet.parameters(), progress.step)
            pending.append((progress.step, learning_rate, step_loss))
            epoch_images += config.batch_size

            # What to do after this step; all processes agree.
            signal, progress.elapsed_seconds = stopping.agree()
            last = _finished(config, progress, total_steps, budget_seconds)
            ends_epoch = last or progress.step % steps_per_epoch == 0
            save = bool(signal) or (config.checkpointing_steps and progress.step % config.checkpointing_steps == 0)

            # 6. Watch. Reading losses back waits for the device, so several steps' are read together
            if len(pending) >= logging_steps or ends_epoch or save:
                rate = epoch_images / (time.perf_counter() - epoch_started)
                rows = _read_losses(accelerator, pending, epoch, rate, run)
                rows[-1]["elapsed_seconds"] = round(progress.elapsed_seconds, 1)
                pending = []
                progress.epoch_losses += [row["loss"] for row in rows]
                bar.set_description(f"epoch {epoch}", refresh=False)
                shown = {"loss": f"{rows[-1]['loss']:.4f}", "images/s": f"{rate:.0f}", "GB": rows[-1]["memory_gb"]}
                if budget_seconds < math.inf:
                    shown["minutes left"] = f"{(budget_seconds - progress.elapsed_seconds) / 60:.1f}"
                bar.set_postfix(shown, refresh=False)
                if is_main:
                    _append_lines(run / "metrics.jsonl", rows)
                watched = ("loss", "learning_rate", "images_per_second", "memory_gb")
                accelerator.log({name: rows[-1][name] for name in watched}, progress.step)
            bar.update()

            # 7. The end of an epoch: validate the averaged weights, save them if they are the best so far, report
            if ends_epoch:
                row = {
                    "epoch": epoch,
                    "step": progress.step,
                    "train_loss": sum(progress.epoch_losses) / len(progress.epoch_losses),
                    "val_loss": 0.0,
                    "val_loss_raw": 0.0,
                    "learning_rate": learning_rate,
                    "images_per_second": rate,
                }
                validate = lambda: _validation_loss(  # noqa: E731
                    accelerator, averaged_unet, noise_scheduler, data, val_indices, val_draw, config
                )
                _copy(raw_unet.parameters(), averaged_unet.parameters())
                row["val_loss"] = row["val_loss_raw"] = validate()
                if ema is not None:
                    _copy(ema.averages[config.ema_std], averaged_unet.parameters())
                    row["val_loss"] = validate()
                if progress.step % steps_per_epoch == 0:
                    progress.epoch_losses = []
                # A run that ended within this epoch, and goes on, has a row of it already.
                known = bool(progress.metrics) and progress.metrics[-1]["epoch"] == epoch
                progress.metrics[len(progress.metrics) - known :] = [row]
                better = row["val_loss"] < progress.best_loss
                progress.best_loss = min(progress.best_loss, row["val_loss"])
                progress.epochs_since_best = 0 if better else progress.epochs_since_best + (not known)
                last = _finished(config, progress, total_steps, budget_seconds)
                if is_main and better:
                    with accelerator.autocast():
                        record = _training_record(config, accelerator, averaged_unet, random_flip, data, progress, row)
                    results = json.dumps({"training": record}, indent=2) + "\n"
                    pipeline.companions = {"results.json": results.encode()}
                    save_pipeline(pipeline, run / "pipeline")
                    weights = {name: tensor.cpu().clone() for name, tensor in averaged_unet.state_dict().items()}
                    best = {"weights": weights, "results": results}
                images = None
                if config.save_images_epochs and (last or epoch % config.save_images_epochs == 0):
                    images = _preview_images(accelerator, pipeline, config, num_classes)
                accelerator.log({name: row[name] for name in ("train_loss", "val_loss", "val_loss_raw")}, progress.step)
                if is_main:
                    if images is not None:
                        picture = io.BytesIO()
                        class_grid(images, data.class_names, picture, f"epoch {epoch}")
                        write(run / "samples" / f"epoch_{epoch:04d}.png", picture.getvalue())
                        _log_images(accelerator, images, progress.step)
                    _write_metrics(run, progress.metrics, picture=images is not None or last)
                    _append_lines(run / "metrics.jsonl", [row])
                    bar.write(
                        f"epoch {epoch}  step {progress.step}  train loss {row['train_loss']:.5f}"
                        f"  validation {row['val_loss']:.5f} (raw weights {row['val_loss_raw']:.5f})"
                    )
                    if on_epoch is not None:
                        on_epoch(row)

            # 8. Snapshots of the averages, for other horizons afterwards
            if ema is not None and config.num_ema_snapshots and is_main:
                now = max(progress.step / total_steps, progress.elapsed_seconds / budget_seconds)
                if int(now * config.num_ema_snapshots) > int(done * config.num_ema_snapshots) or last:
                    save_snapshot(ema, names, run / "ema", progress.step)

            # 9. Checkpoint; and stop, if asked to
            if (save or (last and config.checkpointing_steps)) and is_main:
                _save_checkpoint(run, made_with, raw_unet, names, ema, optimizer, accelerator, progress, best)
                prune_checkpoints(run, config.checkpoints_total_limit, progress.step)
            if signal and not last:
                accelerator.wait_for_everyone()
                accelerator.end_training()
                if is_main:
                    bar.close()
                    print(
                        f"stopped after step {progress.step} by signal {signal}; to go on, repeat the command with"
                        " --resume_from_checkpoint latest",
                        file=sys.stderr,
                    )
                raise SystemExit(128 + signal)

    # 10. The published folder gets its card, and goes to the Hub, if it is to
    if is_main:
        if config.patience is not None and progress.epochs_since_best >= config.patience:
            print(f"stopped early: no better validation loss for {config.patience} epochs")
        if (run / "pipeline").is_dir():  # not where a finished run goes on in another folder
            with accelerator.autocast():
                hub.complete(run / "pipeline", pictures={"loss.png": (run / "loss.png").read_bytes()})
        if config.push_to_hub:
            hub.publish(run / "pipeline", config.hub_model_id, private=config.hub_private_repo)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run


def dry_run(config: TrainConfig) -> str:
    """What `train(config)` would do on this machine: data, parameters, FLOPs, steps, and the time, from a few real steps."""
    accelerator = make_accelerator(dataclasses.replace(config, report_to="none"))
    data = load_training_images(config)
    train_indices, val_indices = hold_out(data, config.num_validation_images)
    image_shape, num_classes, device = data.images.shape[1:], len(data.class_names), accelerator.device
    unet = make_unet(config, image_shape, num_classes)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    forward = forward_flop(unet)

    # Timed on a part of a batch: its images/s are close to the whole batch's, at less time and memory.
    part = dataclasses.replace(config, batch_size=min(config.batch_size, 32))
    unet, optimizer = accelerator.prepare(unet, make_optimizer(config, unet))
    noise_scheduler = make_noise_scheduler(config)
    for step in range(3):
        if step == 1:
            started = time.perf_counter()  # the first step is slower than all others
        draw = draw_training(part, step, image_shape, device)
        batch = make_batch(data, train_indices[: part.batch_size], device=device)
        losses = diffusion_losses(unet, noise_scheduler, batch.images, batch.class_labels, draw, num_classes)
        accelerator.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()
        losses.sum().item()
    rate = 2 * part.batch_size / (time.perf_counter() - started) * accelerator.num_processes

    steps_per_epoch = max(1, len(train_indices) // config.batch_size)
    steps = config.max_train_steps or config.num_epochs * steps_per_epoch
    if config.max_train_minutes:
        steps = min(config.max_train_steps or sys.maxsize, int(config.max_train_minutes * 60 * rate / config.batch_size))
    hours = steps * config.batch_size / rate / 3600
    return "\n".join(
        [
            f"data:       {config.dataset}: {len(train_indices):,} images to train on, {len(val_indices):,} held out,"
            f" {num_classes} classes, {'x'.join(map(str, image_shape))}",
            f"network:    {MODELS[config.model].__name__}, {parameters / 1e6:.2f} million parameters",
            f"FLOPs:      {forward / 1e9:.3f} GFLOP an image forward, about {3 * forward / 1e9:.3f} with backward",
            f"steps:      {steps:,} of {config.batch_size} images ({steps / steps_per_epoch:.1f} epochs of {steps_per_epoch}),"
            f" {3 * forward * steps * config.batch_size:.2g} FLOP",
            f"here:       {accelerator.num_processes} process(es) on {device}, {accelerator.mixed_precision} precision",
            f"time:       about {hours:.2f} hours at {rate:.0f} images/s (two steps measured; without validation and samples)",
            f"run folder: {config.output_dir}",
        ]
    )


def load_training_images(config: TrainConfig) -> LabelledImages:
    return load_images(
        config.dataset,
        config.train_split,
        config.resolution,
        config.channels,
        config.dataset_config_name,
        config.image_column,
        config.label_column,
    )


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


def make_optimizer(config: TrainConfig, unet: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW for all parameters, or Muon for the matrices between hidden features and AdamW for the rest.

    The rest: embeddings, positions, biases and norms; the first and last layer; and what makes scales, shifts and gates
    of the embedding, which start at zero and are as many parameters as a block's own.
    """
    settings = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(unet.parameters(), fused=True, **settings)
    hidden = {
        name + ".weight"
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and not any(word in name for word in ("conv_in", "conv_out", "time_embedding", "to_scale_shift", "to_film"))
    }
    parameters = list(unet.named_parameters())
    return Muon([p for n, p in parameters if n in hidden], [p for n, p in parameters if n not in hidden], **settings)


def lr_factor(config: TrainConfig, step: int, done: float) -> float:
    """Share of the learning rate in step `step` (from 0), when the share `done` of the run is behind it.

    Linear warm-up by steps; then constant, until the last `lr_decay_share` of the run, over which it goes to zero.
    """
    warm = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    if config.lr_scheduler == "constant" or not config.lr_decay_share:
        return warm
    decayed = min(1.0, max(0.0, 1 - (1 - done) / config.lr_decay_share))  # 0 until the decay starts, 1 at the end
    decay = {"linear": 1 - decayed, "cosine": (1 + math.cos(math.pi * decayed)) / 2, "1-sqrt": 1 - math.sqrt(decayed)}
    return warm * decay[config.lr_scheduler]


def _finished(config: TrainConfig, progress: Progress, total_steps: int, budget_seconds: float) -> bool:
    return (
        progress.step >= total_steps
        or progress.elapsed_seconds >= budget_seconds
        or (config.patience is not None and progress.epochs_since_best >= config.patience)
    )


@torch.no_grad()
def _validation_loss(accelerator, unet, noise_scheduler, data, indices, draw, config) -> float:
    """Mean loss over the held-out images, spread over the processes."""
    device, parts = accelerator.device, accelerator.num_processes
    mine = range(accelerator.process_index, len(indices), parts)
    total = torch.zeros((), device=device)
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
        total += losses.sum()
    loss = accelerator.reduce(total, reduction="sum").item() / len(indices)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}; lower --learning_rate, or leave out --mixed_precision fp16.")
    return loss


def _read_losses(accelerator, pending, epoch: int, rate: float, run: Path) -> list[dict]:
    """Rows for metrics.jsonl, a step each, of losses averaged over the processes.

    Raises:
        FloatingPointError: the first loss that is not finite; no later checkpoint has been written.
    """
    losses = accelerator.reduce(torch.stack([loss for _, _, loss in pending]), reduction="mean").tolist()
    memory = psutil.Process().memory_info().rss
    if accelerator.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    rows = []
    for (step, learning_rate, _), loss in zip(pending, losses):
        if not math.isfinite(loss):
            checkpoint = find_checkpoint(run, "latest")
            last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
            raise FloatingPointError(
                f"step {step}: the loss is {loss} at learning rate {learning_rate:g}; {last}. Lower --learning_rate, clip"
                " gradients, or leave out --mixed_precision fp16."
            )
        rows.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": learning_rate})
    rows[-1] |= {"images_per_second": round(rate, 2), "memory_gb": round(memory / 1e9, 3)}
    return rows


def _preview_images(accelerator, pipeline, config: TrainConfig, num_classes: int):
    """The epoch's samples, a row of labels for each class, from the same noise each time, so that epochs compare."""
    labels = [label for label in range(num_classes) for _ in range(config.num_images_per_class)]
    with accelerator.autocast():
        return generate(
            pipeline,
            labels,
            seeds=range(len(labels)),
            batch_size=min(config.batch_size, 100),
            num_inference_steps=min(config.num_inference_steps, config.num_train_timesteps),
        )


def _log_images(accelerator: Accelerator, images, step: int) -> None:
    for tracker in accelerator.trackers:
        more = {"dataformats": "NCHW"} if tracker.name == "tensorboard" else {}
        shown = images if more else images.transpose(0, 2, 3, 1)
        tracker.log_images({"samples": shown}, step=step, **more)


@torch.no_grad()
def _copy(source, target) -> None:
    for from_, to in zip(source, target, strict=True):
        to.copy_(from_)


def _save_checkpoint(run, made_with, unet, names, ema, optimizer, accelerator, progress, best) -> None:
    tensors = {"unet": unet.state_dict()}
    if ema is not None:
        tensors["ema"] = {
            f"{std}/{name}": tensor for std, average in ema.averages.items() for name, tensor in zip(names, average)
        }
    states = {"optimizer": optimizer.state_dict()}
    if accelerator.scaler is not None:
        states["scaler"] = accelerator.scaler.state_dict()
    if best is not None:
        states["best"] = best
    save_checkpoint(run, tensors, states, progress, made_with)


def _resume(checkpoint: Path, config, made_with, unet, ema, optimizer, accelerator) -> tuple[Progress, dict | None]:
    """Put a checkpoint's state into the network, its averages and the optimizer.

    Returns:
        Where the run is, and the best epoch's weights and results.json, if there are any yet.

    Raises:
        ValueError: the checkpoint was made with other data or settings, which would make the run neither this nor that.
    """
    tensors, states, progress, settings = load_checkpoint(checkpoint)
    now = json.loads(json.dumps(made_with))
    if settings["mixed_precision"] is None:  # of a checkpoint that did not know what `accelerate launch` chose
        now["mixed_precision"] = config.mixed_precision
    data, data_now = settings.pop("data", None), now.pop("data")
    changed = {name for name in now.keys() | settings.keys() if now.get(name) != settings.get(name)}
    changed = sorted(changed - may_change_at_resume(TrainConfig))
    if changed:
        differences = ", ".join(f"{name} {settings.get(name)} -> {now.get(name)}" for name in changed)
        raise ValueError(f"{checkpoint}: expected the settings it was made with, got {differences}; change them back.")
    if data is None and accelerator.is_main_process:
        warnings.warn(
            f"{checkpoint} is of an older version and does not tell its data: that they are the same is not checked.",
            stacklevel=2,
        )
    if data is not None and data != data_now:
        raise ValueError(
            f"{checkpoint}: expected the data it was made with, got {_data_difference(data, data_now)}; bring them back, or"
            " start again in another --output_dir."
        )
    unet.load_state_dict(tensors["unet"])
    if ema is not None:
        for std, average in ema.averages.items():
            _copy([tensors["ema"][f"{std}/{name}"] for name, _ in unet.named_parameters()], average)
    optimizer.load_state_dict(states["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(states["scaler"])
    return progress, states.get("best")


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


def _end(config: TrainConfig, total_steps: int) -> str:
    minutes, epochs = config.max_train_minutes, config.patience
    ends = [f"{total_steps} steps"] if total_steps < sys.maxsize else []
    ends += [f"{minutes:g} minutes"] if minutes is not None else []
    ends += [f"{epochs} epochs without a better one"] if epochs is not None else []
    return " or ".join(ends)


RUN_FILES = ("config.yaml", "metrics.csv", "metrics.jsonl", "loss.png", "samples", "pipeline", "ema", "logs")


def _hold(run: Path, stack: contextlib.ExitStack) -> None:
    """Make the folder, and hold it until the stack is left.

    Raises:
        OSError: it cannot be written.
        ValueError: it is of something else, and gets no lock; or another run is in it.
    """
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


def _is_empty(run: Path) -> bool:
    return all(path.name.startswith(LOCK) for path in run.iterdir())


def _settings_of(run: Path) -> dict:
    try:
        return dict(json.loads((run / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output_dir: expected an empty folder or one of a run, got {run}, which has other files; give another"
            " --output_dir."
        ) from None


def _check_run_folder(run: Path, config: TrainConfig) -> None:
    """Raise unless the folder is empty, a run's that may be replaced, or one to be started again."""
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


def _empty_run_folder(run: Path) -> None:
    """Remove what runs write, and nothing else."""
    # config.json is the last to go and the first to come: a kill in between leaves what is still known as a run's.
    names = [*(run / name for name in RUN_FILES), *run.glob("checkpoint-*"), *run.glob("abandoned-*"), run / "config.json"]
    for path in (*_partial(run), *names):
        remove(path)


def _partial(run: Path) -> list[Path]:
    """What a killed run had begun to write."""
    names = ("config.json", *RUN_FILES)
    found = [run / f"{name}.partial" for name in names]
    return [*found, *(path for folder in ("checkpoint-*", "ema/*", "samples/*") for path in run.glob(f"{folder}.partial"))]


def _set_aside(run: Path, progress: Progress, best: dict | None) -> None:
    """Move what the run wrote after the checkpoint that it goes back to into abandoned-STEP-N, as if it had never been.

    Lines of metrics.jsonl alone, which each kill leaves, are not kept: those steps will be done again.
    """
    for path in _partial(run):
        remove(path)
    # The newest checkpoint is the first to go: a kill in between leaves a run that "latest" finds further back, and the rest
    # is moved then.
    later = [path for path in checkpoints(run) if step_of(path, "") > progress.step]
    later += [path for path in run.glob("ema/step-*") if (step_of(path, ".safetensors") or 0) > progress.step]
    epoch = max((row["epoch"] for row in progress.metrics), default=0)
    later += [path for path in run.glob("samples/epoch_*.png") if path.stem[6:].isdecimal() and int(path.stem[6:]) > epoch]
    if any("val_loss" in row and row["step"] > progress.step for row in _read_lines(run / "metrics.jsonl")):
        later += [path for path in (run / "metrics.csv", run / "loss.png") if path.exists()]
    is_later = _published_step(run) > progress.step if best is None else not _holds(run / "pipeline", best)
    if is_later and (run / "pipeline").exists():
        later.append(run / "pipeline")
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


def _holds(folder: Path, best: dict) -> bool:
    """Whether a pipeline folder has these weights."""
    try:
        weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    except (OSError, SafetensorError):
        return False
    wanted = best["weights"]
    return weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)


def _published_step(run: Path) -> int:
    """The step of the weights in pipeline/, by its results.json; 0 if that does not tell."""
    try:
        return int(json.loads((run / "pipeline" / "results.json").read_text())["training"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _training_record(config, accelerator, unet, random_flip, data, progress, row) -> dict:
    """How the weights that are saved now came to be, for results.json and the card; nothing of this machine's paths."""
    local = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in local}
    dataset = settings["dataset"] = public_name(config.dataset)
    images_seen = progress.step * config.batch_size
    return {
        "dataset": dataset,
        "dataset_on_hub": dataset == config.dataset and dataset != "mnist5k",
        "num_images": len(data) - config.num_validation_images,
        "num_validation_images": config.num_validation_images,
        "random_flip": random_flip,
        "epoch": row["epoch"],
        "step": row["step"],
        "train_loss": row["train_loss"],
        "val_loss": row["val_loss"],
        "images_seen": images_seen,
        "training_flop": 3 * forward_flop(unet) * images_seen,  # backward costs two forwards
        "minutes": round(progress.elapsed_seconds / 60, 2),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "mixed_precision": accelerator.mixed_precision,
        "config": settings,
        "versions": {"cond_ddpm": cond_ddpm.__version__, **_versions()},
    }


def _write_config(run, config, accelerator, unet, random_flip, data) -> None:
    """config.yaml: the settings, to run it again by --config. config.json: those, what they came to, versions, command."""
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
        "versions": _versions(),
    }
    write(run / "config.json", json.dumps(record, indent=2) + "\n")
    write(run / "config.yaml", yaml.safe_dump(json.loads(json.dumps(record["config"])), sort_keys=False))


def save_pipeline(pipeline: CondDDPMPipeline, folder: Path) -> None:
    """Write beside, then replace file by file: of one run's epochs only the weights differ, so a kill leaves a whole one.

    Results and pictures of an earlier epoch's weights go first, and those of the new ones come last.

    Raises:
        OSError: it could not be written; no part of it is left.
    """
    with beside(folder) as partial:
        pipeline.save_pretrained(partial)
        for name in COMPANIONS:
            (folder / name).unlink(missing_ok=True)
        files = [path for path in partial.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path.name in COMPANIONS, path)):
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        remove(partial)


def _write_metrics(run: Path, rows: list[dict], picture: bool = True) -> None:
    """metrics.csv, and the picture of its losses."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write(run / "metrics.csv", file.getvalue())
    if picture:
        image = io.BytesIO()
        loss_curve({"run": rows}, image)
        write(run / "loss.png", image.getvalue())


def _append_lines(path: Path, rows: list[dict]) -> None:
    append(path, "".join(json.dumps(row) + "\n" for row in rows))


def _read_lines(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a line that is none is left out, for a killed run may have half written its last."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["step"] >= 0:
                rows.append(row)
    return rows
