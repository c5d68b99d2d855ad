"""The state of a training run: what one step changes, and what a checkpoint holds.

May import: `config, diffusion, models, pipelines, ema`, and `training.{batches, network, optimizer}`.
`step.py` advances it by one step; `checkpoint.py` writes it.
"""

import copy
import dataclasses
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler

from cond_ddpm.config import TrainConfig
from cond_ddpm.diffusion import make_noise_scheduler
from cond_ddpm.ema import PowerEMA
from cond_ddpm.pipelines.pipeline_cond_ddpm import DEFAULT_SAMPLER, CondDDPMPipeline
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.network import make_unet, start_from_base
from cond_ddpm.training.optimizer import make_optimizer

_SECOND_STD = 0.1  # EDM2 keeps averages of widths 0.05 and 0.1, from which any other width can be computed later


@dataclasses.dataclass
class Progress:
    """How far a run has got."""

    step: int = 0  # optimizer steps done
    elapsed_seconds: float = 0.0
    best_loss: float = float("inf")
    epochs_since_best: int = 0
    val_draws: int = 1  # of each held-out image in a validation; as the run began, so that its validation losses compare
    guided_from: int | None = None  # the step at which the part of the run began that learns guidance
    epoch_losses: list[float] = dataclasses.field(default_factory=list)  # of the steps of the current epoch
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)  # a row for each epoch


@dataclasses.dataclass
class TrainingState:
    config: TrainConfig
    accelerator: Accelerator
    unet: torch.nn.Module  # as the accelerator prepared it: with autocast, and gradients averaged over the processes
    raw_unet: torch.nn.Module  # the same network without that; unwrapping the prepared one would take its autocast away
    noise_scheduler: DDPMScheduler
    optimizer: torch.optim.Optimizer
    ema: PowerEMA | None
    pipeline: (
        CondDDPMPipeline  # what is validated, sampled and saved: its UNet is a separate copy, loaded with the averaged weights
    )
    progress: Progress = dataclasses.field(default_factory=Progress)
    best: dict[str, Any] | None = None  # the best epoch so far: its `weights` and its `results`, the text of results.json

    @classmethod
    def create(cls, config: TrainConfig, accelerator: Accelerator, data: TrainingData) -> "TrainingState":
        """The state before the first step: a function of the settings and the data's shape and classes."""
        set_seed(config.seed)
        unet = make_unet(config, data.image_shape, data.num_classes)
        averaged_unet = copy.deepcopy(unet).eval().requires_grad_(False).to(accelerator.device)
        if config.channels_last:
            unet = unet.to(memory_format=torch.channels_last)
        if config.compile:
            unet.compile()
        noise_scheduler = make_noise_scheduler(config)
        prepared, optimizer = accelerator.prepare(unet, make_optimizer(config, unet))
        ema = PowerEMA(unet.parameters(), {config.ema_std, _SECOND_STD}) if config.use_ema else None
        id2label = dict(enumerate(data.images.class_names))
        pipeline = CondDDPMPipeline(
            averaged_unet,
            noise_scheduler,
            id2label,
            config.class_dropout_prob,
            config.guidance_scale,
            min(config.num_inference_steps, config.num_train_timesteps),
        )
        # It is published with a sampler of few steps. Any other sampler is made from its config, which has the same betas.
        pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)
        return cls(config, accelerator, prepared, unet, noise_scheduler, optimizer, ema, pipeline)

    def start_from_base(self) -> None:
        """Put the weights of `init_from` into the network and its averages, and say what of them does not fit."""
        assert self.config.init_from is not None and self.pipeline.id2label is not None
        with self.accelerator.main_process_first():
            notes = start_from_base(self.raw_unet, list(self.pipeline.id2label.values()), self.config.init_from)
        for average in self.ema.averages.values() if self.ema is not None else ():
            copy_parameters(self.raw_unet.parameters(), average)
        if self.accelerator.is_main_process:
            print("; ".join([f"the weights start from {self.config.init_from}", *notes]), file=sys.stderr)

    @property
    def parameter_names(self) -> list[str]:
        return [name for name, _ in self.raw_unet.named_parameters()]

    @property
    def model_guidance_scale(self) -> float:
        """The guidance that the network learns at this step; 1 for none."""
        return 1.0 if self.progress.guided_from is None else self.config.model_guidance_scale

    def learn_guidance(self) -> None:
        """From now on. The losses before do not compare with those to come: the next epoch is the best so far."""
        self.progress.guided_from = self.progress.step
        self.progress.best_loss, self.progress.epochs_since_best = float("inf"), 0

    def use_raw_weights(self) -> None:
        """Put the trained weights into the pipeline."""
        copy_parameters(self.raw_unet.parameters(), self.pipeline.unet.parameters())

    def use_averaged_weights(self) -> None:
        """Put the averaged weights, of relative width `ema_std`, into the pipeline."""
        assert self.ema is not None
        copy_parameters(self.ema.averages[self.config.ema_std], self.pipeline.unet.parameters())

    def state_dict(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """(named tensors, nested states), each by its file's name without suffix; `progress` is saved separately."""
        tensors = {"unet": self.raw_unet.state_dict()}
        if self.ema is not None:
            tensors["ema"] = {
                f"{std}/{name}": tensor
                for std, average in self.ema.averages.items()
                for name, tensor in zip(self.parameter_names, average)
            }
        states = {"optimizer": self.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            states["scaler"] = self.accelerator.scaler.state_dict()
        if self.best is not None:
            states["best"] = self.best
        return tensors, states

    def load_state_dict(self, tensors: dict[str, dict[str, torch.Tensor]], states: dict[str, Any], progress: Progress) -> None:
        self.raw_unet.load_state_dict(tensors["unet"])
        if self.ema is not None:
            for std, average in self.ema.averages.items():
                copy_parameters([tensors["ema"][f"{std}/{name}"] for name in self.parameter_names], average)
        self.optimizer.load_state_dict(states["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.progress, self.best = progress, states.get("best")


@torch.no_grad()
def copy_parameters(source, target) -> None:
    for from_, to in zip(source, target, strict=True):
        to.copy_(from_)
