"""The real images: those that samples are compared with, and held-out ones whose metrics are reported as the reference.

May import: `data, files, fingerprints, evaluation.extractors, evaluation.statistics`. Next: `metrics.py` compares with them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.torch import load_file, save

from cond_ddpm.data import LabelledImages, NoSuchSplit, data_fingerprint, hold_out, load_images
from cond_ddpm.evaluation.extractors import Extractor
from cond_ddpm.evaluation.statistics import GROUPS, NEIGHBOURS, VERSION, Tally
from cond_ddpm.files import LOCK, write
from cond_ddpm.fingerprints import value_fingerprint

_EVEN = 1.2  # the ratio of the largest class to the smallest one up to which samples are drawn of all classes in turn
_LEAST_OF_CLASS = 10  # samples


@dataclasses.dataclass(frozen=True)
class RealImages:
    """The real images of an evaluation.

    Args:
        train: what samples are compared with.
        held_out: real images that samples are not compared with; their metrics are the reference. The judges are not trained
            on them. Nor is the model, if they are a split of their own.
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


def images_for_usefulness(real: RealImages, training: Any) -> tuple[LabelledImages, LabelledImages, bool]:
    """Real images to train a classifier on, others to test it on, and whether the model may have been trained on the latter.

    Where the data set has no test split, these are the images that the training of the model held out: on images that the
    model was trained on, its copies of them would make it look useful.

    Args:
        real: of the evaluation.
        training: the record `training` of results.json, if it is known.
    """
    if real.train is real.whole:
        return real.train, real.held_out, False
    if isinstance(training, dict) and "config" in training:
        given, count = training["config"].get("num_validation_images"), training.get("num_validation_images", 0)
        if training.get("num_images") == len(real.whole) - count:
            kept, held_out = hold_out(real.whole, given)
            if len(held_out) == count:
                return real.whole.part(kept), real.whole.part(held_out), False
    return real.train, real.held_out, True


def warranted_samples(train: LabelledImages) -> int:
    """How many samples to compare with the real images: as many as these, from 1,000 to 50,000; a multiple of the classes."""
    classes = len(train.class_names)
    return -(-min(max(len(train), 1000), 50_000) // classes) * classes


def labels_of_samples(real: LabelledImages, count: int) -> list[int]:
    """Which classes to draw, so that samples can be compared with these images: in turn, or in proportion if they are uneven.

    If 9 of 10 real images are cats and as many dogs as cats were drawn, the distances of a perfect model would be large. A
    class has at least 9 samples, if there are 10 for each class. Uneven classes are in an order that is random and always the
    same, so that every part of the list has some of each.
    """
    counts = np.bincount(real.labels, minlength=len(real.class_names))
    if counts.max() <= _EVEN * counts.min():
        return [index % len(counts) for index in range(count)]
    shares = np.maximum(counts / counts.sum(), min(_LEAST_OF_CLASS / max(count, 1), 1 / len(counts)))
    ends = np.rint((shares / shares.sum()).cumsum() * count).astype(int)
    labels = np.repeat(np.arange(len(counts)), np.diff(ends, prepend=0))
    return np.random.default_rng(0).permutation(labels).tolist()


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
