"""A data set's name -> a table of its pictures and labels: from a local path, or from the Hub.

May import: `data.cache, data.folders, data.pictures, files, fingerprints`. Next: `columns.py` finds the columns of the table.
"""

import contextlib
import os
import warnings
from pathlib import Path
from unittest import mock

from cond_ddpm.data.cache import cache_folder, no_space, space_needed
from cond_ddpm.data.folders import (
    class_folders,
    files_version,
    is_picture,
    is_special,
    local_files,
    split_folders,
    warn_left_out,
)
from cond_ddpm.data.pictures import root_cause
from cond_ddpm.files import is_full
from cond_ddpm.fingerprints import value_fingerprint

MNIST5K = "mnist5k"
# The owners of names that the Hub redirects. In the cache, a name without an owner would also match any local folder of that
# name that was loaded before.
_OWNERS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}


class NoSuchSplit(ValueError):
    """The data set exists, but has no split of that name."""


def load_table(dataset: str, split: str, config_name: str | None):
    """The split as a `datasets.Dataset`, from a local path or the Hub, and a fingerprint of this version of its pictures."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(os.path.expanduser(dataset))  # Path's own method raises if a ~user does not exist
    try:
        validate_repo_id(dataset)
        looks_local = dataset.startswith((".", "/", "~")) or path.suffix.lower() == ".parquet"
    except HFValidationError:
        looks_local = True
    if path.exists():
        return _load_from_disk(dataset, path.resolve(), split, config_name)
    if looks_local:
        raise FileNotFoundError(
            f"dataset: expected a Hub id, {MNIST5K} or an existing path, got {dataset}, which does not exist."
        )
    table = _load_from_hub(dataset, split, config_name)
    return table, table._fingerprint


def _load_from_disk(dataset: str, path: Path, split: str, config_name: str | None):
    import datasets

    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(f"dataset: expected a folder or a .parquet file, got {dataset}; give the folder that contains it.")
    files, folders = local_files(path)
    visible = {name: found for name, found in files.items() if not is_special(name.rpartition("/")[0])}
    splits = {} if path.is_file() else split_folders(dataset, path, visible, folders)
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
            warnings.warn(f"{dataset}: it has the splits {', '.join(splits)}, of which {split!r} is read.", stacklevel=2)
        special = [name for name in files if name not in visible and is_picture(name)]
        warn_left_out(dataset, special, "folders whose names begin with two underscores are not classes")
        names, labels, class_names = class_folders(dataset, splits[split], visible, folders)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
        rows = {"image": [str(path / name) for name in names], "label": labels}
        version = files_version(path, {name: files[name] for name in names})
        return datasets.Dataset.from_dict(rows, features=features), version
    return _load_by_datasets(dataset, path, split, config_name, files)


def _load_by_datasets(dataset: str, path: Path, split: str, config_name: str | None, files: dict[str, os.stat_result]):
    """Load Parquet files, pictures with metadata, or whatever else `datasets` recognises."""
    import datasets

    if path.is_file() and split != "train" and split not in path.stem.lower():
        raise NoSuchSplit(f"{dataset}: expected the split 'train' of a single file, got {split!r}; give a folder of files.")
    version = files_version(path, files)
    mirror = cache_folder().absolute() / "links" / version
    reader = str(mirror)
    data_files: dict[str, str] | None = None
    if path.is_file():
        links = {mirror / "data.parquet": path}
        reader, data_files = "parquet", {split: str(mirror / "data.parquet")}
    else:
        links = {mirror / name.replace("::", "%3A%3A"): path / name for name in files}
    _link(links)
    try:
        builder = datasets.load_dataset_builder(reader, config_name, data_files=data_files)
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except Exception as error:  # whatever the reader of a file format raises, the data set is at fault
        raise _unreadable(dataset, split, error, (str(mirror), str(path))) from error
    if path.is_dir() and len(builder.builder_configs) < 2:  # each of several configurations may leave files to the others
        names = {str(link): name for link, name in zip(links, files)}
        _warn_unread(dataset, split, table, builder.config.data_files, names)
    return table, value_fingerprint([version, table._fingerprint])


def _link(links: dict[Path, Path]) -> None:
    """Link to files under paths that `datasets` reads literally, and that change when a file changes.

    `datasets` takes some paths for patterns (`set[12]`) or for places in archives (`a::b`), and recognises a file that it has
    read before by its path and mtime. The links are kept, because its cache refers to pictures by their paths.
    """
    with space_needed("links to the data set's files"):
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # made by an earlier run or by another process
                link.symlink_to(target)


def _warn_unread(dataset: str, split: str, table, data_files: dict, names: dict[str, str]) -> None:
    """Warn of files that `datasets` drops silently: those in no split, and pictures that the metadata do not mention."""
    import datasets

    read = {str(file) for of_split in data_files.values() for file in of_split}
    left = [name for file, name in names.items() if file not in read and (is_picture(name) or name.endswith(".parquet"))]
    warn_left_out(dataset, left, f"not among the files of its splits ({', '.join(map(str, data_files))})")
    pictures = [str(file) for file in data_files.get(split, ()) if is_picture(file)]
    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if pictures and columns:
        rows = {row["path"] for name in columns for row in table.data.column(name).to_pylist() if row}
        left = [names.get(file, file) for file in pictures if file not in rows]
        warn_left_out(dataset, left, f"the metadata of the split {split!r} do not mention it")


def _load_from_hub(dataset: str, split: str, config_name: str | None):
    import datasets
    import huggingface_hub

    try:
        # One quick request first: without an internet connection, load_dataset would retry for half a minute.
        name, offline = huggingface_hub.HfApi().dataset_info(dataset, timeout=5).id, False
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise ValueError(
            f"dataset: expected an id on the Hub, got {dataset!r}, which does not exist or is private; check its name, log"
            " in with `hf auth login`, or give a local path."
        ) from None
    except Exception:  # a missing connection raises different errors by platform and library version; then use the cache
        name, offline = _OWNERS.get(dataset, dataset), True
    try:
        with mock.patch.object(datasets.config, "HF_HUB_OFFLINE", offline or datasets.config.HF_HUB_OFFLINE):
            if offline and "/" not in name:
                raise ConnectionError
            return datasets.load_dataset(name, config_name, split=split)
    except ConnectionError:
        raise ConnectionError(
            f"dataset: there is no folder {dataset!r} here; as a Hub id it is not in the cache, and the Hub cannot be reached."
            " Give the path of a local copy (--dataset path/to/folder), use the digits that come with a package"
            f" (--dataset {MNIST5K}), or go online."
        ) from None
    except Exception as error:  # as for local data sets
        raise _unreadable(dataset, split, error) from error


def _unreadable(dataset: str, split: str, error: Exception, replaced: tuple[str, str] = (" ", " ")) -> Exception:
    """The error to raise if `datasets` fails to read a data set; of `replaced`, its words get the second for the first."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and is_full(cause):
        return no_space("the table of the data set", cause)
    words = root_cause(error)
    if "corresponds to no data" in words:
        return ValueError(f"{dataset}: expected pictures in the split {split!r}, got none; add some, or name another split.")
    kind = NoSuchSplit if words.startswith("Unknown split") else ValueError  # at the start: a path may contain these words
    return kind(f"{dataset}: expected a data set with a split {split!r}, got: {words.replace(*replaced)}")
