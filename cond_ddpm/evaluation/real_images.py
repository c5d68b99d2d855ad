"""The real images: those that samples are compared with, and held-out ones whose metrics are reported as the reference.

May import: `data, files, fingerprints, evaluation.extractors, evaluation.statistics`. Next: `metrics.py` compares with them.
"""

import dataclasses
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors.torch import load_file, save

from cond_ddpm.data import LabelledImages, NoSuchSplit, data_fingerprint, load_images
from cond_ddpm.evaluation.extractors import Extractor
from cond_ddpm.evaluation.statistics import GROUPS, NEIGHBOURS, VERSION, Tally
from cond_ddpm.files import LOCK, write
from cond_ddpm.fingerprints import value_fingerprint


@dataclasses.dataclass(frozen=True)
class RealImages:
    """The real images of an evaluation.

    Args:
        train: what samples are compared with.
        held_out: what the model was not trained on; the metrics of these images are the reference.
        whole: the whole split, which are searched for copies.
        held_out_name: how the record names the held-out images.
    """

    train: LabelledImages
    held_out: LabelledImages
    whole: LabelledImages
    held_out_name: str

    @property
    def held_out_is_train(self) -> bool:
        """Whether nothing is held out, since the images are the same; in which case their metrics are not a reference."""
        return data_fingerprint(self.held_out) == data_fingerprint(self.train)


def load_real_images(
    dataset: str,
    split: str,
    test_split: str | None,
    resolution: int,
    channels: int | None,
    columns: tuple[str | None, str | None, str | None],
    fit: str | None = None,
) -> RealImages:
    """Load the split and the held-out images: `test_split`, or else "test", or else a tenth of the split.

    Args:
        dataset, split, resolution, channels: as for `load_images`.
        test_split: name of the held-out split.
        columns, fit: config name, image column and label column; and how pictures become square, as for `load_images`.

    Raises:
        ValueError: `test_split` does not exist or has other classes; what `load_images` raises.
    """
    whole = train = load_images(dataset, split, resolution, channels, *columns, fit)
    name = test_split or "test"
    try:
        held_out = load_images(dataset, name, resolution, channels, *columns, fit)
    except NoSuchSplit:
        if test_split is not None:
            raise
        order = np.random.default_rng(0).permutation(len(whole))
        parts = (np.sort(order[len(whole) // 10 :]), np.sort(order[: len(whole) // 10]))
        train, held_out = map(whole.part, parts)
        name = f"a tenth of {split}, which samples are not compared with"
    if held_out.class_names != train.class_names:
        raise ValueError(
            f"test_split: expected the classes {', '.join(train.class_names)}, got {', '.join(held_out.class_names)}."
        )
    return RealImages(train, held_out, whole, name)


def warranted_samples(train: LabelledImages) -> int:
    """How many samples to compare with the real images: as many as these, from 1,000 to 50,000, equally many of each class."""
    classes = len(train.class_names)
    return -(-min(max(len(train), 1000), 50_000) // classes) * classes


def real_tally(data: LabelledImages, count: int, extractor: Extractor, subset: int, cache: Path) -> Tally:
    """Statistics of at most `count` real images, chosen at random; cached for these images and this extractor."""
    tally = Tally(extractor, len(data.class_names), subset, data.images.shape[1:])
    count = min(count, len(data))
    # The accuracies on the held-out images are left out: the features and the judges do not depend on them.
    record = {name: value for name, value in extractor.record.items() if name not in ("held_out_accuracy", "judges")}
    record["judges"] = [judge["checksum"] for judge in extractor.record.get("judges", {}).values()]
    key = value_fingerprint([VERSION, data_fingerprint(data), count, record, subset, GROUPS, NEIGHBOURS])
    file = cache / f"real-{key}.safetensors"
    if file.is_file():
        return tally.load(load_file(file))
    order = np.random.default_rng(0).permutation(len(data))[:count]  # data sets may be sorted by class
    for start in range(0, count, 500):
        indices = order[start : start + 500]
        tally.update(range(start, start + len(indices)), data.images[indices], data.labels[indices])
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / LOCK):  # other evaluations may write the same file
        write(file, save({name: tensor.contiguous() for name, tensor in tally.tensors().items()}))
    return tally
