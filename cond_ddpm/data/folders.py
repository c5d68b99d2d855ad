"""Local folders: their files, and the splits and classes that their folders of pictures make.

May import: `fingerprints`. Next: `source.py` makes a table of the pictures.
"""

import functools
import json
import os
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cond_ddpm.fingerprints import value_fingerprint

# In a folder of samples, this file maps each folder to the name of its class, because not every name can be a folder's name.
CLASSES_FILE = "classes.json"
_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "data"}
_ARCHIVES = {".parquet", ".arrow", ".zip", ".tar"}


def local_files(path: Path) -> tuple[dict[str, os.stat_result], set[str]]:
    """The files of a folder and the folders in it, by their relative names ("a/b.png"), sorted.

    Links are followed, and hidden files are left out.

    Raises:
        ValueError: a broken link, or a link to a folder that contains it.
    """
    files: dict[str, os.stat_result] = {}
    folders: set[str] = set()

    def walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name != ".huggingface.yaml":  # which load_dataset reads
                    continue
                name = prefix + entry.name
                try:
                    found = entry.stat()
                except OSError as error:
                    raise ValueError(f"{entry.path}: expected a file, got a link that leads nowhere; remove it.") from error
                if not entry.is_dir():
                    files[name] = found
                elif (found.st_dev, found.st_ino) in above:
                    raise ValueError(f"{entry.path}: expected a folder, got a link to a folder that contains it; remove it.")
                else:
                    folders.add(name)
                    walk(entry.path, f"{name}/", above | {(found.st_dev, found.st_ino)})

    if path.is_file():
        return {path.name: path.stat()}, folders
    found = path.stat()
    walk(str(path), "", frozenset({(found.st_dev, found.st_ino)}))
    return dict(sorted(files.items())), folders


def files_version(path: Path, files: dict[str, os.stat_result]) -> str:
    """A fingerprint of these files as they are now.

    `tar`, `rsync -t` and `cp -p` keep the mtime of the files that they overwrite, but not the ctime.
    """
    return value_fingerprint([str(path), [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files.items()]])


def split_folders(dataset: str, path: Path, files: Iterable[str], folders: set[str]) -> dict[str, str]:
    """Split -> the folder ("" or "train/") that holds its folders of classes; empty if metadata or other files determine them.

    They are found here because load_dataset looks for the names of splits anywhere in a path: it would take `train_diesel`
    beside `bus` for a split and drop `bus`, and take `test/a_train/0.png` for training data.
    """
    if written_class_names(path):  # a folder of samples, whatever its classes are called
        return {"train": ""}
    tops = sorted(name for name in folders if "/" not in name)
    named_as_splits = _SPLITS.issuperset(name.lower() for name in tops)
    for name in files:
        of_archive = Path(name).suffix.lower() in _ARCHIVES and name.count("/") <= (1 if named_as_splits else 0)
        if of_archive or name.rpartition("/")[2] in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            return {}
    for name in ("README.md", ".huggingface.yaml"):  # which may say which files belong to which split
        words = (path / name).read_text(errors="replace") if name in files else ""
        if any(word in words for word in ("configs:", "data_files:", "dataset_info:")):
            return {}
    pictures = [name for name in files if is_picture(name)]
    if not tops or not pictures:
        return {}
    if not named_as_splits:
        return {"train": ""}
    splits = {name: f"{name}/" for name in sorted({name.split("/")[0] for name in pictures if name.count("/") > 1})}
    loose = [name for name in pictures if name.split("/")[0] not in splits]
    if not splits:
        raise ValueError(
            f"{dataset}: expected class folders inside {', '.join(f'{name}/' for name in tops)}, which are named like splits,"
            f" got {loose[0]}; put the pictures into folders named after their classes."
        )
    warn_left_out(dataset, loose, "not in a class folder")
    return splits


def class_folders(
    dataset: str, prefix: str, files: Iterable[str], folders: set[str]
) -> tuple[list[str], list[int], list[str]]:
    """Names of the pictures under `prefix`, their labels, and the class names, which are the names of their folders.

    Raises:
        ValueError: pictures at different depths, or in no folder of a class.
    """
    inside = [name for name in files if name.startswith(prefix)]
    names = [name for name in inside if is_picture(name)]
    depths = {name.count("/"): name for name in reversed(names)}
    if len(depths) != 1 or min(depths) == prefix.count("/"):
        raise ValueError(
            f"{dataset}: expected pictures {prefix}CLASS/NAME, all at the same depth, got"
            f" {' and '.join(depths[depth] for depth in sorted(depths)[:2])}; put each into the folder of its class."
        )
    homes: dict[str, list[str]] = {}  # class -> the folders of that name
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in names):
        homes.setdefault(folder.rpartition("/")[2], []).append(folder)
    for class_, several in homes.items():
        if len(several) > 1:
            text = f"{dataset}: classes are named after the folders of their pictures; {', '.join(several)} are all {class_!r}"
            if len(homes) == 1:
                raise ValueError(f"{text}; expected pictures {prefix}CLASS/NAME.")
            warnings.warn(f"{text}, so they become one class.", stacklevel=2)
    homes_at = [PurePosixPath(folder) for several in homes.values() for folder in several]
    used = {str(above) for home in homes_at for above in (home, *home.parents)}
    empty = sorted(name for name in folders - used if name.startswith(prefix) and not is_special(name))
    warn_left_out(dataset, empty, "a folder without pictures is not a class")
    others = [name for name in inside if not is_picture(name) and name.count("/") > prefix.count("/")]
    warn_left_out(dataset, others, "not a picture, judging by its name")
    class_names = sorted(homes)
    ids = {name: label for label, name in enumerate(class_names)}
    return names, [ids[name.split("/")[-2]] for name in names], class_names


def written_class_names(path: Path) -> dict[str, str] | None:
    """Folder -> class name, if `classes.json` in `path` names the class of each folder.

    A file of that name with any other content was not written by this package, and is ignored.
    """
    try:
        names = json.loads((path / CLASSES_FILE).read_bytes())
        folders = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        are_names = folders <= set(names) and len(set(names.values())) == len(names)
        return names if are_names and all(isinstance(name, str) for name in names.values()) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@functools.cache
def _picture_suffixes() -> frozenset[str]:
    import PIL.Image

    return frozenset(suffix for suffix, format_ in PIL.Image.registered_extensions().items() if format_ in PIL.Image.OPEN)


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _picture_suffixes()


def is_special(folder: str) -> bool:
    """Whether a folder such as `__pycache__` or `__MACOSX` is on the path; as in `datasets`, these are not classes."""
    return "/__" in f"/{folder}"


def warn_left_out(dataset: str, names: list[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(f"{dataset}: {names[0]}{more} left out: {why}.", stacklevel=2)


def warn_look_alikes(dataset: str, class_names: list[str]) -> None:
    """Names that differ only by case, blanks or the encoding of an accent are two classes, although rarely meant to be."""
    seen: dict[str, str] = {}
    for name in class_names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other is not name:
            warnings.warn(f"{dataset}: {other!r} and {name!r} look alike, but are two classes.", stacklevel=2)
