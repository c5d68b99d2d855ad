"""The peers' networks and recipes, as their own documentation has them, at the size of ours.

`UNet2DModel` comes with diffusers. `pip install --no-deps denoising-diffusion-pytorch einops` brings the other one; without
its dependencies, for torchvision would replace torch by a CUDA build. Its one file that is needed is loaded alone.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

WIDTHS = (64, 128, 128)


class DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel with `num_class_embeds`; attention in the two inner resolutions (its default heads), or none."""

    def __init__(self, attention: bool):
        from diffusers import UNet2DModel

        super().__init__()
        inner = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
        self.unet = UNet2DModel(
            sample_size=32,
            block_out_channels=WIDTHS,
            layers_per_block=2,
            down_block_types=("DownBlock2D", inner[0], inner[0]),
            up_block_types=(inner[1], inner[1], "UpBlock2D"),
            add_attention=attention,
            num_class_embeds=11,
        )

    def forward(self, sample, timestep, class_labels):
        return self.unet(sample, timestep, class_labels).sample


def lucidrains():
    """The module `denoising_diffusion_pytorch.classifier_free_guidance`."""
    package = importlib.util.find_spec("denoising_diffusion_pytorch")
    if package is None:
        raise SystemExit("expected denoising-diffusion-pytorch: pip install --no-deps denoising-diffusion-pytorch einops")
    if "lucidrains_classifier_free_guidance" in sys.modules:
        return sys.modules["lucidrains_classifier_free_guidance"]
    path = Path(package.submodule_search_locations[0]) / "classifier_free_guidance.py"
    spec = importlib.util.spec_from_file_location("lucidrains_classifier_free_guidance", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks it up
    spec.loader.exec_module(module)
    return module


class LucidrainsUNet(nn.Module):
    """denoising-diffusion-pytorch's class-conditional UNet: linear attention at each resolution, full in the middle."""

    def __init__(self):
        super().__init__()
        mults = tuple(width // WIDTHS[0] for width in WIDTHS)
        self.unet = lucidrains().Unet(dim=WIDTHS[0], dim_mults=mults, num_classes=10, cond_drop_prob=0.1)

    def forward(self, sample, timestep, class_labels):
        return self.unet(sample, timestep, class_labels)


def ours(name: str, **arguments) -> nn.Module:
    """One of our networks behind the same call."""
    from cond_ddpm.models import MODELS

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = MODELS[name](**arguments)

        def forward(self, sample, timestep, class_labels):
            return self.unet(sample, timestep, class_labels).sample

    return Ours()


# The study's pos_dim of 1024 makes ours larger than the peers'; 256 is what UNet2DModel has at these widths.
NETWORKS = {
    "diffusers simple": lambda: DiffusersUNet(attention=False),
    "ours simple": lambda: ours("simple", pos_dim=256),
    "diffusers attention": lambda: DiffusersUNet(attention=True),
    "lucidrains": LucidrainsUNet,
    "ours attention": lambda: ours("attention", pos_dim=256),
    "ours hybrid": lambda: ours("hybrid"),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()
