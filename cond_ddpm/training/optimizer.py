"""The optimizer of a network, its parameter groups, and the learning-rate schedule.

May import: `config` and `training.muon`. Next in the data flow: `step.py` steps it.
"""

import math
from typing import Any

import torch

from cond_ddpm.config import TrainConfig
from cond_ddpm.training.muon import Muon


def make_optimizer(config: TrainConfig, unet: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW for all parameters, or Muon for the matrices between hidden features and AdamW for the rest.

    The rest: embeddings, positions, biases and norms; the first and last layer; and the layers that turn the embedding into
    scales, shifts and gates, which start at zero and have as many parameters as a block's own.
    """
    settings: dict[str, Any] = {
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
    matrices, others = [p for n, p in parameters if n in hidden], [p for n, p in parameters if n not in hidden]
    return Muon(matrices, others, **settings, iterations=config.muon_iterations)


def learning_rate_at(config: TrainConfig, step: int, share_done: float) -> float:
    """The learning rate of step `step` (from 0), when the share `share_done` of the run is behind it."""
    return config.learning_rate * lr_factor(config, step, share_done)


def lr_factor(config: TrainConfig, step: int, share_done: float) -> float:
    """The learning rate of that step, as a share of `learning_rate`.

    Linear warm-up by steps; then constant, until the last `lr_decay_share` of the run, over which it goes to zero.
    """
    warm = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    if config.lr_scheduler == "constant" or not config.lr_decay_share:
        return warm
    decayed = min(1.0, max(0.0, 1 - (1 - share_done) / config.lr_decay_share))  # 0 until the decay starts, 1 at the end
    decay = {"linear": 1 - decayed, "cosine": (1 + math.cos(math.pi * decayed)) / 2, "1-sqrt": 1 - math.sqrt(decayed)}
    return warm * decay[config.lr_scheduler]
