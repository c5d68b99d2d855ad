"""Properties that hold for whatever values hypothesis thinks of: what is written down is read back, and names are names."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import make_unet
from diffusers import DDPMScheduler
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import parse_train
from cond_ddpm.commands import _labels
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.settings import alternatives, default_of, typed_fields
from cond_ddpm.data import LabelledImages, make_batch
from cond_ddpm.sampling import _class_folders
from cond_ddpm.training.checkpoint import fault, load_checkpoint, save_checkpoint
from cond_ddpm.training.state import Progress

repeatable = settings(derandomize=True, deadline=None, max_examples=100, database=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # surrogates are no text


def _values(field, type_):
    """Values of a setting, also those that it refuses together with others."""
    low, high, above, below = (field.metadata["bounds"][name] for name in ("at_least", "at_most", "above", "below"))
    of = {
        bool: st.booleans(),
        int: st.integers(-5 if low is None else int(low), 10**9 if high is None else int(high)),
        float: st.floats(low if above is None else above, high if below is None else below, allow_nan=False, width=64),
        str: TEXT,
        type(None): st.none(),
    }
    kinds = [of[one] if one in of else st.sampled_from(getattr(one, "__args__", (None,))) for one in alternatives(type_)]
    return st.one_of(kinds)


FIELDS = {field.name: (field, type_) for field, type_ in typed_fields(TrainConfig) if field.name != "unet"}


@repeatable
@given(st.data())
def test_settings_come_back_from_yaml(data):
    names = data.draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=4))
    values = {name: data.draw(_values(*FIELDS[name]), name) for name in sorted(names)}
    try:
        config = TrainConfig(**values)
    except ValueError as error:  # two settings that do not fit together, or an infinite number
        assert "\n" not in repr(str(error)) and any(name in str(error) for name in values)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")  # as `write_config` writes it
        file.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False), encoding="utf-8")
        assert parse_train(["--config", str(file)]) == config
    assert {name for name in config.changed() if name not in values} == set()
    assert all(
        value == default_of(FIELDS[name][0]) for name, value in dataclasses.asdict(TrainConfig()).items() if name in FIELDS
    )


UNET = make_unet("simple")


@repeatable
@given(st.lists(st.one_of(TEXT, st.integers(0, 4).map(str)), min_size=3, max_size=3, unique=True), st.permutations([0, 1, 2]))
def test_classes_are_found_by_name_and_by_number(names, order):
    """A name is tried before a number, since classes may be called 2, 1 and 0."""
    try:
        pipeline = CondDDPMPipeline(UNET, DDPMScheduler(), json.loads(json.dumps(dict(enumerate(names)))))
    except ValueError as error:
        assert "id2label" in str(error)
        return
    assert pipeline.label_ids([names[label] for label in order]) == order == pipeline.label_ids(order)
    assert _labels(pipeline, [names[label] for label in order]) == order
    for label in order:
        by_number = names.index(str(label)) if str(label) in names else label
        assert _labels(pipeline, [str(label)]) == [by_number] and pipeline.label_ids(np.array([label])) == [label]


@repeatable
@given(st.lists(TEXT, min_size=1, max_size=6, unique=True))
def test_each_class_has_one_folder_inside(names):
    folders = _class_folders(dict(enumerate(names)))
    found = {folder.casefold() for folder in folders.values()}
    assert len(found) == len(names)
    for folder in folders.values():
        assert folder.strip(" .") == folder and 0 < len(folder.encode()) <= 120
        assert not set(folder) & set('/\\:*?"<>|\0') and Path("x", folder).parent == Path("x")


@repeatable
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 4]), st.integers(1, 9), st.integers(1, 9)),
    st.data(),
)
def test_pixels_come_back_from_what_the_network_sees(seed, shape, data):
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    flip = np.array(data.draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0])))
    indices = np.array(data.draw(st.permutations(range(shape[0]))))
    batch = make_batch(LabelledImages(images, np.arange(shape[0]), list(map(str, range(shape[0])))), indices, flip)
    assert batch.images.min() >= -1 and batch.images.max() <= 1 and batch.class_labels.tolist() == indices.tolist()
    pixels = (VaeImageProcessor.denormalize(batch.images) * 255).round().to(torch.uint8).numpy()
    pixels[flip] = pixels[flip][..., ::-1]
    assert np.array_equal(pixels, images[indices])


TENSORS = st.builds(
    lambda dtype, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(1e3).to(dtype),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 9),
)
NUMBERS = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.booleans(), st.none(), TEXT, TENSORS)
STATES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


@settings(repeatable, max_examples=40)
@given(
    st.dictionaries(TEXT.filter(lambda name: name != "__metadata__"), TENSORS, min_size=1, max_size=4),
    st.dictionaries(TEXT, STATES, max_size=3),
    st.integers(0, 10**12),
    st.floats(allow_nan=False),
)
def test_a_checkpoint_comes_back(tensors, state, step, loss):
    progress = Progress(step=step, best_loss=loss if math.isfinite(loss) else math.inf)
    with tempfile.TemporaryDirectory() as run:
        folder = save_checkpoint(Path(run), {"unet": tensors}, {"optimizer": state}, progress, {"seed": step})
        assert fault(folder) is None
        found, states, again, recorded = load_checkpoint(folder)
    assert again == progress and recorded == {"seed": step}
    assert _same(dict(sorted(tensors.items())), dict(sorted(found["unet"].items()))) and _same(state, states["optimizer"])
