"""Folders that one command at a time may write to, and files that are written whole or not at all.

May import: nothing of ours. Whatever a run keeps on the disk is written by these.
"""

import contextlib
import datetime
import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # files of this beginning stay when a command has ended: to remove a lock would let two others hold one each


class NotWritten(OSError):
    """A file or folder could not be written; what was there before is as it was."""


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, which exists, against other commands. The system lets go of it when the process ends, however it ends.

    Args:
        folder: where the lock lies.
        what: the setting that names it, for the error.

    Raises:
        ValueError: another process holds it; says which one, and since when.
    """
    lock, owner = folder / LOCK, folder / f"{LOCK}.json"
    try:
        lock = FileLock(lock, timeout=0).acquire()
    except Timeout:
        try:  # a file of its own: on Windows nobody can read one that is locked
            by = "process {process} on {host} has held since {since}".format(**json.loads(owner.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            by = "another process holds"
        raise ValueError(
            f"{what}: expected a folder that nobody else writes to, got {folder}, which {by}; wait for it, stop it, or give"
            " another folder."
        ) from None
    with lock:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        mine = {"process": os.getpid(), "host": platform.node(), "since": since}
        with replacing(owner) as partial:
            partial.write_text(json.dumps(mine))
        yield


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give the path of a new file or folder beside `path`, from which the caller brings it there.

    Raises:
        NotWritten: whatever came in between; what was written beside is removed.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        remove(partial)
        yield partial
    except Exception as error:  # safetensors, torch.save and PIL raise types of their own when the disk is full
        with contextlib.suppress(OSError):
            remove(partial)
        raise NotWritten(f"{path}: could not be written: {_reason(error)}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `beside`; what has been written whole takes the place of `path`."""
    with beside(path) as partial:
        yield partial
        if partial.is_dir():
            remove(path)
        os.replace(partial, path)


def write(path: Path, content: bytes | str) -> None:
    """Raises NotWritten, and the file is as it was."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, text: str) -> None:
    """Raises NotWritten, and the file is as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise NotWritten(f"{path}: could not be written: {_reason(error)}") from error


def remove(path: Path) -> None:
    """A file, a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def step_of(path: Path, suffix: str) -> int | None:
    """N of a name such as checkpoint-N or step-N.safetensors; None if it has another form or suffix."""
    number = path.stem.rpartition("-")[2]
    return int(number) if path.suffix == suffix and number.isdecimal() else None


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is what is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _reason(error: Exception) -> str:
    """In one line; Python's own errors without the path, which is told anyway."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
