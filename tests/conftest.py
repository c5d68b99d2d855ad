"""Tiny models and data sets that the tests share; seconds, not minutes."""

import os
import shutil
from pathlib import Path

# Tiny networks gain nothing by threads; and threads of programs that share the cores wait for each other at every operation.
# Before torch is imported, and for the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = Path(os.environ.get("COND_DDPM_CIFAR10", ROOT.parent / "shared" / "data" / "cifar10"))
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason=f"real CIFAR-10 is not at {CIFAR10}; give its folder by COND_DDPM_CIFAR10"
)
TINY = {"block_out_channels": (8, 16), "layers_per_block": 1, "pos_dim": 16}
TINY_HYBRID = {**TINY, "size": "tiny", "transformer_layers": 1, "attention_head_dim": 8}
NAMES = ["circle", "square", "cross"]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Decoded data sets go to a cache of this test run."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(params=["simple", "attention", "hybrid"])
def tiny_unet(request):
    return make_unet(request.param)


def make_unet(model="attention", seed=0, **arguments):
    """A tiny UNet whose zero-initialised layers have been filled, so that its output depends on everything."""
    import torch

    from cond_ddpm.models import MODELS

    torch.manual_seed(seed)
    tiny = TINY_HYBRID if model == "hybrid" else TINY
    unet = MODELS[model](**{"sample_size": 8, "num_classes": 3, **tiny, **arguments})
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


@pytest.fixture
def tiny_pipeline(tiny_unet):
    return make_pipeline(tiny_unet)


def make_pipeline(unet):
    from diffusers import DDPMScheduler

    from cond_ddpm import CondDDPMPipeline

    pipeline = CondDDPMPipeline(unet, DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(NAMES)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def launch_chromium(playwright, *flags):
    """A headless Chromium; what needs it is skipped where there is none. COND_DDPM_CHROMIUM names another of the kind."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("COND_DDPM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"there is no Chromium: none of {', '.join(names)}")
    # Containers have no sandbox of their own for it, and small shared memory.
    flags = ["--no-sandbox", "--disable-dev-shm-usage", *flags]
    return playwright.chromium.launch(executable_path=found, args=flags)


def one_thread_each(processes):
    """For subprocess's `preexec_fn`: as many cores as processes, for rounding depends on the number of threads."""
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processes])


def shapes(count, size=8, seed=0):
    """Circles, squares and crosses (count, size, size, 3) uint8 in random colours, with their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    masks = [np.hypot(x, y) < size / 3, np.maximum(abs(x), abs(y)) < size / 3, np.minimum(abs(x), abs(y)) < size / 8]
    images = np.stack([masks[label][..., None] * rng.integers(128, 256, 3) for label in labels])
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def shapes_parquet(tmp_path_factory):
    """A local data set: 96 pictures of 8x8 in a parquet file, columns `img` and `label`."""
    return write_parquet(tmp_path_factory.mktemp("shapes"), *shapes(96))


def write_parquet(folder, images, labels, names=tuple(NAMES)):
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage

    features = Features({"img": Image(), "label": ClassLabel(names=list(names))})
    rows = {"img": [PILImage.fromarray(image) for image in images], "label": [int(label) for label in labels]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder
