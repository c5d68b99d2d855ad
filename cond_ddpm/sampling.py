"""Draws images for seeds and class labels, in batches of any size and on any number of processes.

May import: `data, files, fingerprints, hardware, processes`, the pipelines. Next: `visualize/` shows the images, and
`evaluation/` measures them.
"""

import contextlib
import copy
import functools
import json
import os
import re
import shutil
import time
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from cond_ddpm.data import CLASSES_FILE
from cond_ddpm.files import is_free
from cond_ddpm.fingerprints import SHORT, sha256, value_fingerprint, weights_checksum
from cond_ddpm.hardware import eager_if_not_compiled, precision_for
from cond_ddpm.pipelines.pipeline_cond_ddpm import whole_number
from cond_ddpm.processes import ends_in_order, memory_for, process_state


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
    """This process's share of the images, batch by batch: their indices, and the images as (B, C, H, W) uint8.

    With at least `batch_size` images for each process, any number of processes draws the same batches, and bitwise the same
    images if each process has as many CPU threads. With fewer, the batches are smaller, so that each process has some.

    Args:
        pipeline: a `CondDDPMPipeline`. It is not changed; a callback receives a copy that shares its network.
        class_labels: ids or names, (N,); None for unconditional images.
        seeds: (N,). An image depends only on its label and seed; `CondDDPMPipeline.__call__` says how exactly.
        batch_size: images in a batch of each process; limits the memory.
        progress: show a progress bar on the main process; in a terminal, also one of the steps of each batch.
        skip: number of this process's batches that are done and are left out.
        mixed_precision: "bf16" or "fp16" to run the network under autocast; "auto" for what the hardware does fast; "no" to
            leave it as it is.
        arguments: passed on to the pipeline, such as `num_inference_steps`, `guidance_scale` and `sampler`.

    Raises:
        ValueError: different numbers of labels and seeds; a label, a seed or an argument that the pipeline refuses. All
            labels and seeds are checked before the first image.
    """
    if class_labels is not None:
        _check_lengths(class_labels, seeds)
        class_labels = pipeline.label_ids(class_labels) if len(class_labels) else []
    for seed in seeds:
        whole_number("seeds", seed, 0, 2**64 - 1)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}.")
    state = process_state()
    shows = progress and state.is_main_process
    pipeline = copy.copy(pipeline)  # keeps the user's progress bar settings
    # A bar of the steps of each batch, below that of all images; None: only in a terminal, which can have two bars.
    pipeline.set_progress_bar_config(disable=None if shows else True, desc="this batch", unit="step", leave=False)
    batches = _batches(len(seeds), batch_size, state.num_processes)[state.process_index :: state.num_processes][skip:]
    total = sum(map(len, batches))
    with tqdm(total=total, unit="image", disable=not shows, leave=False) as bar:
        for rows in batches:
            what = f"a batch of {len(rows)} samples"
            with memory_for(pipeline.device, what, "lower --batch_size"), autocast(mixed_precision, pipeline.device):
                draw = functools.partial(
                    pipeline,
                    class_labels=None if class_labels is None else [class_labels[row] for row in rows],
                    num_images_per_label=len(rows) if class_labels is None else 1,
                    seeds=[seeds[row] for row in rows],
                    batch_size=len(rows),
                    output_type="pt",
                    **arguments,
                )
                images = eager_if_not_compiled(draw).images
            yield rows, (images * 255).round().to(torch.uint8).cpu().numpy()
            bar.update(len(rows))


def _check_lengths(class_labels: Sequence, seeds: Sequence[int]) -> None:
    if len(class_labels) != len(seeds):
        raise ValueError(f"seeds: expected one for each of the {len(class_labels)} labels, got {len(seeds)}.")


def _batches(count: int, batch_size: int, num_processes: int) -> list[list[int]]:
    """The indices of the images in each batch. The processes take the batches in turn."""
    size = min(batch_size, -(-count // num_processes)) or 1
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def autocast(mixed_precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to "bf16", "fp16" or, for "auto", what the hardware does fast; for "no" a context that does nothing, so that
    an outer autocast still holds.

    Raises:
        ValueError: another name.
    """
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    mixed_precision = precision_for(device) if mixed_precision == "auto" else mixed_precision
    if mixed_precision == "no":
        return contextlib.nullcontext()
    if mixed_precision not in types:
        raise ValueError(f"mixed_precision: expected no, bf16, fp16 or auto, got {mixed_precision!r}.")
    return torch.autocast(device.type, dtype=types[mixed_precision])


def generate(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str] | None,
    seeds: Sequence[int],
    batch_size: int = 100,
    progress: bool = False,
    **arguments,
) -> np.ndarray:
    """One image for each label and seed, as (N, C, H, W) uint8, N may be 0. Every process receives all of them.

    Arguments and errors: those of `sample_batches`.
    """
    numbered: list[tuple[int, np.ndarray]] = []
    for rows, batch in sample_batches(pipeline, class_labels, seeds, batch_size, progress, **arguments):
        numbered += zip(rows, batch)
    images = [image for _, image in sorted(gather_object(numbered), key=lambda pair: pair[0])]
    config = pipeline.unet.config
    return np.array(images, np.uint8).reshape(-1, config.in_channels, config.sample_size, config.sample_size)


def drawn_by(pipeline: DiffusionPipeline, arguments: dict[str, Any]) -> list:
    """What images depend on besides labels, seeds and batches, for a `resume_key`: the weights and how they are sampled."""
    guide = arguments.get("guide")
    recorded = {**arguments, "guide": None if guide is None else weights_checksum(guide.unet)}
    # What is not given is the pipeline's own, which another folder of the same weights can have otherwise.
    if arguments.get("num_inference_steps") is None:
        scheduler = pipeline.make_scheduler(arguments.get("sampler"), arguments.get("timestep_spacing"))
        recorded["num_inference_steps"] = pipeline.default_steps(scheduler)
    if arguments.get("guidance_scale") is None:
        recorded["guidance_scale"] = pipeline.guidance_scale
    return [weights_checksum(pipeline.unet), pipeline.scheduler.config, sorted(recorded.items())]


def save_samples(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str] | None,
    seeds: Sequence[int],
    output: Path,
    batch_size: int = 100,
    progress: bool = False,
    resume_key: str | None = None,
    **arguments,
) -> tuple[list[Path], float]:
    """Draw images and write each of them once, with any number of processes, in the memory of one batch.

    Args:
        output: `NAME.npz`, with arrays `images` (N, H, W, C) uint8, `class_labels` (N,) and `seeds` (N,), both int64 (uint64
            for seeds of 2^63 and more); or a folder of PNG files, `CLASS/SEED.png`. Its `classes.json` holds the class of
            each folder, since not every class name can be a folder's name. `load_images` reads it as a data set.
        resume_key: identifies what the images depend on besides labels, seeds and batches. If a call was interrupted, the
            next one with the same key continues it; if all images are there, it draws none.
        pipeline, class_labels, seeds, batch_size, progress, arguments: those of `sample_batches`.

    Returns:
        The progress files, which the caller removes once no later call needs to resume, and the seconds that
        earlier calls took. Without a key, an empty list and 0.

    Raises:
        ValueError: the folder has other files; two images would have the same file; what `sample_batches` raises.
    """
    state = process_state()
    ids = [pipeline.unet.config.num_classes] * len(seeds) if class_labels is None else pipeline.label_ids(class_labels)
    _check_lengths(ids, seeds)
    is_folder = output.suffix.lower() != ".npz"
    progress_file = output / ".progress" if is_folder else output.with_name(f".{output.name}.progress")
    key = None if resume_key is None else [resume_key, ids, list(seeds), batch_size, state.num_processes]
    record = _ProgressRecord(progress_file, key, state.process_index)
    resuming = record.exists()
    writer = (_FolderWriter if is_folder else _ArchiveWriter)(output, pipeline, ids, seeds, resuming)
    batches = _batches(len(seeds), max(batch_size, 1), state.num_processes)
    if resuming and record.total_done() == len(batches) and writer.is_complete():
        return record.files(), record.read()[1]
    done, earlier_seconds = record.read()
    done = writer.count_written(batches[state.process_index :: state.num_processes][:done])

    state.wait_for_everyone()  # until every process has looked at what is there
    if state.is_main_process and not resuming:
        for file in [*record.files(), *writer.unfinished_files]:
            file.unlink(missing_ok=True)
    state.wait_for_everyone()
    started = time.perf_counter()

    def sampled() -> Iterator[tuple[list[int], np.ndarray]]:
        """The batches that are left. By the time the writer asks for a batch, it has written the previous one."""
        left = sample_batches(pipeline, class_labels, seeds, batch_size, progress, done, **arguments)
        for number, batch in enumerate(left, done):
            if number == done:  # before anything is written, mark the output as this call's
                record.write(number, earlier_seconds + time.perf_counter() - started)
            yield batch
            record.write(number + 1, earlier_seconds + time.perf_counter() - started)

    try:
        with ends_in_order():
            writer.write(sampled(), state)
    except BaseException:
        for file in writer.unfinished_files if resume_key is None else ():
            file.unlink(missing_ok=True)
        raise
    state.wait_for_everyone()
    return record.files(), earlier_seconds


class _FolderWriter:
    """Writes `CLASS/SEED.png`, and in `classes.json` the class of each folder."""

    def __init__(self, output: Path, pipeline: DiffusionPipeline, labels: list[int], seeds: Sequence[int], resuming: bool):
        if output.suffix and not output.suffix[1:].isdecimal():
            raise ValueError(f"output: expected a folder, or a name ending in .npz, got {output}.")
        if not is_free(output, hidden_files=True) and not (resuming and output.is_dir()):
            raise ValueError(f"output: expected a new or empty folder, or a name ending in .npz, got {output}.")
        if len(set(zip(labels, seeds))) < len(seeds):
            raise ValueError("seeds: expected a different one for each image of a class, since files are named by them.")
        null_label = pipeline.unet.config.num_classes
        names = pipeline.id2label or {label: str(label) for label in range(null_label)}
        folders = _class_folders(names) | {null_label: "unconditional"}
        self.output = output
        self.unfinished_files: list[Path] = []
        self.pictures = [output / folders[label] / f"{seed:06d}.png" for label, seed in zip(labels, seeds)]
        self.names = {folders[label]: names[label] for label in sorted(set(labels) - {null_label})}

    def is_complete(self) -> bool:
        return all(picture.is_file() for picture in self.pictures)

    def count_written(self, batches: list[list[int]]) -> int:
        """The number of batches before the first batch that lacks a picture."""
        missing = (i for i, rows in enumerate(batches) if not all(self.pictures[row].is_file() for row in rows))
        return next(missing, len(batches))

    def write(self, batches: Iterable, state: PartialState) -> None:
        for rows, images in batches:
            self.output.mkdir(parents=True, exist_ok=True)
            if 0 in rows and self.names:  # so one process writes it, before the first batch counts as done
                (self.output / CLASSES_FILE).write_text(json.dumps(self.names, indent=2) + "\n")
            for row, image in zip(rows, images):
                self.pictures[row].parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(self.pictures[row])


class _ArchiveWriter:
    """Writes all images into one file as they come, and at the end into an archive with their labels and seeds."""

    def __init__(self, output: Path, pipeline: DiffusionPipeline, labels: list[int], seeds: Sequence[int], resuming: bool):
        self.output, self.images_file = output, output.with_name(f".{output.name}.images.npy")
        self.unfinished_files = [self.images_file]
        self.labels, self.seeds, config = labels, seeds, pipeline.unet.config
        self.shape = (len(seeds), config.sample_size, config.sample_size, config.in_channels)

    def is_complete(self) -> bool:
        return self.output.is_file() and not self.images_file.is_file()

    def count_written(self, batches: list[list[int]]) -> int:
        return len(batches) if self.images_file.is_file() else 0

    def write(self, batches: Iterable, state: PartialState) -> None:
        if state.is_main_process and not self.images_file.is_file():
            self.output.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(self.images_file, mode="w+", dtype=np.uint8, shape=self.shape)
        state.wait_for_everyone()
        header = np.lib.format.open_memmap(self.images_file, mode="r").offset
        with self.images_file.open("r+b") as file:  # each process writes its own rows
            for rows, images in batches:
                for row, image in zip(rows, images):
                    file.seek(header + row * image.size)
                    file.write(image.transpose(1, 2, 0).tobytes())
                file.flush()
        state.wait_for_everyone()
        if state.is_main_process:
            self._write_archive()

    def _write_archive(self) -> None:
        """The archive holds no timestamps, so that equal images give equal files."""
        partial = self.output.with_name(f".{self.output.name}.partial")
        with zipfile.ZipFile(partial, "w") as archive:
            entry = zipfile.ZipInfo("images.npy")
            with self.images_file.open("rb") as images, archive.open(entry, "w", force_zip64=True) as file:
                shutil.copyfileobj(images, file, 2**24)
            for name, values in {"class_labels": self.labels, "seeds": self.seeds}.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                    kind = np.uint64 if max(values, default=0) >= 2**63 else np.int64
                    np.lib.format.write_array(file, np.asarray(values, kind))
        os.replace(partial, self.output)
        self.images_file.unlink()


class _ProgressRecord:
    """How many batches have been written: a hidden file for each process, `FILE-RANK`. Without a key nothing is recorded."""

    def __init__(self, file: Path, key: list | None, rank: int):
        self.folder, self.stem = file.parent, f"{file.name}-"
        self.key = None if key is None else value_fingerprint(key, digits=64)
        self.file = self.folder / f"{self.stem}{rank}"

    def files(self) -> list[Path]:
        """The progress files of all processes."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(file for file in there if file.name.startswith(self.stem))

    def exists(self) -> bool:
        """Whether any process has begun to write what this call asks for."""
        return any(self._content(file) is not None for file in self.files())

    def read(self) -> tuple[int, float]:
        """The number of batches that this process has written, and the seconds that they took."""
        content = self._content(self.file) or {"done": 0, "seconds": 0.0}
        return content["done"], content["seconds"]

    def total_done(self) -> int:
        """The number of batches that all processes have written."""
        whole = [file for file in self.files() if file.suffix != ".partial"]  # a killed call leaves a partial copy
        return sum((self._content(file) or {"done": 0})["done"] for file in whole)

    def write(self, done: int, seconds: float) -> None:
        if self.key is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f"{self.file.name}.partial")
        partial.write_text(json.dumps({"key": self.key, "done": done, "seconds": seconds}))
        os.replace(partial, self.file)

    def _content(self, file: Path) -> dict | None:
        try:
            content = json.loads(file.read_bytes())
            return content if content["key"] == self.key else None
        except (OSError, ValueError, TypeError, KeyError):  # missing, or not one of ours: nothing has been written
            return None


# Names that Windows reserves for devices, whatever follows their first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)


def _class_folders(names: dict[int, str]) -> dict[int, str]:
    """A folder name for each class, which no file system confuses with another.

    A class name that any file system can store is kept. In the others, each character that cannot be stored is written as
    %XX, as in a URL, from which the name can be read back. A name that is too long ends in a checksum.
    """
    taken = [_folded(name) for name in names.values()]
    return {label: _folder(name, taken.count(_folded(name)) > 1) for label, name in names.items()}


def _folded(name: str) -> str:
    """Equal for names that some file systems do not tell apart: by their case, or by how accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folder(name: str, has_a_double: bool) -> str:
    def escape(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogatepass"))

    only_ascii = unicodedata.normalize("NFC", name) != name or (has_a_double and not _folded(name).isascii())
    allowed = r"[a-z0-9 .,()+_-]" if only_ascii else r"[\w .,()+-]"
    characters = [c if re.match(allowed, c) and not (has_a_double and _folded(c) != c) else escape(c) for c in name] or ["%"]
    # The datasets library skips names that begin with two underscores.
    if _DEVICES.match(name) or characters[0] in " ." or name.startswith("__") or _folded(name) == CLASSES_FILE:
        characters[0] = escape(name[0])
    if characters[-1] in " .":
        characters[-1] = escape(name[-1])
    folder = "".join(characters)
    if len(folder.encode()) <= 120:
        return folder
    start = folder.encode()[:80].decode(errors="ignore")
    return f"{start}%%{sha256([name.encode(errors='surrogatepass')])[:SHORT]}"
