"""The networks by the names that `--model` takes. The code is in `cond_unet.py`, which is published as it is."""

from cond_ddpm.models.cond_unet import AttentionUNet2DModel, SimpleUNet2DModel

MODELS = {"simple": SimpleUNet2DModel, "attention": AttentionUNet2DModel}
