"""Folders that one command at a time may write to, files that are written whole or not at all, and the lines that a run logs.

May import: nothing of ours. Everything that a run keeps on disk is written by these functions.
"""

import contextlib
import datetime
import errno
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# The names of lock files begin so. They are kept when a command ends, because after the removal of a lock two other commands
# could hold one each.
LOCK = ".lock"


class NotWritten(OSError):
    """A file or folder could not be written; what was there before is unchanged."""


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Lock an existing folder against other commands; the system releases the lock when the process ends, even by a crash.

    Args:
        folder: what is locked.
        what: the setting that names the folder, for the error.

    Raises:
        ValueError: another process holds the lock; the error says which one, and since when.
    """
    owner = folder / f"{LOCK}.json"
    try:
        lock = FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        try:  # kept in a file of its own, because on Windows a locked file cannot be read
            by = "process {process} on {host} has held since {since}".format(**json.loads(owner.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            by = "another process holds"
        raise ValueError(
            f"{what}: expected a folder that nobody else writes to, got {folder}, which {by}; wait for it, stop it, or give"
            " another folder."
        ) from None
    with lock:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        write(owner, json.dumps({"process": os.getpid(), "host": platform.node(), "since": since}))
        yield


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path next to `path` for a new file or folder, which the caller moves to `path` when it is complete.

    Raises:
        NotWritten: any error in the meantime; what was written next to `path` is removed.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        remove(partial)
        yield partial
    except Exception as error:  # on a full disk, safetensors, torch.save and PIL raise their own types
        with contextlib.suppress(OSError):
            remove(partial)
        raise NotWritten(f"{path}: could not be written: {_reason(error)}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `beside`, but what was written replaces `path` at the end."""
    with beside(path) as partial:
        yield partial
        if partial.is_dir():
            remove(path)
        os.replace(partial, path)


@contextlib.contextmanager
def replacing_files(folder: Path, last: Iterable[str] = ()) -> Iterator[Path]:
    """As `beside`, but at the end each file that was written replaces that of its name in `folder`, whose other files stay.

    Args:
        folder: if it is not there, what was written becomes it as a whole.
        last: names of the files that are replaced last.
    """
    with beside(folder) as partial:
        yield partial
        if not folder.exists():
            os.replace(partial, folder)
            return
        names = set(last)
        files = [path for path in partial.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path.name in names, path)):
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        remove(partial)


def write(path: Path, content: bytes | str) -> None:
    """Write a file; if that fails, NotWritten is raised and the file is unchanged.

    Tensors too are brought into memory first, by `safetensors.torch.save`: `save_file` makes a temporary file with a new name
    each time, which a kill would leave there for good.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, text: str) -> None:
    """Append to a file; if that fails, NotWritten is raised and the file is unchanged."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise NotWritten(f"{path}: could not be written: {_reason(error)}") from error


def is_free(path: Path, hidden_files: bool = False) -> bool:
    """Whether a new folder can be made here: nothing is there, or an empty folder (`hidden_files`: or one with only those)."""
    if path.is_dir():
        return all(hidden_files and inner.name.startswith(".") for inner in path.iterdir())
    return not path.exists()


def read_lines(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl. A line that is not a row is left out, since a killed run may have half written its last."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(line)
            numbers = [row.get(name, 0.0) for name in ("loss", "train_loss", "val_loss", "learning_rate")]
            if row["step"] >= 0 and all(isinstance(number, (int, float)) for number in numbers):
                rows.append(row)
    return rows


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hub_file(repository: str, name: str, proxies: dict | None = None, **arguments) -> Path | None:
    """A file of a model repository on the Hub, in the cache or downloaded to it; None if it is not there or unreachable.

    Args:
        repository: USER/NAME.
        name: of the file in the repository.
        proxies: has no effect, as in huggingface_hub since version 1.
        arguments: the others of `huggingface_hub.hf_hub_download`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, **arguments))
    except (EntryNotFoundError, OSError, ValueError):  # HfHubHTTPError and a missing connection are OSErrors
        return None


def steps_of(paths: Iterable[Path], suffix: str) -> dict[Path, int]:
    """The N of each path named such as checkpoint-N or step-N.safetensors, the lowest first; other paths are left out."""
    numbers = {path: path.stem.rpartition("-")[2] for path in paths if path.suffix == suffix}
    steps = {path: int(number) for path, number in numbers.items() if number.isdecimal()}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def is_full(error: OSError) -> bool:
    """Whether the reason is a full disk or a quota that is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _reason(error: Exception) -> str:
    """The reason in one line; for Python's own errors without the path, which the message contains already."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
