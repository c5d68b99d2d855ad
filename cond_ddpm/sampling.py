"""Seeds and labels -> images, in any batch size, on any number of processes.

May import: `data`, the pipelines. Next on the data's way: `visualize.py` draws the images, `evaluate/` measures them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline


def generate(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str],
    seeds: Sequence[int],
    batch_size: int = 100,
    progress: bool = False,
    **arguments,
) -> np.ndarray:
    """One image for each label and seed, as (N, C, H, W) uint8; every process gets them all.

    Each image has a generator of its own, on the CPU, so that it is the same in any batch and on any device, but for the
    rounding of the network's arithmetic.

    Args:
        pipeline: a `CondDDPMPipeline`.
        class_labels: ids or names, (N,).
        seeds: (N,).
        batch_size: images at a time in each process; bounds the memory.
        progress: show the pipeline's bar of each batch.
        arguments: passed on to the pipeline: `num_inference_steps`, `guidance_scale`.

    Raises:
        ValueError: numbers of labels and seeds that differ, and what the pipeline raises.
    """
    if len(class_labels) != len(seeds):
        raise ValueError(f"seeds: expected one for each of the {len(class_labels)} labels, got {len(seeds)}.")
    state = PartialState()
    pipeline.set_progress_bar_config(disable=not progress, leave=False)
    mine = range(state.process_index, len(seeds), state.num_processes)
    images = []
    for start in range(0, len(mine), batch_size):
        rows = mine[start : start + batch_size]
        batch = pipeline(
            [class_labels[row] for row in rows],
            generator=[torch.Generator().manual_seed(int(seeds[row])) for row in rows],
            output_type="pt",
            **arguments,
        ).images
        batch = (batch.float() * 255).round().to(torch.uint8).cpu().numpy()
        images += list(zip(rows, batch))
    return np.stack([image for _, image in sorted(gather_object(images), key=lambda pair: pair[0])])
