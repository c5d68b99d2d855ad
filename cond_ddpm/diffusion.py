"""The training objective: noise schedule, timesteps, label dropout, prediction target, loss weighting.

May import: `config`. Next in the data flow: `training/step.py` averages the losses and steps the optimizer.
All randomness of a training step is drawn here. It depends only on (seed, step), and it is drawn for the whole global batch,
of which each process takes its part. So a run depends neither on the number of processes nor on how often it was resumed.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from cond_ddpm.config import TrainConfig


def make_noise_scheduler(config: TrainConfig) -> DDPMScheduler:
    """The forward process. The betas are kept only in its config, from which other schedulers are made."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
    )


AUGMENT_DIM = 5  # mirrored; shifted right and down; enlarged; turned


@dataclass(frozen=True)
class StepRandomness:
    """The random choices of one training step, for a batch of B images."""

    timesteps: torch.Tensor  # (B,) int64 in [0, num_train_timesteps)
    noise: torch.Tensor  # (B, C, H, W) standard normal, float32
    drop_label: torch.Tensor  # (B,) bool: whether the null label replaces the class
    flip: np.ndarray  # (B,) bool: whether the image is mirrored
    dropout_seed: int  # of the network's dropout layers
    # (B, AUGMENT_DIM) float32: how the image is changed, as `data/augmentation.py` says; None if no image is.
    augmentation: np.ndarray | None = None

    def part(self, index: int, parts: int) -> "StepRandomness":
        """Part `index` of `parts` equal parts of the global batch, for one process."""
        size = len(self.flip) // parts
        rows = slice(index * size, (index + 1) * size)
        seed = (self.dropout_seed * parts + index) % 2**63
        augmentation = None if self.augmentation is None else self.augmentation[rows]
        draws = (self.timesteps[rows], self.noise[rows], self.drop_label[rows], self.flip[rows])
        return StepRandomness(*draws, seed, augmentation)


def draw_training(config: TrainConfig, step: int, image_shape: tuple[int, int, int], device: torch.device) -> StepRandomness:
    """The randomness of optimizer step `step` for the global batch. The noise is drawn on `device`, the rest on the CPU."""
    rng = np.random.default_rng((config.seed, step))
    size, num_timesteps = config.batch_size, config.num_train_timesteps
    if config.timestep_sampling == "logit_normal":  # Esser 2024 (SD3), eq. 19, location 0 and scale 1
        timesteps = (num_timesteps / (1 + np.exp(-rng.standard_normal(size)))).astype(np.int64).clip(0, num_timesteps - 1)
    else:
        timesteps = rng.integers(num_timesteps, size=size)
    drop_label = rng.random(size) < config.class_dropout_prob
    flip = rng.random(size) < 0.5
    noise_seed, dropout_seed = rng.integers(2**62, size=2).tolist()
    augmentation = _draw_augmentation(rng, size, config.augmentation_prob) if config.augmentation_prob else None
    # Here is the place of a further draw, so that a seed gives the same run as before.
    generator = torch.Generator(device).manual_seed(noise_seed)
    return StepRandomness(
        timesteps=torch.from_numpy(timesteps).to(device),
        noise=torch.randn((size, *image_shape), generator=generator, device=device),
        drop_label=torch.from_numpy(drop_label).to(device),
        flip=flip,
        dropout_seed=dropout_seed,
        augmentation=augmentation,
    )


def _draw_augmentation(rng: np.random.Generator, size: int, probability: float) -> np.ndarray:
    """(size, AUGMENT_DIM): 1 for a mirror image and a standard normal number for each other change; 0 where it is not made.

    Each change is considered by itself, and of those that are considered for it, half are mirrored.
    """
    amounts = np.column_stack([rng.random(size) < 0.5, rng.standard_normal((size, AUGMENT_DIM - 1))])
    considered = rng.random((size, AUGMENT_DIM - 1)) < probability
    return (amounts * considered[:, [0, 1, 1, 2, 3]]).astype(np.float32)


def draw_validation(num_images: int, num_train_timesteps: int, image_shape: tuple[int, int, int]) -> StepRandomness:
    """Evenly spaced timesteps without label dropout, the same for every run and epoch, so that the losses are comparable."""
    timesteps = (2 * torch.arange(num_images) + 1) * num_train_timesteps // (2 * num_images)  # centres of equal intervals
    timesteps = timesteps[torch.randperm(num_images, generator=torch.Generator().manual_seed(0))]
    noise = torch.randn((num_images, *image_shape), generator=torch.Generator().manual_seed(0))
    none = torch.zeros(num_images, dtype=torch.bool)
    return StepRandomness(timesteps, noise, none, none.numpy(), dropout_seed=0)


def drop_labels(class_labels: torch.Tensor, drop: torch.Tensor, null_label: int) -> torch.Tensor:
    """The labels (B,) with the null label where `drop` (B,) is true: each label is dropped independently."""
    return torch.where(drop, null_label, class_labels)


def prediction_target(
    scheduler: DDPMScheduler, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network is trained to predict, (B, C, H, W), according to the scheduler's `prediction_type`."""
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
    """The weights (B,) of the squared errors: ones, or min-SNR-gamma (Hang 2023, sec. 3.4) for any prediction type."""
    if min_snr_gamma is None:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = compute_snr(scheduler, timesteps)  # alphas_cumprod / (1 - alphas_cumprod)
    clipped = snr.clamp(max=min_snr_gamma)  # the weight of a squared error in x_0; the other types differ by a factor
    return {"epsilon": clipped / snr, "sample": clipped, "v_prediction": clipped / (snr + 1)}[scheduler.config.prediction_type]


def diffusion_losses(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: torch.Tensor,
    class_labels: torch.Tensor,
    randomness: StepRandomness,
    null_label: int,
    min_snr_gamma: float | None = None,
    model_guidance_scale: float = 1.0,
    augment_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted loss of each image, (B,) float32 (DDPM, Ho 2020, eq. 14).

    Noise is added in float32, also under autocast, since bfloat16 would round it away at small t. The loss is in float32 too.

    With a `model_guidance_scale` s above 1 the network learns to predict what guidance would make of its prediction: the
    target of an image with a label moves by (1 - 1 / s) of the difference between the conditional and the unconditional
    prediction, which are taken as constants (Tang 2025, arXiv 2502.12154, eq. 11). Where the loss is least, the prediction is
    u + s (c - u), which classifier-free guidance makes of an unguided c and u by two forward passes.

    The `augment_labels` (B, AUGMENT_DIM) tell the network how the images were changed; None if they were not.
    """
    noisy = scheduler.add_noise(images, randomness.noise, randomness.timesteps)
    class_labels = drop_labels(class_labels, randomness.drop_label, null_label)
    unconditional, more = None, {} if augment_labels is None else {"augment_labels": augment_labels}
    if model_guidance_scale > 1:
        with torch.no_grad():
            null_labels = torch.full_like(class_labels, null_label)
            unconditional = unet(noisy, randomness.timesteps, null_labels, **more).sample.float()
    prediction = unet(noisy, randomness.timesteps, class_labels, **more).sample.float()
    target = prediction_target(scheduler, images, randomness.noise, randomness.timesteps)
    if unconditional is not None:
        share = (1 - 1 / model_guidance_scale) * ~randomness.drop_label  # the unconditional prediction itself is not guided
        target = target + share[:, None, None, None] * (prediction.detach() - unconditional)
    errors = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    return errors * loss_weights(scheduler, randomness.timesteps, min_snr_gamma)
