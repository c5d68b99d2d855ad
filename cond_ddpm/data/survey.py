"""What the pictures of a data set are before they become arrays: sizes, modes, edges, hashes, and which cannot be read.

May import: `data.cache, data.columns, data.folders, data.load, data.pictures, data.source`. Next: `choices.py` chooses by it
how the pictures become arrays, and `report.py` says what was found.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cond_ddpm.data.cache import cache_file, cache_folder, raw_pictures
from cond_ddpm.data.columns import find_columns
from cond_ddpm.data.load import digits_as_they_are, named_labels
from cond_ddpm.data.pictures import converted, edge, location, with_picture
from cond_ddpm.data.source import MNIST5K, load_table

_VERSION = 2  # of what a survey holds: part of the cache's name
_BITS = 10  # of 64, by which the perceptual hashes of similar pictures differ at most
MOST_COMPARED = 100_000  # pictures; of more, similar ones are not searched, because all pairs are compared
_BLOCK = 100  # pictures that are compared with all others at a time: 80 MB for the most that are compared
_PLAIN = 10  # the greatest difference, of 255, of the pixels of a plain edge from their median


@dataclass(frozen=True)
class Survey:
    """What is known of the N pictures of a split.

    Args:
        split: its name.
        labels: (N,) int64.
        class_names: of the labels.
        names: of the pictures, (N,): the file, within the data set if it is there; else the row.
        sizes: (N, 2), width and height, upright; 0 for a picture that cannot be read.
        modes: (N,), as Pillow names them.
        plain: (N,) bool: whether the outermost pixels have one colour, as those of drawings on a background have.
        pixels: (N,) uint64, a hash of size and colours, the same for the same picture in another file format without loss.
        hashes: (N,) uint64, the perceptual hash, of which similar pictures differ in few bits.
        similar: (P, 2), rows of similar pictures, the later one first.
        unreadable: row -> why the picture cannot be read.
    """

    split: str
    labels: np.ndarray
    class_names: list[str]
    names: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    plain: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray
    similar: np.ndarray
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def readable(self) -> np.ndarray:
        """Rows of the pictures that can be read."""
        return np.flatnonzero(self.sizes[:, 0] > 0)


def survey(
    dataset: str,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Survey:
    """Look at each picture of a split, the first time; then read what was found from a cache.

    Raises:
        ValueError, OSError: as `load_images` does, except that unreadable pictures are listed.
    """
    records: Iterator[dict]
    if dataset == MNIST5K:
        digits = digits_as_they_are(split)
        records = ({"array": image[0]} for image in digits.images)
        return _read(split, digits.labels, digits.class_names, records, len(digits), Path(), f"{MNIST5K}-{split}-28")
    table, version = load_table(dataset, split, config_name)
    image_column, label_column = find_columns(table, image_column, label_column)
    labels, class_names = named_labels(dataset, table, label_column)
    records = (row[image_column] for row in raw_pictures(table, image_column))
    folder = Path(os.path.expanduser(dataset)).resolve()
    return _read(split, labels, class_names, records, len(table), folder, f"{version}-{image_column}")


def _read(split: str, labels, class_names: list[str], records, count: int, folder: Path, key: str) -> Survey:
    cache = cache_folder() / f"{key}-survey{_VERSION}.npz"
    if not cache.exists():
        found = _look(records, count, folder)
        with cache_file(cache, "what was found of the pictures") as partial, partial.open("wb") as file:
            np.savez(file, **found)
    with np.load(cache) as arrays:
        found = dict(arrays)
    unreadable = {int(row): why for row, why in json.loads(str(found.pop("unreadable"))).items()}
    return Survey(split, labels, class_names, **found, unreadable=unreadable)


def _look(records, count: int, folder: Path) -> dict[str, Any]:
    import imagehash
    import PIL.Image
    from tqdm import tqdm

    names: list[str] = []
    modes: list[str] = []
    unreadable: dict[int, str] = {}
    sizes = np.zeros((count, 2), np.int64)
    plain, pixels, hashes = np.zeros(count, bool), np.zeros(count, np.uint64), np.zeros(count, np.uint64)

    def look(picture) -> None:
        upright = converted(picture, 3)
        border = edge(upright).astype(np.int64)
        sizes[row], plain[row] = upright.size, (abs(border - np.median(border, axis=0)) <= _PLAIN).all(axis=1).mean() > 0.98
        content = f"{upright.size}".encode() + upright.tobytes()
        pixels[row] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
        hashes[row] = int(str(imagehash.phash(upright)), 16)
        modes[-1] = picture.mode

    bar = tqdm(records, total=count, unit="picture", desc="looking", file=sys.stderr, leave=False, delay=2)
    for row, record in enumerate(bar):
        names.append(_name(record, row, folder))
        modes.append("")
        try:
            if record is not None and "array" in record:
                look(PIL.Image.fromarray(record["array"]))
            else:
                with_picture(record, row, look)
        except ValueError as error:
            unreadable[row] = str(error.__cause__ or error)
            sizes[row] = 0
    readable = np.flatnonzero(sizes[:, 0])
    return {
        "names": np.array(names, str),
        "sizes": sizes,
        "modes": np.array(modes, str),
        "plain": plain,
        "pixels": pixels,
        "hashes": hashes,
        "similar": similar_pairs(hashes, hashes, readable, readable, within=True),
        "unreadable": np.array(json.dumps(unreadable)),
    }


def similar_pairs(
    hashes: np.ndarray, others: np.ndarray, rows: np.ndarray, other_rows: np.ndarray, within: bool = False
) -> np.ndarray:
    """Pairs (P, 2) of `rows` and `other_rows` with similar hashes; `within` one split, each pair once, the later row first.

    There are none if either has more rows than MOST_COMPARED.
    """
    found = [np.zeros((0, 2), np.int64)]
    if max(len(rows), len(other_rows)) <= MOST_COMPARED:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            compared = other_rows[: start + _BLOCK] if within else other_rows
            differ = np.bitwise_count(hashes[block, None] ^ others[None, compared])
            left, right = np.nonzero(differ <= _BITS)
            pairs = np.stack([block[left], compared[right]], axis=1)
            found.append(pairs[pairs[:, 0] > pairs[:, 1]] if within else pairs)
    return np.concatenate(found)


def _name(record: dict | None, row: int, folder: Path) -> str:
    where = Path(location(record)[2:-1]) if location(record) else None
    if where is None or not where.is_absolute():
        return f"row {row}" if where is None else f"row {row} ({where})"
    return str(where.relative_to(folder)) if where.is_relative_to(folder) else str(where)
