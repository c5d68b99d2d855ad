"""The training loop: it reads top to bottom.

May import: everything of `training`, and `config, diffusion, ema, heartbeat, hub, processes, visualize`. Next in the data
flow: the folder `pipeline/`, which everything else reads.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator, PartialState

from cond_ddpm import hub
from cond_ddpm.config import TrainConfig
from cond_ddpm.diffusion import draw_validation
from cond_ddpm.ema import save_snapshot
from cond_ddpm.heartbeat import together
from cond_ddpm.processes import Stopping, make_accelerator, on_main
from cond_ddpm.training.batches import load_training_data
from cond_ddpm.training.checkpoint import (
    made_with,
    prune_checkpoints,
    recorded_precision,
    recorded_settings,
    resume,
    save_checkpoint,
)
from cond_ddpm.training.epoch import end_epoch
from cond_ddpm.training.horizon import Horizon
from cond_ddpm.training.log import Log, start_trackers
from cond_ddpm.training.optimizer import learning_rate_at
from cond_ddpm.training.records import write_first_batch, write_report
from cond_ddpm.training.run_folder import open_run, prepare_run, starting_point
from cond_ddpm.training.speed import with_precision
from cond_ddpm.training.state import TrainingState
from cond_ddpm.training.step import memory_of_steps, train_step, validation_draws
from cond_ddpm.visualize import run_report


def train(
    config: TrainConfig,
    on_epoch: Callable[[dict], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_trained: Callable[[Path, float], None] | None = None,
) -> Path:
    """Train a class-conditional UNet, on as many processes as `accelerate launch` or `torchrun` started.

    Args:
        config: the settings.
        on_epoch: called on the main process with each epoch's row of metrics.csv; an exception that it raises ends the run.
        clock: returns the time in seconds, for `max_train_minutes` and the images per second.
        on_trained: called on the main process with the run's folder and the seconds of its training, once its pipeline has its
            weights, and before that gets its card and is published. The other processes wait.

    Returns:
        The run's folder: `config.json`, `data.txt` and `data.png` (what was found in the data and chosen, and images as the
        network sees them), `first_batch.png`, `metrics.csv` (a row for each epoch), `metrics.jsonl` (a row for each step),
        `loss.png`, `samples/epoch_NNNN.png`, `report.html` (all of that on one page), `checkpoint-N/` for resuming, `ema/`,
        `logs/`, and `pipeline/`, the weights of the epoch with the lowest validation loss (their moving average, unless
        `use_ema` is off), with a card, ready to be published. If the run resumed from an earlier checkpoint,
        `abandoned-STEP-N/` holds what was written after it.

    Raises:
        ValueError: settings that do not fit the data, the network, the checkpoint or the number of processes; data other
            than the checkpoint's; a folder that another run writes to.
        OSError: a data set that cannot be found, an output folder that cannot be written, a full disk; with `push_to_hub`, a
            Hub that cannot be reached or refuses.
        FloatingPointError: a loss that is not finite.
        ConnectionError: another process died, hangs or cannot be reached (`heartbeat.together`).
        MemoryError: a step that does not fit into the memory; the error says which settings to change.
        SystemExit: 143 or 130 after SIGTERM or Ctrl-C, with a checkpoint of the last step.
    """
    config = with_precision(config)
    accelerator = make_accelerator(config, recorded_precision(config))
    with together(PartialState()), open_run(config, accelerator) as run:
        return _train(config, accelerator, run, on_epoch, clock, on_trained)


def _train(config: TrainConfig, accelerator: Accelerator, run: Path, on_epoch, clock, on_trained) -> Path:
    # 1. The data and the state, new or from a checkpoint. The run folder is not touched until everything has been checked.
    checkpoint, resuming = on_main(accelerator, lambda: starting_point(config))
    recorded = None if checkpoint is None else recorded_settings(checkpoint)
    config, data = load_training_data(config, accelerator, recorded)
    with memory_of_steps(accelerator, config, data):
        state = TrainingState.create(config, accelerator, data)
    settings = made_with(state, data)
    if checkpoint is not None:
        resume(state, checkpoint, settings)
    elif config.init_from is not None:
        state.start_from_base()
    progress, is_main = state.progress, accelerator.is_main_process
    if checkpoint is None:
        progress.val_draws = validation_draws(len(data.val_indices), len(data.train_indices))
    horizon = Horizon.of(config, data.steps_per_epoch)
    progress.best_loss = on_main(accelerator, lambda: prepare_run(run, state, data, horizon, resuming))
    if horizon.is_over(progress) and is_main:
        print(f"{progress.step} steps are done, and the run ends after {horizon}: nothing is left to do")
    if is_main and not resuming:
        write_report(run, data)
        write_first_batch(run, state, data)
    start_trackers(state, resumed=checkpoint is not None)
    num_draws = len(data.val_indices) * progress.val_draws
    val_randomness = draw_validation(num_draws, config.num_train_timesteps, data.image_shape)

    with (
        memory_of_steps(accelerator, config, data),
        Stopping(accelerator, progress.elapsed_seconds, clock) as stopping,
        Log(run, state, horizon, clock) as log,
    ):
        while not horizon.is_over(progress):
            # 2. One optimizer step.
            share_done = horizon.share_done(progress)
            learning_rate = learning_rate_at(config, progress.step, share_done)
            learns_guidance = config.model_guidance_scale > 1 and share_done >= 1 - config.model_guidance_share
            if learns_guidance and progress.guided_from is None:
                state.learn_guidance()
            log.start_step(data.epoch_of(progress.step))
            loss = train_step(state, data, learning_rate)
            log.end_step(learning_rate, loss)
            signal, progress.elapsed_seconds = stopping.agree()

            # 3. When it is due, read the losses; at the end of an epoch, validate and save the best weights.
            ends_epoch = horizon.is_over(progress) or progress.step % (data.steps_per_epoch * config.validation_epochs) == 0
            saves = bool(signal) or _is_multiple(progress.step, config.checkpointing_steps)
            if log.is_due or ends_epoch or saves:
                log.write()
            if ends_epoch:
                end_epoch(run, state, data, horizon, log, learning_rate, val_randomness, on_epoch)
            is_over = horizon.is_over(progress)

            # 4. Save snapshots of the averages, from which other widths can be computed later, and the checkpoint.
            snapshots = [int(share * config.num_ema_snapshots) for share in (share_done, horizon.share_done(progress))]
            if is_main and state.ema is not None and config.num_ema_snapshots and (snapshots[1] > snapshots[0] or is_over):
                save_snapshot(state.ema, state.parameter_names, run / "ema", progress.step)
            if is_main and (saves or (is_over and config.checkpointing_steps)):
                save_checkpoint(run, *state.state_dict(), progress, settings)
                prune_checkpoints(run, config.checkpoints_total_limit, progress.step)
            if signal and not is_over:
                _stop(accelerator, log, progress.step, signal)

    # 5. The published folder gets its card, the run its report; and the folder is pushed to the Hub if requested.
    if is_main:
        if horizon.stops_early(progress):
            print(f"stopped early: the validation loss has not improved for {config.patience} validations")
        if on_trained is not None and (run / "pipeline").is_dir():
            on_trained(run, progress.elapsed_seconds)
        if (run / "pipeline").is_dir():  # a finished run that is resumed in another folder has none
            with accelerator.autocast():
                licences = (config.license, config.dataset_license)  # also where a resume gives others
                hub.complete(run / "pipeline", pictures={"loss.png": (run / "loss.png").read_bytes()}, licences=licences)
        run_report(run)
        if config.hub_model_id is not None:  # as it is with push_to_hub, and only then
            hub.publish(run / "pipeline", config.hub_model_id, private=config.hub_private_repo)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run


def _is_multiple(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _stop(accelerator: Accelerator, log: Log, step: int, signal: int) -> None:
    """Exit with the signal's code; the checkpoint has already been written."""
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.is_main_process:
        log.bar.close()
        print(
            f"stopped after step {step} by signal {signal}; to continue, repeat the command with"
            " --resume_from_checkpoint latest",
            file=sys.stderr,
        )
    raise SystemExit(128 + signal)
