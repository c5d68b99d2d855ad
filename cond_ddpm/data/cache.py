"""All pictures of a table -> one array, decoded the first time and then memory-mapped from a file.

May import: `data.pictures, files`. Next: `load.py`.
"""

import contextlib
import errno
import json
import os
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from cond_ddpm.data.pictures import GREY, LOSSES, RULE, location, losses, to_array, with_picture
from cond_ddpm.files import is_full


def cache_folder() -> Path:
    """Everything that this package caches is in its own folder inside the cache of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "cond_ddpm"


def raw_pictures(table, column: str):
    """The pictures of a table as they are in their files: each row is `{column: {"bytes": ..., "path": ...}}`."""
    import datasets

    return table.cast_column(column, datasets.Image(decode=False)).with_format(None).select_columns([column])


def decoded(
    dataset: str, table, version: str, column: str, resolution: int, channels: int | None, fit: str = "crop"
) -> np.ndarray:
    """All pictures as one array (N, C, H, W) uint8, memory-mapped from the file for this version, rule and size."""
    pictures = raw_pictures(table, column)
    given = channels
    if channels is None:
        channels = 1 if with_picture(pictures[0][column], 0, lambda picture: picture.mode) in GREY else 3
    rule = f"rule{RULE}" if fit == "crop" else f"rule{RULE}-{fit}"
    cache = cache_folder() / f"{version}-{column}-{resolution}x{channels}-{rule}.npy"
    loss_file = cache.with_suffix(".json")  # so that a run that reads the cache warns as the first one did
    if not (cache.exists() and loss_file.exists()):
        _decode(pictures, column, cache, loss_file, (len(table), channels, resolution, resolution), fit)
    for loss, (count, where) in json.loads(loss_file.read_text()).items():
        if given is None or loss not in ("grey", "colour"):
            text = f"{dataset}: {count} of {len(table)} pictures, the first of them in {where}, are {LOSSES[loss]}."
            warnings.warn(text, stacklevel=2)
    return np.load(cache, mmap_mode="r")


def _decode(pictures, column: str, cache: Path, loss_file: Path, shape: tuple[int, int, int, int], fit: str) -> None:
    channels, resolution = shape[1:3]
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}

    def arrays() -> Iterator[np.ndarray]:
        for row, record in enumerate(pictures):
            use = lambda picture: (to_array(picture, resolution, channels, fit), losses(picture, channels))  # noqa: E731
            array, lost = with_picture(record[column], row, use)
            counts.update(lost)
            for loss in lost:
                first.setdefault(loss, f"row {row}{location(record[column])}")
            yield array

    with cache_file(cache, f"the decoded pictures ({np.prod(shape) / 1e6:,.1f} MB)") as partial:
        if shutil.disk_usage(cache.parent).free < np.prod(shape):  # better to fail now than after hours of decoding
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with partial.open("wb") as file:  # not memory-mapped: on a full disk, that would kill the process silently
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays():
                file.write(array.tobytes())
        loss_file.write_text(json.dumps({loss: [count, first[loss]] for loss, count in counts.items()}))


@contextlib.contextmanager
def cache_file(cache: Path, what: str) -> Iterator[Path]:
    """A file to write, which becomes `cache` when it is whole. Files that killed commands of this machine left are removed.

    Another command may be writing the same file, also on another machine, so the name has the machine and the process.

    Raises:
        OSError: the disk is full, in words that say what was being written, `what`.
    """
    here = f".{platform.node()}-"
    partial = cache.with_name(f"{cache.name}{here}{os.getpid()}.partial")
    try:
        with space_needed(what):
            cache.parent.mkdir(parents=True, exist_ok=True)
            for left in cache.parent.glob("*.partial"):
                process = left.stem.rpartition(here)[2]
                if process.isdecimal() and not psutil.pid_exists(int(process)):
                    left.unlink(missing_ok=True)
            yield partial
            partial.replace(cache)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def space_needed(what: str) -> Iterator[None]:
    """If the disk is full or a quota is used up, the error says what was being written and what to do."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_space(what, error) from error


def no_space(what: str, error: OSError) -> OSError:
    import datasets

    return OSError(
        f"not enough disk space for {what} in {datasets.config.HF_DATASETS_CACHE} ({os.strerror(error.errno or 0)}); free"
        " some, or set HF_DATASETS_CACHE to a folder on another disk."
    )
