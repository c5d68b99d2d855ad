"""Seeds and labels -> images, in any batch size, on any number of processes.

May import: `data, processes`, the pipelines. Next on the data's way: `visualize.py` draws the images, `evaluate/` measures
them.
"""

import contextlib
import copy
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from cond_ddpm.pipelines.pipeline_cond_ddpm import whole_number
from cond_ddpm.processes import process_state


def sample_batches(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str] | None,
    seeds: Sequence[int],
    batch_size: int = 100,
    progress: bool = False,
    skip: int = 0,
    mixed_precision: str = "no",
    **arguments,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """This process's share of the images, a batch at a time: which of them, and (B, C, H, W) uint8.

    Where there are `batch_size` images for each process, the batches are the same ones on any number of processes, and so are
    the images: to the last bit, if each process has as many CPU threads. Where there are fewer, batches are smaller, so that
    each process has some.

    Args:
        pipeline: a `CondDDPMPipeline`; it is left as it is, and a callback is given a copy that shares its network.
        class_labels: ids or names, (N,); None for images of no class in particular.
        seeds: (N,). An image is a function of its label and seed; see `CondDDPMPipeline.__call__` for how exactly.
        batch_size: images at a time in each process; bounds the memory.
        progress: show a bar, on the main process.
        skip: how many of this process's batches to leave out, since they are done.
        mixed_precision: "bf16" or "fp16" for autocast of the network; "no" leaves it as it is.
        arguments: passed on to the pipeline: `num_inference_steps`, `guidance_scale`, `sampler`...

    Raises:
        ValueError: numbers of labels and seeds that differ, and what the pipeline raises; of every label and seed before the
            first image.
    """
    if class_labels is not None:
        _check_lengths(class_labels, seeds)
        class_labels = pipeline.label_ids(class_labels) if len(class_labels) else []
    for seed in seeds:
        whole_number("seeds", seed, 0, 2**64 - 1)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}.")
    state = process_state()
    pipeline = copy.copy(pipeline)  # its progress bars are the user's; there is one for all batches here
    pipeline.set_progress_bar_config(disable=True)
    size = min(batch_size, -(-len(seeds) // state.num_processes)) or 1
    batches = [list(range(start, min(start + size, len(seeds)))) for start in range(0, len(seeds), size)]
    batches = batches[state.process_index :: state.num_processes][skip:]
    total = sum(map(len, batches))
    with tqdm(total=total, unit="image", disable=not (progress and state.is_main_process), leave=False) as bar:
        for rows in batches:
            with autocast(mixed_precision, pipeline.device):
                images = pipeline(
                    class_labels=None if class_labels is None else [class_labels[row] for row in rows],
                    num_images_per_label=len(rows) if class_labels is None else 1,
                    seeds=[seeds[row] for row in rows],
                    batch_size=len(rows),
                    output_type="pt",
                    **arguments,
                ).images
            yield rows, (images * 255).round().to(torch.uint8).cpu().numpy()
            bar.update(len(rows))


def generate(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str] | None,
    seeds: Sequence[int],
    batch_size: int = 100,
    progress: bool = False,
    **arguments,
) -> np.ndarray:
    """One image for each label and seed, as (N, C, H, W) uint8, also for N = 0; every process gets them all.

    Arguments and errors: those of `sample_batches`.
    """
    images = [
        pair
        for rows, batch in sample_batches(pipeline, class_labels, seeds, batch_size, progress, **arguments)
        for pair in zip(rows, batch)
    ]
    config = pipeline.unet.config
    images = [image for _, image in sorted(gather_object(images), key=lambda pair: pair[0])]
    return np.array(images, np.uint8).reshape(-1, config.in_channels, config.sample_size, config.sample_size)


def save_samples(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str] | None,
    seeds: Sequence[int],
    output: Path,
    batch_size: int = 100,
    progress: bool = False,
    **arguments,
) -> None:
    """Write each image once, whatever the number of processes and of images, at the memory of one batch.

    Args:
        output: `NAME.npz`, with arrays `images` (N, H, W, C) uint8, `class_labels` (N,) and `seeds` (N,), both int64 (seeds
            of 2^63 and more: uint64); or a folder of PNG files, `CLASS/SEED.png`, which `load_images` and `load_dataset` read
            as a data set of these classes.
        pipeline, class_labels, seeds, batch_size, progress, arguments: those of `sample_batches`.

    Raises:
        ValueError: a folder that has other files, and what `sample_batches` raises.
    """
    state = process_state()
    config = pipeline.unet.config
    ids = [config.num_classes] * len(seeds) if class_labels is None else pipeline.label_ids(class_labels)
    _check_lengths(ids, seeds)
    batches = sample_batches(pipeline, class_labels, seeds, batch_size, progress, **arguments)
    if output.suffix.lower() != ".npz":
        if output.suffix and not output.suffix[1:].isdecimal():
            raise ValueError(f"output: expected a folder, or a name ending in .npz, got {output}.")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"output: expected a new or empty folder, or a name ending in .npz, got {output}.")
        if len(set(zip(ids, seeds))) < len(seeds):
            raise ValueError("seeds: expected another one for each image of a class, since files are named by them.")
        state.wait_for_everyone()
        folders = _class_folders(pipeline)
        for rows, images in batches:
            for row, image in zip(rows, images):
                folder = output / folders[ids[row]]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(folder / f"{seeds[row]:06d}.png")
        state.wait_for_everyone()
        return

    # A file that all processes write into, then one archive of it.
    output.parent.mkdir(parents=True, exist_ok=True)
    images_file, partial = (output.with_name(f".{output.name}.{name}") for name in ("images.npy", "partial"))
    shape = (len(seeds), config.sample_size, config.sample_size, config.in_channels)
    if state.is_main_process:
        np.lib.format.open_memmap(images_file, mode="w+", dtype=np.uint8, shape=shape)
    state.wait_for_everyone()
    header = np.lib.format.open_memmap(images_file, mode="r").offset
    try:
        with images_file.open("r+b") as file:
            for rows, images in batches:
                for row, image in zip(rows, images):
                    file.seek(header + row * image.size)
                    file.write(image.transpose(1, 2, 0).tobytes())
    except BaseException:
        images_file.unlink(missing_ok=True)
        raise
    state.wait_for_everyone()
    if state.is_main_process:
        with zipfile.ZipFile(partial, "w") as archive:
            archive.write(images_file, "images.npy")
            for name, values in (("class_labels", ids), ("seeds", seeds)):
                with archive.open(f"{name}.npy", "w") as file:
                    kind = np.uint64 if max(values, default=0) >= 2**63 else np.int64
                    np.lib.format.write_array(file, np.asarray(values, kind))
        os.replace(partial, output)
        images_file.unlink()
    state.wait_for_everyone()


def autocast(mixed_precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Of "bf16" or "fp16"; nothing for "no", also within another's.

    Raises:
        ValueError: another name.
    """
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if mixed_precision == "no":
        return contextlib.nullcontext()
    if mixed_precision not in types:
        raise ValueError(f"mixed_precision: expected no, bf16 or fp16, got {mixed_precision!r}.")
    return torch.autocast(device.type, dtype=types[mixed_precision])


def _check_lengths(class_labels: Sequence, seeds: Sequence[int]) -> None:
    if len(class_labels) != len(seeds):
        raise ValueError(f"seeds: expected one for each of the {len(class_labels)} labels, got {len(seeds)}.")


def _class_folders(pipeline: DiffusionPipeline) -> dict[int, str]:
    """Names of classes, as far as they can be names of folders, and each another one; the null label's is "unconditional"."""
    count = pipeline.unet.config.num_classes
    names = {label: (pipeline.id2label or {}).get(label, str(label)) for label in range(count)} | {count: "unconditional"}
    safe = {label: re.sub(r"[^\w .,()+-]", "_", name).strip(" .") for label, name in names.items()}
    taken = [name.lower() for name in safe.values()]  # some disks do not tell cases apart
    return {label: name if name and taken.count(name.lower()) == 1 else f"{label}_{name}" for label, name in safe.items()}
