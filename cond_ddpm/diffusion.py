"""The training objective: noise schedule, timesteps, label drop, target, loss weighting.

May import: `config` at most. Next on the data's way: `train.py` averages the losses and steps the optimizer.
Everything random in a training step is drawn here, as a function of (seed, step) alone and for the whole global batch, of
which each process takes its slice: so a run does not depend on the number of processes or on how often it was resumed.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from cond_ddpm.config import TrainConfig


def make_noise_scheduler(config: TrainConfig) -> DDPMScheduler:
    """The forward process. Its config is the one place of the betas; other samplers come from `from_config` of it."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
    )


@dataclass(frozen=True)
class StepRandomness:
    """What chance decides for a batch of B images."""

    timesteps: torch.Tensor  # (B,) int64 in [0, num_train_timesteps)
    noise: torch.Tensor  # (B, C, H, W) standard normal, float32
    drop_label: torch.Tensor  # (B,) bool: told the null label in place of its class
    flip: np.ndarray  # (B,) bool: mirrored
    dropout_seed: int

    def part(self, index: int, parts: int) -> "StepRandomness":
        """The index-th of equal parts, which is what one process sees of the global batch."""
        size = len(self.flip) // parts
        mine = slice(index * size, (index + 1) * size)
        seed = (self.dropout_seed * parts + index) % 2**63
        return StepRandomness(self.timesteps[mine], self.noise[mine], self.drop_label[mine], self.flip[mine], seed)


def draw_training(config: TrainConfig, step: int, image_shape: tuple[int, int, int], device: torch.device) -> StepRandomness:
    """Chance in optimizer step `step`, for the global batch; the noise is drawn on `device`, the rest on the CPU."""
    rng = np.random.default_rng((config.seed, step))
    size, last = config.batch_size, config.num_train_timesteps
    if config.timestep_sampling == "logit_normal":  # Esser 2024 (SD3), eq. 19, location 0 and scale 1
        timesteps = (last / (1 + np.exp(-rng.standard_normal(size)))).astype(np.int64).clip(0, last - 1)
    else:
        timesteps = rng.integers(last, size=size)
    drop_label = rng.random(size) < config.class_dropout_prob
    flip = rng.random(size) < 0.5
    noise_seed, dropout_seed = rng.integers(2**62, size=2).tolist()
    generator = torch.Generator(device).manual_seed(noise_seed)
    return StepRandomness(
        timesteps=torch.from_numpy(timesteps).to(device),
        noise=torch.randn((size, *image_shape), generator=generator, device=device),
        drop_label=torch.from_numpy(drop_label).to(device),
        flip=flip,
        dropout_seed=dropout_seed,
    )


def draw_validation(num_images: int, num_train_timesteps: int, image_shape: tuple[int, int, int]) -> StepRandomness:
    """The same for every run and epoch, so that validation losses compare: timesteps evenly spread, no label dropped."""
    timesteps = (2 * torch.arange(num_images) + 1) * num_train_timesteps // (2 * num_images)  # middles of equal parts
    timesteps = timesteps[torch.randperm(num_images, generator=torch.Generator().manual_seed(0))]
    noise = torch.randn((num_images, *image_shape), generator=torch.Generator().manual_seed(0))
    none = torch.zeros(num_images, dtype=torch.bool)
    return StepRandomness(timesteps, noise, none, none.numpy(), dropout_seed=0)


def drop_labels(class_labels: torch.Tensor, drop: torch.Tensor, null_label: int) -> torch.Tensor:
    """Labels (B,), those where `drop` (B,) is true replaced by the null label: each image by itself, not the batch."""
    return torch.where(drop, null_label, class_labels)


def prediction_target(
    scheduler: DDPMScheduler, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the scheduler's `prediction_type` says the network predicts, (B, C, H, W)."""
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return images
    if prediction_type == "v_prediction":  # Salimans & Ho 2022: v = alpha noise - sigma x
        return scheduler.get_velocity(images, noise, timesteps)
    raise ValueError(
        f"prediction_type: expected 'epsilon', 'sample' or 'v_prediction', got {prediction_type!r}; change the scheduler."
    )


def loss_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
    """Weights (B,) of the squared errors: ones, or min-SNR-gamma (Hang 2023, sec. 3.4), for each prediction type."""
    if min_snr_gamma is None:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = compute_snr(scheduler, timesteps)  # alphas_cumprod / (1 - alphas_cumprod)
    clipped = snr.clamp(max=min_snr_gamma)  # the weight of a squared error in x; the others follow from its scale
    return {"epsilon": clipped / snr, "sample": clipped, "v_prediction": clipped / (snr + 1)}[scheduler.config.prediction_type]


def diffusion_losses(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: torch.Tensor,
    class_labels: torch.Tensor,
    draw: StepRandomness,
    null_label: int,
    min_snr_gamma: float | None = None,
) -> torch.Tensor:
    """Loss of each image, (B,) float32: DDPM's eq. 14 (Ho 2020), weighted.

    Noising and the loss are in float32 whatever the autocast type: in bfloat16, x_t at small t would lose the noise.
    """
    noisy = scheduler.add_noise(images, draw.noise, draw.timesteps)
    told = drop_labels(class_labels, draw.drop_label, null_label)
    prediction = unet(noisy, draw.timesteps, told).sample.float()
    target = prediction_target(scheduler, images, draw.noise, draw.timesteps)
    errors = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    return errors * loss_weights(scheduler, draw.timesteps, min_snr_gamma)
