"""The networks by the names that `--model` takes, and their cost in FLOP.

May import: `cond_unet.py`, which has the code of the networks and is published with them.
Next in the data flow: `training/` trains a network, and the pipeline samples from it.
"""

from collections.abc import Callable

import torch
from diffusers import ModelMixin

from cond_ddpm.models.cond_unet import AttentionUNet2DModel, HybridUNet2DModel, SimpleUNet2DModel

MODELS = {"simple": SimpleUNet2DModel, "attention": AttentionUNet2DModel, "hybrid": HybridUNet2DModel}


def forward_flop(unet: ModelMixin) -> int:
    """FLOP of the forward pass of one image; a backward pass takes about twice as many."""
    config = unet.config
    sample = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, device=unet.device)
    label = torch.zeros(1, dtype=torch.int64, device=unet.device)
    return count_flop(lambda: unet(sample, 0, label))


def count_flop(call: Callable[[], object]) -> int:
    """FLOP of the matrix products and convolutions in `call()`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # On the CPU, the counter knows only this implementation of attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
