"""Seeds and labels -> images, in any batch size, on any number of processes.

May import: `data, fingerprints, processes`, the pipelines. Next on the data's way: `visualize/` draws the images, and
`evaluate/` measures them.
"""

import contextlib
import copy
import json
import os
import re
import shutil
import time
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from cond_ddpm.data import CLASSES_FILE
from cond_ddpm.fingerprints import SHORT, sha256, value_fingerprint
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
    batches = _batches(len(seeds), batch_size, state.num_processes)[state.process_index :: state.num_processes][skip:]
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


def _batches(count: int, batch_size: int, num_processes: int) -> list[list[int]]:
    """Which images are in each batch; the processes take them in turn."""
    size = min(batch_size, -(-count // num_processes)) or 1
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


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
    resume_key: str | None = None,
    **arguments,
) -> tuple[list[Path], float]:
    """Write each image once, whatever the number of processes and of images, at the memory of one batch.

    Args:
        output: `NAME.npz`, with arrays `images` (N, H, W, C) uint8, `class_labels` (N,) and `seeds` (N,), both int64 (seeds
            of 2^63 and more: uint64); or a folder of PNG files, `CLASS/SEED.png`, and of `classes.json`, which says the class
            of each folder, since not every name can be a folder's. `load_images` reads it as a data set of these classes.
        resume_key: what the images are a function of, beside labels, seeds and batches. A call that was interrupted goes on
            where it was, if it is made again with the same key, and makes nothing where all has been made.
        pipeline, class_labels, seeds, batch_size, progress, arguments: those of `sample_batches`.

    Returns:
        The files that say how far this is, for whoever gives a key to remove when a further call is not to go on from them;
        and the seconds that earlier calls took. Nothing and 0 without a key.

    Raises:
        ValueError: a folder that has other files, and what `sample_batches` raises.
    """
    state = process_state()
    config = pipeline.unet.config
    ids = [config.num_classes] * len(seeds) if class_labels is None else pipeline.label_ids(class_labels)
    _check_lengths(ids, seeds)
    is_folder = output.suffix.lower() != ".npz"
    record = _Record(output, is_folder, [resume_key, ids, list(seeds), batch_size, state.num_processes], state.process_index)
    resumed = resume_key is not None and record.of_this_call()
    if is_folder:
        if output.suffix and not output.suffix[1:].isdecimal():
            raise ValueError(f"output: expected a folder, or a name ending in .npz, got {output}.")
        others = [] if resumed or not output.is_dir() else [file for file in output.iterdir() if file.name[0] != "."]
        if others or (output.exists() and not output.is_dir()):
            raise ValueError(f"output: expected a new or empty folder, or a name ending in .npz, got {output}.")
        if len(set(zip(ids, seeds))) < len(seeds):
            raise ValueError("seeds: expected another one for each image of a class, since files are named by them.")
    done, earlier = record.read() if resumed else (0, 0.0)
    batches = _batches(len(seeds), max(batch_size, 1), state.num_processes)
    folders = _class_folders(pipeline)
    if is_folder:
        pictures = [output / folders[label] / f"{seed:06d}.png" for label, seed in zip(ids, seeds)]
        mine = batches[state.process_index :: state.num_processes][:done]
        # What someone has removed since is made again, and what comes after it.
        done = next((i for i, rows in enumerate(mine) if not all(pictures[row].is_file() for row in rows)), done)
    else:
        images_file = output.with_name(f".{output.name}.images.npy")
        if resumed and not images_file.is_file():
            if output.is_file() and record.all_done() == len(batches):
                return record.all_files(), earlier
            done = 0
    state.wait_for_everyone()  # until all have looked
    if state.is_main_process and not resumed:
        for file in record.all_files():
            file.unlink()
    state.wait_for_everyone()
    started = time.perf_counter()

    def sampled() -> Iterator[tuple[list[int], np.ndarray]]:
        """What is left to be made. A batch is done when it has been written, and the next one is asked for."""
        note = lambda done: resume_key is None or record.write(done, earlier + time.perf_counter() - started)  # noqa: E731
        left = sample_batches(pipeline, class_labels, seeds, batch_size, progress, done, **arguments)
        for number, batch in enumerate(left, done):
            if number == done:
                note(number)  # before anything is written: whose it is
            yield batch
            note(number + 1)

    if is_folder:
        names = {folders[label]: _class_name(pipeline, label) for label in sorted(set(ids) - {config.num_classes})}
        _write_pictures(sampled(), output, pictures, names)
    else:
        shape = (len(seeds), config.sample_size, config.sample_size, config.in_channels)
        if state.is_main_process and not (resumed and images_file.is_file()):
            output.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(images_file, mode="w+", dtype=np.uint8, shape=shape)
        state.wait_for_everyone()
        try:
            _write_rows(sampled(), images_file)
        except BaseException:
            if resume_key is None:
                images_file.unlink(missing_ok=True)
            raise
        state.wait_for_everyone()
        if state.is_main_process:
            _write_archive(images_file, {"class_labels": ids, "seeds": seeds}, output)
    state.wait_for_everyone()
    return (record.all_files(), earlier) if resume_key is not None else ([], 0.0)


def _write_pictures(batches: Iterator, output: Path, pictures: list[Path], names: dict[str, str]) -> None:
    for rows, images in batches:
        output.mkdir(parents=True, exist_ok=True)
        if 0 in rows and names:  # by one process, before any batch of it is done
            (output / CLASSES_FILE).write_text(json.dumps(names, indent=2) + "\n")
        for row, image in zip(rows, images):
            pictures[row].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(pictures[row])


def _write_rows(batches: Iterator, images_file: Path) -> None:
    """Into a file that all processes write into."""
    header = np.lib.format.open_memmap(images_file, mode="r").offset
    with images_file.open("r+b") as file:
        for rows, images in batches:
            for row, image in zip(rows, images):
                file.seek(header + row * image.size)
                file.write(image.transpose(1, 2, 0).tobytes())
            file.flush()


def _write_archive(images_file: Path, others: dict[str, Sequence[int]], output: Path) -> None:
    """One archive of all, without the time of its making, so that equal images are equal files."""
    partial = output.with_name(f".{output.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        with images_file.open("rb") as images, archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as file:
            shutil.copyfileobj(images, file, 2**24)
        for name, values in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                kind = np.uint64 if max(values, default=0) >= 2**63 else np.int64
                np.lib.format.write_array(file, np.asarray(values, kind))
    os.replace(partial, output)
    images_file.unlink()


class _Record:
    """How many batches have been written: a hidden file for each process, in the folder or beside the archive."""

    def __init__(self, output: Path, is_folder: bool, key: list, rank: int):
        self.folder, self.stem = (output, ".progress") if is_folder else (output.parent, f".{output.name}.progress")
        self.key = value_fingerprint(key, digits=64)
        self.file = self.folder / f"{self.stem}-{rank}"

    def all_files(self) -> list[Path]:
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(file for file in there if file.name.startswith(f"{self.stem}-"))

    def of_this_call(self) -> bool:
        """Whether any process has begun on what is asked for."""
        return any(self._content(file) is not None for file in self.all_files())

    def read(self) -> tuple[int, float]:
        """Batches that are done, and the seconds that they took."""
        content = self._content(self.file) or {"done": 0, "seconds": 0.0}
        return content["done"], content["seconds"]

    def all_done(self) -> int:
        """Batches that are done in all processes."""
        whole = [file for file in self.all_files() if file.suffix != ".partial"]  # that of a kill says it a second time
        return sum((self._content(file) or {"done": 0})["done"] for file in whole)

    def _content(self, file: Path) -> dict | None:
        try:
            content = json.loads(file.read_bytes())
            return content if content["key"] == self.key else None
        except (OSError, ValueError, TypeError, KeyError):  # none, or not one of ours: as if nothing were done
            return None

    def write(self, done: int, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f"{self.file.name}.partial")
        partial.write_text(json.dumps({"key": self.key, "done": done, "seconds": seconds}))
        os.replace(partial, self.file)


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


# Names that Windows keeps for devices, whatever follows their first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)


def _class_name(pipeline: DiffusionPipeline, label: int) -> str:
    return (pipeline.id2label or {}).get(label, str(label))


def _class_folders(pipeline: DiffusionPipeline) -> dict[int, str]:
    """A folder's name for each class, each another one on any disk; the null label's is "unconditional".

    A name that can be a folder's everywhere is kept. Of others, what cannot be in it is written as %XX, as in a URL, from
    which the name can be read back; but for those that are too long, of which the end becomes a checksum.
    """
    count = pipeline.unet.config.num_classes
    names = {label: _class_name(pipeline, label) for label in range(count)}
    taken = [_alike(name) for name in names.values()]
    folders = {label: _folder(name, taken.count(_alike(name)) > 1) for label, name in names.items()}
    return folders | {count: "unconditional"}


def _alike(name: str) -> str:
    """The same for names that some disks do not tell apart: by their case, or by how accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folder(name: str, has_a_double: bool) -> str:
    escape = lambda text: "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogatepass"))  # noqa: E731
    kept = lambda c: re.match(r"[\w .,()+-]", c) and not (has_a_double and _alike(c) != c)  # noqa: E731
    if unicodedata.normalize("NFC", name) != name or (has_a_double and not _alike(name).isascii()):
        kept = lambda c: re.match(r"[a-z0-9 .,()+_-]", c)  # noqa: E731
    characters = [c if kept(c) else escape(c) for c in name] or ["%"]
    # datasets leaves out what begins with two underscores.
    if _DEVICES.match(name) or characters[0] in " ." or name.startswith("__") or _alike(name) == CLASSES_FILE:
        characters[0] = escape(name[0])
    if characters[-1] in " .":
        characters[-1] = escape(name[-1])
    folder = "".join(characters)
    if len(folder.encode()) <= 120:
        return folder
    start = folder.encode()[:80].decode(errors="ignore")
    return f"{start}%%{sha256([name.encode(errors='surrogatepass')])[:SHORT]}"
