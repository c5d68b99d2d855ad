"""What was found in a data set and chosen for it, in words for the user and as facts for results.json.

May import: the other files of `data/`, and `config, text`. Next: `visualize/` draws the images; training begins with the
report and records its facts.
"""

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from cond_ddpm.config.data import PreparationConfig
from cond_ddpm.data.choices import choose_fit, choose_flip, choose_resolution
from cond_ddpm.data.duplicates import exact_duplicates, near_duplicates, near_duplicates_across
from cond_ddpm.data.images import LabelledImages, hold_out
from cond_ddpm.data.load import load_images
from cond_ddpm.data.pictures import GREY, GREY_MODES
from cond_ddpm.data.source import NoSuchSplit
from cond_ddpm.data.survey import MOST_COMPARED, Survey, survey
from cond_ddpm.text import shown

C = TypeVar("C", bound=PreparationConfig)
_FEW = 20  # images of a class, below which a model mostly remembers them
_UNEVEN = 3.0  # largest class / smallest class, from which balanced sampling is mentioned
_LONG = 2.0  # ratio of the sides from which a picture is named
_SHOWN = 3  # files that a warning names; `Report.whole` names all, unless they are most of a large data set
_MOST_NAMED = 10_000


@dataclass(frozen=True)
class Prepared(Generic[C]):
    """A data set that has been looked at.

    Args:
        config: the settings with what was chosen.
        reasons: setting -> why it has this value.
        survey: what the pictures are.
        images: what they become.
        lost: warnings of the data set as a whole, in sentences: what is lost or left out.
    """

    config: C
    reasons: dict[str, str]
    survey: Survey
    images: LabelledImages
    lost: list[str] = field(default_factory=list)

    @property
    def fit(self) -> str:
        return self.config.fit or "crop"

    @property
    def random_flip(self) -> bool:
        return self.images.flippable if self.config.random_flip is None else self.config.random_flip


@dataclass
class Report:
    """What was found and chosen, as text.

    Args:
        lines: subject -> text.
        warnings: sentences, which name the files.
        facts: the same without names of files, which may be published.
        named: the beginning of a warning that names the first three of its files -> all of them.
    """

    lines: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{subject + ':':12} {shown(text)}" for subject, text in self.lines.items()]
        return "\n".join([*lines, *(f"warning: {shown(warning)}" for warning in self.warnings)])

    @property
    def whole(self) -> str:
        """The text, and after an empty line every file of a warning that names three."""
        lists = ["\n".join([f"{shown(text)}:", *(f"  {shown(name)}" for name in names)]) for text, names in self.named.items()]
        return "\n\n".join([str(self), *lists])

    def warn(self, text: str, files: Sequence[str], end: str = "") -> None:
        """Add a warning that names files."""
        self.warnings.append(f"{text}: {_listed(files)}{end}.")
        if _SHOWN < len(files) <= _MOST_NAMED:
            self.named[text] = list(files)


def look(dataset: str, split: str, config: PreparationConfig) -> Survey:
    """The survey of a split, with the columns that the settings name."""
    return survey(dataset, split, config.dataset_config_name, config.image_column, config.label_column)


def prepare(dataset: str, split: str, config: C, chooses: bool = True) -> Prepared[C]:
    """Choose what the settings leave open, and load the images.

    Args:
        dataset, split, config: what is loaded, and how.
        chooses: False leaves what is open as older versions did: pictures are cropped, and unless the classes are digits or
            letters, mirrored.

    Raises:
        ValueError: pictures that cannot be read; all of them are named, up to twenty.
        ValueError, OSError: as `load_images` does.
    """
    reasons: dict[str, str] = {}
    lost: list[str] = []
    noted = lambda: _noted(dataset, lost) if chooses else contextlib.nullcontext()  # noqa: E731
    with noted():
        found = look(dataset, split, config)
    if found.unreadable:
        broken = [f"\n  {shown(str(found.names[row]))}: {shown(why)}" for row, why in list(found.unreadable.items())[:20]]
        more = f"\n  and {len(found.unreadable) - 20} more" if len(found.unreadable) > 20 else ""
        raise ValueError(
            f"{dataset}: expected pictures, got {len(found.unreadable)} of {len(found)} that cannot be read; repair or remove"
            f" them:{''.join(broken)}{more}"
        )
    fit, resolution, flip = config.fit, config.resolution, config.random_flip
    if fit is None and chooses:
        fit, reasons["fit"] = choose_fit(found)
    if resolution is None:
        resolution, reasons["resolution"] = choose_resolution(found, fit or "crop")
    channels = config.channels
    if channels is None and chooses and found.modes[0] in GREY and set(found.modes) - set(GREY_MODES):
        channels, reasons["channels"] = 3, "colour, though the first picture is grey (--channels 1 or 3)"
    columns = (config.dataset_config_name, config.image_column, config.label_column)
    with noted():
        images = load_images(dataset, split, resolution, channels, *columns, fit=fit)
    if flip is None and chooses:
        flip, reasons["random_flip"] = choose_flip(images)
    chosen = replace(config, fit=fit, resolution=resolution, random_flip=flip, channels=channels)
    return Prepared(chosen, reasons, found, images, lost)


@contextlib.contextmanager
def _noted(dataset: str, lost: list[str]) -> Iterator[None]:
    """Within, warnings of the data set as a whole are added to `lost`, each once; all others stay warnings."""
    prefix = f"{dataset}: "
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=re.escape(prefix))
        yield
    for one in caught:
        text = str(one.message)
        if not text.startswith(prefix):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif (text := text.removeprefix(prefix)) not in lost:
            lost.append(text)


def report(dataset: str, prepared: Prepared) -> Report:
    """What was found in the training split, and what was chosen for it."""
    found, images, config, written = prepared.survey, prepared.images, prepared.config, Report()
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    _, held_out = hold_out(images, config.num_validation_images)
    of_class = np.bincount(found.labels[held_out], minlength=len(counts))
    smallest, largest = (int(found.sizes.prod(1).argmin()), int(found.sizes.prod(1).argmax()))
    width, height = np.median(found.sizes, axis=0).astype(int).tolist()
    modes = Counter(found.modes.tolist()).most_common()
    each = f"{of_class.min()} to {of_class.max()}" if of_class.min() < of_class.max() else str(of_class.min())
    reason = lambda name: prepared.reasons.get(name, "as the settings say")  # noqa: E731
    flip = "half of the images" if prepared.random_flip else "no"
    colour = f"; {prepared.reasons['channels']}" if "channels" in prepared.reasons else ""
    written.lines = {
        "data": f"{dataset}, split {found.split}: {len(found):,} pictures of {len(counts)} classes",
        "classes": _listed([f"{name} {count:,}" for name, count in zip(found.class_names, counts)], 20),
        "sizes": f"{_size(found, smallest)} ({found.names[smallest]}) to {_size(found, largest)} ({found.names[largest]}),"
        f" median {width}x{height}; " + _listed([f"{mode} {count:,}" for mode, count in modes], 5),
        "network": f"{ {1: 'grey', 3: 'RGB'}[images.images.shape[1]] } {images.images.shape[-1]}x{images.images.shape[-1]}:"
        f" {reason('resolution')} (--resolution){colour}",
        "fit": f"{prepared.fit}: {reason('fit')} (--fit crop, pad or stretch)",
        "mirrored": f"{flip}: {reason('random_flip')} (--random_flip true or false)",
        "held out": f"{len(held_out):,} images for the validation loss, {each} of each class (--num_validation_images)",
    }
    written.facts = {
        "num_pictures": len(found),
        "classes": dict(zip(found.class_names, counts.tolist())),
        "median_size": [width, height],
        "modes": dict(modes),
        "fit": prepared.fit,
    }
    written.warnings += prepared.lost
    colours = np.flatnonzero(~np.isin(found.modes, GREY_MODES))
    if images.images.shape[1] == 1 and (config.channels is None or "channels" in prepared.reasons) and len(colours):
        named = found.names[colours].tolist()
        written.warn(f"{_number(len(named), 'picture')} in colour {'becomes' if len(named) == 1 else 'become'} grey", named)
    _warn_of_classes(written, found, counts)
    _warn_of_sizes(written, found, images.images.shape[-1], prepared.fit)
    _warn_of_duplicates(written, found, images)
    return written


def compare(written: Report, dataset: str, prepared: Prepared, split: str | None) -> None:
    """Add to the report which pictures of another split, "test" if none is given, are in the training split too.

    Raises:
        ValueError: no such split, if one is given; other classes.
    """
    config, found = prepared.config, prepared.survey
    try:
        other = look(dataset, split or "test", config)
    except NoSuchSplit:
        if split is not None:
            raise
        written.lines["test split"] = "there is none"
        return
    if other.class_names != found.class_names:
        raise ValueError(
            f"test_split: expected the classes {', '.join(found.class_names)}, got {', '.join(other.class_names)} in"
            f" {other.split}."
        )
    columns = (config.dataset_config_name, config.image_column, config.label_column)
    channels = prepared.images.images.shape[1]
    size = prepared.images.images.shape[-1]
    images = load_images(dataset, other.split, size, channels, *columns, fit=prepared.fit)
    exact = exact_duplicates(other, found)
    near = near_duplicates_across(other, images.images, found, prepared.images.images)
    written.lines["test split"] = (
        f"{other.split}: {len(other):,} pictures, of which {len(exact):,} are also in {found.split}, and {len(near):,} nearly"
    )
    for pairs, how in ((exact, "the same as"), (near, "nearly the same as")):
        if pairs:
            text = f"{_number(len(pairs), 'picture')} of {other.split} {_are(pairs)} {how} one of {found.split}"
            written.warn(text, _pairs(pairs, other, found), f"; a measurement by {other.split} takes them for new")


def _warn_of_classes(written: Report, found: Survey, counts: np.ndarray) -> None:
    empty = [name for name, count in zip(found.class_names, counts) if count == 0]
    few = [f"{name} ({count})" for name, count in zip(found.class_names, counts) if 0 < count < _FEW]
    if empty:
        written.warnings.append(f"no picture of {_listed(empty)}: the model will draw noise for them.")
    if few:
        written.warnings.append(
            f"fewer than {_FEW} pictures of {_listed(few)}: samples will mostly be copies of them; add pictures."
        )
    if len(counts) > 1 and counts.min() and counts.max() > _UNEVEN * counts.min():
        most, least = (found.class_names[int(row)] for row in (counts.argmax(), counts.argmin()))
        written.warnings.append(
            f"{most!r} has {counts.max() / counts.min():.0f} times as many pictures as {least!r}, and is trained on as much"
            " more; --class_sampling balanced trains on each class equally, and repeats the pictures of small ones more."
        )


def _warn_of_sizes(written: Report, found: Survey, resolution: int, fit: str) -> None:
    shorter, longer = found.sizes.min(1), found.sizes.max(1)
    small = np.flatnonzero((longer if fit == "pad" else shorter) < resolution * 0.75)
    if len(small):
        named = [f"{found.names[row]} ({_size(found, row)})" for row in small[np.argsort(shorter[small])]]
        number = f"{_number(len(small), 'picture')} {_are(small)}"
        written.warn(f"{number} enlarged to {resolution} pixels and blurred by that", named)
    long = np.flatnonzero(longer >= _LONG * shorter)
    if len(long) and fit != "pad":
        worst = long[np.argsort(-(longer / shorter)[long])]
        named = [f"{found.names[row]} ({_size(found, row)})" for row in worst]
        what = "half or more is lost" if fit == "crop" else "the proportions change twofold or more"
        text = f"of {_number(len(long), 'picture')}, {what} as they become square"
        written.warn(text, named, "; --fit pad keeps them as they are")


def _warn_of_duplicates(written: Report, found: Survey, images: LabelledImages) -> None:
    exact, near = exact_duplicates(found), near_duplicates(found, images.images)
    other_class = [(row, before) for row, before in (*exact, *near) if found.labels[row] != found.labels[before]]
    written.lines["duplicates"] = (
        f"{len(exact):,} exact, {len(near):,} near, {len(other_class):,} of them in different classes"
    )
    if len(found) > MOST_COMPARED:
        written.lines["duplicates"] += f" (near ones are searched in at most {MOST_COMPARED:,} pictures)"
    written.facts |= {"duplicates": len(exact), "near_duplicates": len(near), "duplicates_in_other_classes": len(other_class)}
    for pairs, how in ((exact, "the same as"), (near, "nearly the same as")):
        if pairs:
            what = f"{_number(len(pairs), 'picture')} {_are(pairs)} {how} another"
            written.warn(what, _pairs(pairs, found, found), "; the model will copy these sooner")
    if other_class:
        text = f"of these doubles, {len(other_class):,} {_are(other_class)} in another class"
        written.warn(text, _pairs(other_class, found, found))


def _pairs(pairs: Sequence[tuple[int, int]], one: Survey, other: Survey) -> list[str]:
    return [f"{one.names[row]} = {other.names[before]}" for row, before in pairs]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _are(things: Sequence[Any] | np.ndarray) -> str:
    return "is" if len(things) == 1 else "are"


def _size(found: Survey, row: int) -> str:
    return "x".join(map(str, found.sizes[row]))


def _listed(names: Sequence[str], most: int = _SHOWN) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
