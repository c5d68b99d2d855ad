"""Data sets of every form become the same arrays: pictures, splits, columns, caches, what is held out and what is reported."""

import io
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CIFAR10, NAMES, ROOT, needs_cifar10, shapes, write_parquet
from datasets import ClassLabel, Dataset, Features, Image, Value
from diffusers.image_processor import VaeImageProcessor
from PIL import Image as PILImage

from cond_ddpm.cli import parse_train
from cond_ddpm.data import LabelledImages, NoSuchSplit, data_fingerprint, epoch_order, hold_out, load_images, make_batch
from cond_ddpm.data.survey import survey
from cond_ddpm.evaluation.external_samples import load_samples
from cond_ddpm.fingerprints import value_fingerprint


def _png(array, mode=None, **save):
    file = io.BytesIO()
    PILImage.fromarray(array, mode).save(file, "PNG", **save)
    return file.getvalue()


def _parquet(folder, images, labels=None, features=None):
    """Pictures given as bytes, with int labels unless `features` says otherwise."""
    features = features or Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [{"bytes": image, "path": None} for image in images]}
    if labels is not None:
        rows["label"] = labels
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def _one(folder, picture, **arguments):
    return load_images(_parquet(folder, [picture], [0]), **arguments).images[0]


def test_parquet_folder_file_and_imagefolder_hold_the_same(tmp_path):
    images, labels = shapes(6)
    write_parquet(tmp_path, images, labels)
    for row, (image, label) in enumerate(zip(images, labels)):
        folder = tmp_path / "tree" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(image).save(folder / f"{row}.png")
    (tmp_path / "only").mkdir()
    write_parquet(tmp_path / "only", images, labels)
    for source in (tmp_path / "only", tmp_path / "only" / "train.parquet"):
        data = load_images(str(source), resolution=8)
        assert np.array_equal(data.images, images.transpose(0, 3, 1, 2)) and data.images.dtype == np.uint8
        assert np.array_equal(data.labels, labels) and data.class_names == NAMES
    data = load_images(str(tmp_path / "tree"), resolution=8)
    assert data.class_names == sorted(NAMES)
    found = {(data.class_names[label], image.tobytes()) for label, image in zip(data.labels, data.images)}
    assert found == {(NAMES[label], image.transpose(2, 0, 1).tobytes()) for label, image in zip(labels, images)}


@pytest.mark.end_to_end
def test_mnist5k():
    train, test = load_images("mnist5k"), load_images("mnist5k", "test")
    assert train.images.shape == (4000, 1, 32, 32) and test.images.shape == (1000, 1, 32, 32)
    assert np.bincount(train.labels).tolist() == [400] * 10 and np.bincount(test.labels).tolist() == [100] * 10
    assert not train.images[:, :, [0, 1, 30, 31]].any() and not train.images[..., [0, 1, 30, 31]].any()  # padded by 2
    assert train.images.max() == 255 and train.class_names == list("0123456789") and not train.flippable
    assert load_images("mnist5k", resolution=16, channels=3).images.shape == (4000, 3, 16, 16)
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        load_images("mnist5k", "valid")


@needs_cifar10
@pytest.mark.end_to_end
def test_cifar10():
    data = load_images(str(CIFAR10), "test")
    assert data.images.shape == (10_000, 3, 32, 32) and np.bincount(data.labels).tolist() == [1000] * 10
    assert data.class_names[7] == "horse" and data.flippable


def test_second_call_reads_the_cache(shapes_parquet, monkeypatch):
    first = load_images(str(shapes_parquet), resolution=8)
    monkeypatch.setattr("cond_ddpm.data.cache.to_array", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(load_images(str(shapes_parquet), resolution=8).images, first.images)
    with pytest.raises(pytest.fail.Exception):
        load_images(str(shapes_parquet), resolution=4)  # another size is another file


@pytest.mark.parametrize("image, label", [("img", "label"), ("image", "labels"), ("picture", "kind"), ("image", "fine_label")])
def test_columns_are_found_by_type(tmp_path, image, label):
    features = Features({label: ClassLabel(names=NAMES), "coarse": Value("string"), image: Image()})
    row = {label: 2, "coarse": "x", image: {"bytes": _png(np.zeros((8, 8, 3), np.uint8)), "path": None}}
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "train.parquet")
    assert load_images(str(tmp_path)).labels.tolist() == [2]


def test_the_usual_name_decides_between_two_label_columns(tmp_path):
    """CIFAR-100 has both; a given column wins."""
    picture = {"bytes": _png(np.zeros((8, 8, 3), np.uint8)), "path": None}
    names = {"coarse_label": ClassLabel(names=["a1", "b1"]), "fine_label": ClassLabel(names=NAMES)}
    features = Features({"image": Image(), **names})
    Dataset.from_list([{"image": picture, "coarse_label": 1, "fine_label": 2}], features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    assert load_images(str(tmp_path)).class_names == NAMES
    assert load_images(str(tmp_path), label_column="coarse_label").class_names == ["a1", "b1"]


def test_string_and_unnamed_labels(tmp_path):
    pictures = [_png(np.zeros((8, 8, 3), np.uint8))] * 3
    features = Features({"image": Image(), "label": Value("string")})
    data = load_images(_parquet(tmp_path, pictures, ["dog", "cat", "dog"], features))
    assert data.labels.tolist() == [1, 0, 1] and data.class_names == ["cat", "dog"]
    (tmp_path / "numbers").mkdir()
    data = load_images(_parquet(tmp_path / "numbers", pictures, [0, 2, 1]))
    assert data.labels.tolist() == [0, 2, 1] and data.class_names == ["0", "1", "2"]
    (tmp_path / "gaps").mkdir()
    data = load_images(_parquet(tmp_path / "gaps", pictures, [7, 1_000_000, 7]))  # a number that does not occur is not a class
    assert data.labels.tolist() == [0, 1, 0] and data.class_names == ["7", "1000000"]
    (tmp_path / "decimal").mkdir()
    features = Features({"image": Image(), "label": Value("large_string")})
    assert load_images(_parquet(tmp_path / "decimal", pictures, ["10", "9", "10"], features)).class_names == ["9", "10"]


@pytest.mark.parametrize("names", [["bus", "train_diesel", "train_steam"], ["bus", "car", "train"], ["flask", "test_tube"]])
def test_folders_of_classes_whose_names_sound_like_splits(tmp_path, names):
    """load_dataset by itself would take some of them for splits, and drop the others silently."""
    for name in names:
        (tmp_path / name).mkdir()
        PILImage.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    assert load_images(str(tmp_path), resolution=8).class_names == names
    with pytest.raises(ValueError, match="expected one of its splits train, got 'test'"):
        load_images(str(tmp_path), "test")


def test_folders_of_splits_and_of_classes_in_them(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("a_train", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for row in range(count):
                PILImage.new("RGB", (8, 8)).save(tmp_path / split / name / f"{row}.png")
    for split, count in (("train", 6), ("test", 2)):
        with pytest.warns(UserWarning, match=f"it has the splits test, train, of which '{split}' is read"):
            data = load_images(str(tmp_path), split, resolution=8)
        assert (len(data), data.class_names) == (count, ["a_train", "b"])


def test_imagefolder_with_metadata(tmp_path):
    for row in range(2):
        PILImage.new("RGB", (8, 8)).save(tmp_path / f"{row}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,dog\n1.png,cat\n")
    assert load_images(str(tmp_path), resolution=8).class_names == ["cat", "dog"]


def test_a_mixture_of_modes_and_sizes_becomes_one_array(tmp_path):
    pictures = [
        _png(np.full((8, 8), 100, np.uint8)),
        _png(np.full((8, 8, 3), 100, np.uint8)),
        _png(np.full((20, 40, 3), 100, np.uint8)),
        _png(np.full((4, 5, 3), 100, np.uint8)),
        _png(np.full((8, 8), 25700, np.uint16)),
    ]
    for channels in (1, 3):
        data = load_images(_parquet(tmp_path, pictures, [0] * 5), resolution=8, channels=channels)
        assert data.images.shape == (5, channels, 8, 8) and (data.images == 100).all()


def test_the_rule_of_conversion(tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)  # black, but all transparent
    with pytest.warns(UserWarning, match="1 of 1 pictures, .* are partly transparent; the transparent parts become white"):
        assert (_one(tmp_path, _png(clear), resolution=8) == 255).all()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the centre
    assert (_one(tmp_path, _png(wide), resolution=8) == 200).all()
    grey = _png(np.zeros((8, 8), np.uint8))
    assert _one(tmp_path, grey, resolution=8).shape[0] == 1  # channels follow the first picture
    exif = PILImage.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    top = np.zeros((8, 8, 3), np.uint8)
    top[:4] = 255
    assert _one(tmp_path, _png(top, exif=exif), resolution=8)[:, 4:].all()


def test_all_256_values_there_and_back():
    """Normalising (here) and denormalising (in the pipeline) are one pair, diffusers' own."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    batch = make_batch(LabelledImages(values, np.array([0]), ["a"]), np.array([0]))
    assert batch.images.dtype == torch.float32 and batch.images.min() == -1 and batch.images.max() == 1
    back = VaeImageProcessor(vae_scale_factor=1).postprocess(batch.images, output_type="pil")[0]
    assert np.array_equal(np.asarray(back), values[0, 0])


def test_flips_mirror_the_chosen_images_only():
    images, labels = shapes(4)
    images[..., :2, :] = 7
    data = LabelledImages(images.transpose(0, 3, 1, 2), labels, NAMES)
    before = data.images.copy()
    plain = make_batch(data, np.array([3, 1])).images
    flipped = make_batch(data, np.array([3, 1]), np.array([True, False])).images
    assert torch.equal(flipped[0], plain[0].flip(-1)) and torch.equal(flipped[1], plain[1])
    assert not torch.equal(flipped[0], plain[0]) and np.array_equal(data.images, before)


@pytest.mark.parametrize(
    "names, flippable", [(["cat", "dog"], True), (["0", "1"], False), (["10", "11"], False), (["A"], False)]
)
def test_digits_and_letters_are_not_mirrored(names, flippable):
    assert LabelledImages(np.zeros((0, 1, 2, 2)), np.zeros(0), names).flippable == flippable


def test_order_is_a_function_of_seed_and_epoch():
    indices = np.arange(10, 30)
    order = epoch_order(indices, seed=1, epoch=2)
    assert sorted(order) == indices.tolist() and order.tolist() != indices.tolist()
    assert np.array_equal(order, epoch_order(indices, 1, 2))
    assert not np.array_equal(order, epoch_order(indices, 1, 3)) and not np.array_equal(order, epoch_order(indices, 2, 2))


def test_the_fingerprint_tells_pixels_labels_and_names_apart_but_not_places(tmp_path, shapes_parquet):
    data = load_images(str(shapes_parquet), resolution=8)
    shutil.copytree(shapes_parquet, tmp_path / "elsewhere")
    assert data_fingerprint(load_images(str(tmp_path / "elsewhere"), resolution=8)) == data_fingerprint(data)
    pixels, labels = data.images.copy(), data.labels.copy()
    pixels[-1, -1, -1, -1] ^= 1
    labels[[0, 1]] = labels[[1, 0]]
    changed = [(pixels, data.labels, NAMES), (data.images, labels, NAMES), (data.images, data.labels, ["a", "b", "c"])]
    assert len({data_fingerprint(data), *(data_fingerprint(LabelledImages(*parts)) for parts in changed)}) == 4
    fixed = LabelledImages(np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4), np.array([1]), ["a", "b"])
    assert data_fingerprint(fixed) == "f2bf22b0cd1ea17c"  # caches and published results are keyed by it


def test_held_out_images_are_apart_and_always_the_same():
    data = LabelledImages(np.zeros((50, 1, 2, 2), np.uint8), np.zeros(50, np.int64), ["a"])
    train, val = hold_out(data, 10)
    assert len(val) == 10 and sorted([*train, *val]) == list(range(50))
    assert np.array_equal(val, hold_out(data, 10)[1])
    with pytest.raises(ValueError, match="at most half of the 50 training images, got 26"):
        hold_out(data, 26)


def _labelled(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return LabelledImages(np.zeros((len(labels), 1, 2, 2), np.uint8), labels, [f"class {n}" for n in range(len(counts))])


@pytest.mark.parametrize(
    "counts, shares",
    [
        ([60, 60], [3, 3]),  # at least a few of each class
        ([200, 40, 20], [10, 3, 3]),
        ([12, 8, 5, 3, 0], [3, 2, 1, 0, 0]),  # at most a quarter of a class
        ([5000] * 10, [100] * 10),  # at most 1,000 in all
        ([30000, 10000, 100], [748, 249, 3]),  # in proportion to 1500, 500 and 5
    ],
)
def test_a_share_of_each_class_is_held_out(counts, shares):
    data = _labelled(counts)
    train, val = hold_out(data)
    assert np.bincount(data.labels[val], minlength=len(counts)).tolist() == shares
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(data)))
    assert np.array_equal(val, hold_out(data)[1])


def test_nothing_can_be_held_out_of_classes_of_three():
    with pytest.raises(ValueError, match=r"expected a class of 4 images or more, .* got at most 3 in a class"):
        hold_out(_labelled([3, 2]))


def test_a_number_of_held_out_images_is_drawn_as_it_always_was():
    """Runs that were recorded with `num_validation_images` hold out the same images when they resume."""
    held_out = hold_out(_labelled([5000] * 10), 1000)[1].tolist()
    assert held_out[:3] == [66, 72, 157] and value_fingerprint(held_out) == "65b48bf2d442a082"


@pytest.mark.parametrize("name", ["simple_cifar10", "attention_cifar10", "hybrid_cifar10", "hybrid_cifar10_cpu"])
def test_the_presets_of_cifar10_hold_out_the_thousand_images_that_they_always_did(name):
    config = parse_train(["--config", name])
    assert (config.num_validation_images, config.resolution) == (1000, 32)


GOOD = _png(np.zeros((8, 8, 3), np.uint8))
FLOAT = io.BytesIO()
PILImage.fromarray(np.full((8, 8), 0.5, np.float32)).save(FLOAT, "TIFF")
FLOAT = FLOAT.getvalue()
NOISE = _png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    "pictures, labels, words",
    [
        ([GOOD, b"not a picture", GOOD], [0, 0, 0], "row 1: expected a picture"),
        ([GOOD, NOISE[: len(NOISE) // 2]], [0, 0], "row 1: expected a picture"),
        ([GOOD, GOOD], [0, -1], "label: expected whole numbers from 0, or class names, got -1 in row 1"),
        ([GOOD, FLOAT], [0, 0], "row 1: expected a picture, .*floating-point"),
        ([GOOD, GOOD], [1, None], "label: expected a label in each row, got none in row 1"),
        ([GOOD], None, "label_column: expected a column of labels, got the columns image"),
        ([], [], "expected pictures in the split 'train', got none; add some, or name another split"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, pictures, labels, words):
    features = None if labels is not None else Features({"image": Image()})
    with pytest.raises(ValueError, match=words):
        load_images(_parquet(tmp_path, pictures, labels, features), resolution=8)


def test_a_label_outside_its_names(tmp_path):
    """`datasets` refuses to write one, but not to read one."""
    import pyarrow.parquet

    write_parquet(tmp_path, *shapes(3))
    table = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    table = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), pyarrow.array([0, 1, 3]))
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"label: expected labels from 0 to 2 \(circle, square, cross\), got 3 in row 2"):
        load_images(str(tmp_path), resolution=8)


def test_paths_splits_and_columns_that_are_not_there(shapes_parquet):
    with pytest.raises(FileNotFoundError, match=r"got ./nowhere, which does not exist"):
        load_images("./nowhere")
    with pytest.raises(ValueError, match="split 'valid'"):
        load_images(str(shapes_parquet), "valid")
    with pytest.raises(ValueError, match=r"image_column: expected 'photo', got the columns img .Image., label .ClassLabel."):
        load_images(str(shapes_parquet), image_column="photo")


@pytest.mark.parametrize("name", ["my photos/typo", "a/b/c", "~/nothing", "~nobody_here/set", "nothing.parquet"])
def test_what_can_be_no_id_is_a_path(name):
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        load_images(name)


def test_single_files_and_needless_columns(tmp_path, shapes_parquet):
    (tmp_path / "x.png").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"expected a folder or a \.parquet file"):
        load_images(str(tmp_path / "x.png"))
    with pytest.raises(ValueError, match="image_column: expected 'label'"):
        load_images(str(shapes_parquet), image_column="label")
    with pytest.raises(ValueError, match="mnist5k: expected no config name or columns"):
        load_images("mnist5k", label_column="label")


@pytest.mark.end_to_end
def test_without_the_network_the_error_is_quick_and_names_three_ways(tmp_path):
    """An endpoint on loopback that refuses connections stands in for a missing one; pauses before retries are added up."""
    script = """
import time
pauses = []
time.sleep = pauses.append
from cond_ddpm.data import load_images
try:
    load_images("cifar10")
finally:
    print(sum(pauses))
"""
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert float(done.stdout) < 10
    last = done.stderr.strip().splitlines()[-1]
    assert "ConnectionError" in last and "--dataset path/to/folder" in last and "mnist5k" in last and "go online" in last


def _classes(folder, value=7, names=("cat", "dog"), name="0.bmp"):
    """Folders of classes with a picture each, all of one value; as BMP, whose size does not depend on it."""
    for class_ in names:
        (folder / class_).mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8), (value,) * 3).save(folder / class_ / name)
    return folder


def _with_metadata(folder, value=7, names=("cat", "dog"), name="0.bmp"):
    _classes(folder, value, ("pictures",), name)
    rows = "".join(f"pictures/{name},{class_}\n" for class_ in names)
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    return folder


def _parquet_folder(folder, value=7, names=("cat", "dog")):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as plain:  # `datasets` does not write below `a::b`
        write_parquet(Path(plain), np.full((2, 8, 8, 3), value, np.uint8), [0, 1], names)
        shutil.copyfile(Path(plain) / "train.parquet", folder / "train.parquet")
    return folder


def _parquet_file(path, value=7, names=("cat", "dog")):
    path = path.with_name(path.name + ".parquet")
    shutil.move(_parquet_folder(path.with_name("made"), value, names) / "train.parquet", path)
    return path


KINDS = {kind.__name__.strip("_"): kind for kind in (_classes, _with_metadata, _parquet_folder, _parquet_file)}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@each_kind
@pytest.mark.parametrize(
    "name", ["set[12]", "set*", "set?", "s{et,}1", "set!", "[!a]et1", "a set", "a::b", "hf:", "\\x5bset", "é"]
)
@pytest.mark.hostile(2)
def test_paths_are_literal(tmp_path, make, name):
    make(tmp_path / "set1", 1)
    data = load_images(str(make(tmp_path / name, 9)), resolution=8)
    assert (data.images == 9).all() and data.class_names == ["cat", "dog"]
    inside = load_images(str(make(tmp_path / "in" / name / "set1", 5)), resolution=8)
    assert (inside.images == 5).all() and len(inside) == 2


@pytest.mark.hostile(2)
def test_names_of_classes_and_files_are_literal(tmp_path):
    names = ["!", "a", "a::b", "hf:", "s*", "{x,y}", "[a]"]
    for value, name in enumerate(names):
        _classes(tmp_path, value, [name], f"{name}?[0].bmp")
    data = load_images(str(tmp_path), resolution=8)
    assert data.class_names == sorted(names)
    assert [names[image[0, 0, 0]] for image in data.images] == [data.class_names[label] for label in data.labels]


@pytest.mark.hostile(2)
def test_names_of_the_pictures_that_metadata_name_are_literal(tmp_path):
    _with_metadata(tmp_path, 3, name="[a]*.bmp")
    _classes(tmp_path, 9, ["pictures"], "a.bmp")
    with pytest.warns(UserWarning, match="pictures/a.bmp left out: the metadata"):
        assert (load_images(str(tmp_path), resolution=8).images == 3).all()


@each_kind
@pytest.mark.hostile(4)
def test_files_rewritten_in_place_with_their_mtime_are_read_again(tmp_path, make):
    """As `tar`, `rsync -t` and `cp -p` leave them: other pixels and labels, the same size and mtime."""
    source = make(tmp_path / "set", 1)
    files = [path for path in (source, *source.rglob("*")) if path.is_file()]
    stats = {path: path.stat() for path in files}
    assert (load_images(str(source), resolution=8).images == 1).all()
    make(tmp_path / "set", 2, ("dog", "cat"))
    for path, before in stats.items():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    data = load_images(str(source), resolution=8)
    assert (data.images == 2).all()
    if make in (_parquet_folder, _parquet_file):  # labels are numbers there, of which the names changed places
        assert data.class_names == ["dog", "cat"]
    if make is _with_metadata:
        assert [data.class_names[label] for label in data.labels] == ["dog", "cat"]


@pytest.mark.hostile(4)
def test_samples_rewritten_in_place_with_their_mtime_are_read_again(tmp_path):
    for value in (1, 2):
        _classes(tmp_path, value)
        for path in tmp_path.rglob("*.bmp"):
            os.utime(path, ns=(10**18, 10**18))
        assert (load_samples(tmp_path, 8).images == value).all()


@pytest.mark.hostile(4)
def test_what_has_not_changed_is_not_decoded_again(tmp_path, monkeypatch):
    sources = [make(tmp_path / name / "set") for name, make in KINDS.items() if not (tmp_path / name).mkdir()]
    for source in sources:
        load_images(str(source), resolution=8)
    monkeypatch.setattr("cond_ddpm.data.cache.to_array", lambda *_: pytest.fail("decoded again"))
    for source in sources:
        load_images(str(source), resolution=8)


def _tiff(bits, value, sample_format=1):
    """8x8 pixels of grey with any number of bits, which Pillow does not write."""
    pixels = int("".join([f"{value:0{bits}b}"] * 64), 2).to_bytes(8 * bits, "big")
    if bits > 16:
        pixels = struct.pack("<64i", *[value] * 64)
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(pixels))]
    tags += [(339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, number) for tag, number in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.hostile(11)
def test_grey_of_more_than_8_bits_is_scaled_from_the_range_of_its_bits_or_refused(tmp_path):
    file = io.BytesIO()
    PILImage.fromarray(np.full((8, 8), 200 * 257, np.uint16)).save(file, "TIFF")
    assert (_one(tmp_path, file.getvalue(), resolution=8) == 200).all()
    assert (_one(tmp_path, _png(np.full((8, 8), 200 * 257, np.uint16)), resolution=8) == 200).all()
    assert (_one(tmp_path, b"P5 8 8 65535\n" + struct.pack(">64H", *[200 * 257] * 64), resolution=8) == 200).all()
    assert (_one(tmp_path, _tiff(12, 4095), resolution=8) == 255).all()
    for sample_format in (1, 2):
        with pytest.raises(ValueError, match=r"row 0: .*whose range is unknown; save it with 8 or 16 bits"):
            _one(tmp_path, _tiff(32, 200, sample_format), resolution=8)


def _warnings_of(source, *arguments, **others):
    """The warnings of `load_images`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_images(str(source), *arguments, **{"resolution": 8, **others})
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.mark.hostile(11)
def test_conversions_that_lose_something_are_reported_each_time(tmp_path):
    def save(name, picture, **others):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture.convert("RGB").save(tmp_path / "a" / "0.png")
        picture.save(tmp_path / "a" / name, **others)
        return [_warnings_of(tmp_path), _warnings_of(tmp_path), _warnings_of(tmp_path, channels=3)]

    plain = PILImage.new("RGB", (8, 8))
    assert save("1.png", plain) == [[], [], []]
    assert save("1.png", PILImage.new("RGBA", (8, 8), "white")) == [[], [], []]  # nothing of it is transparent
    first, again, with_channels = save("1.png", PILImage.new("L", (8, 8)))
    assert len(first) == 1 and "1 of 2 pictures, the first of them in row 1" in first[0]
    assert "a/1.png), are grey and are converted to RGB" in first[0]
    assert again == first and not with_channels
    (tmp_path / "a" / "1.png").unlink()
    for name, picture, words, others in (
        ("1.png", PILImage.new("RGBA", (8, 8)), "the transparent parts become white", {}),
        ("1.gif", plain, "several pages", {"save_all": True, "append_images": [PILImage.new("RGB", (8, 8), "red")]}),
        ("1.jpg", PILImage.new("CMYK", (8, 8)), "in CMYK", {}),
    ):
        for found in save(name, picture, **others):
            assert len(found) == 1 and words in found[0]
        (tmp_path / "a" / name).unlink()
    PILImage.new("L", (8, 8)).save(tmp_path / "a" / "0.png")
    plain.save(tmp_path / "a" / "1.png")
    (warning,) = _warnings_of(tmp_path)
    assert "in colour and are converted to grey" in warning


@pytest.mark.hostile(11)
def test_of_several_splits_it_is_reported_which_is_read(tmp_path):
    _classes(tmp_path / "train")
    assert not _warnings_of(tmp_path)
    _classes(tmp_path / "test")
    (warning,) = _warnings_of(tmp_path)
    assert warning == f"{tmp_path}: it has the splits test, train, of which 'train' is read."


@pytest.mark.hostile(11)
def test_what_is_left_out_of_folders_of_classes_is_reported(tmp_path):
    _classes(tmp_path)
    (tmp_path / "labels.txt").touch()  # in no class folder: not reported
    (tmp_path / "cat" / ".hidden.txt").touch()
    assert not _warnings_of(tmp_path)
    (tmp_path / "bird").mkdir()
    (warning,) = _warnings_of(tmp_path)
    assert warning == f"{tmp_path}: bird left out: a folder without pictures is not a class."
    (tmp_path / "bird").rmdir()
    (tmp_path / "cat" / "a.txt").touch()
    (tmp_path / "dog" / "b.mp4").touch()
    (warning,) = _warnings_of(tmp_path)
    assert warning == f"{tmp_path}: cat/a.txt and 1 more left out: not a picture, judging by its name."
    (tmp_path / "cat" / "a.txt").unlink()
    (tmp_path / "dog" / "b.mp4").unlink()
    _classes(tmp_path, names=["__other__"])
    (warning,) = _warnings_of(tmp_path)
    assert "__other__/0.bmp left out: folders whose names begin with two underscores are not classes" in warning


@pytest.mark.hostile(11)
def test_a_picture_that_no_split_or_metadata_name_is_reported(tmp_path):
    _parquet_folder(tmp_path / "set")
    assert not _warnings_of(tmp_path / "set")
    shutil.copy(tmp_path / "set" / "train.parquet", tmp_path / "set" / "more.parquet")
    (warning,) = _warnings_of(tmp_path / "set")
    assert warning == f"{tmp_path}/set: more.parquet left out: not among the files of its splits (train)."
    assert not _warnings_of(_with_metadata(tmp_path / "described"))
    PILImage.new("RGB", (8, 8)).save(tmp_path / "described" / "0.png")
    (warning,) = _warnings_of(tmp_path / "described")
    assert warning == f"{tmp_path}/described: 0.png left out: the metadata of the split 'train' do not mention it."


@pytest.mark.hostile(11)
def test_one_class_is_enough(tmp_path):
    _classes(tmp_path, names=["cat"])
    assert load_images(str(tmp_path), resolution=8).class_names == ["cat"]
    _classes(tmp_path / "both" / "train", names=["cat"])
    assert load_images(str(tmp_path / "both"), resolution=8).class_names == ["cat"]


@pytest.mark.hostile(11)
def test_a_plain_readme_does_not_hide_folders_of_classes(tmp_path):
    """load_dataset would take the names of these for splits."""
    _classes(tmp_path, names=["bus", "train_diesel"])
    (tmp_path / "README.md").write_text("# Vehicles\n")
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    assert load_images(str(tmp_path), resolution=8).class_names == ["bus", "train_diesel"]


@pytest.mark.hostile(11)
def test_links_and_upper_case_suffixes_are_followed(tmp_path):
    _classes(tmp_path / "elsewhere", 3, names=["dog"], name="0.BMP")
    _classes(tmp_path / "set", 3, names=["cat"])
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    assert not _warnings_of(tmp_path / "set")
    assert load_images(str(tmp_path / "set"), resolution=8).class_names == ["cat", "dog"]
    (tmp_path / "set" / "cat" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"cat/1.png: expected a file, got a link that leads nowhere"):
        load_images(str(tmp_path / "set"))
    (tmp_path / "set" / "cat" / "1.png").unlink()
    (tmp_path / "set" / "cat" / "again").symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match="again: expected a folder, got a link to a folder that contains it"):
        load_images(str(tmp_path / "set"))
    shutil.move(_parquet_file(tmp_path / "data"), tmp_path / "DATA.PARQUET")
    assert len(load_images(str(tmp_path / "DATA.PARQUET"), resolution=8)) == 2


@pytest.mark.parametrize("names", [["Cat", "cat"], ["caf\u00e9", "cafe\u0301"], ["a b", "a  b"]])
@pytest.mark.hostile(11)
def test_classes_whose_names_look_alike_are_reported(tmp_path, names):
    (warning,) = _warnings_of(_parquet_file(tmp_path / "set", names=names))
    assert "look alike, but are two classes" in warning


@pytest.mark.parametrize(
    "files, words",
    [
        (["0.png", "cat/0.png"], "CLASS/NAME, all at the same depth, got 0.png and cat/0.png"),
        (["cat/0.png", "dog/old/0.png"], "got cat/0.png and dog/old/0.png; put each into the folder of its class"),
        (["cat/2024/0.png", "dog/2024/0.png"], "cat/2024, dog/2024 are all '2024'"),
        (["train/0.png", "test/0.png"], "expected class folders inside test/, train/, .* got test/0.png"),
    ],
)
@pytest.mark.hostile(11)
def test_pictures_that_lie_in_no_folder_of_a_class(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(ValueError, match=words):
        load_images(str(tmp_path))


@pytest.mark.hostile(11)
def test_folders_of_one_name_become_one_class_and_loose_pictures_none_but_it_is_reported(tmp_path):
    for name in ("a/cat", "b/cat", "b/dog"):
        _classes(tmp_path / "deep", names=[name])
    (warning,) = _warnings_of(tmp_path / "deep")
    assert "a/cat, b/cat are all 'cat', so they become one class" in warning
    _classes(tmp_path / "set", names=["train/cat", "train/dog", "test"])  # a test split without labels
    (warning,) = _warnings_of(tmp_path / "set")
    assert "test/0.bmp left out: not in a class folder" in warning
    with (
        pytest.warns(UserWarning, match="test/0.bmp left out"),
        pytest.raises(NoSuchSplit, match="expected one of its splits train, got 'test'"),
    ):
        load_images(str(tmp_path / "set"), "test")


@pytest.mark.hostile(11)
def test_a_single_file_is_not_two_splits_and_an_empty_folder_no_missing_split(tmp_path):
    path = _parquet_file(tmp_path / "set")
    with pytest.raises(NoSuchSplit, match="expected the split 'train' of a single file, got 'test'"):
        load_images(str(path), "test", resolution=8)
    (tmp_path / "splits").mkdir()
    with pytest.raises(ValueError, match=r"Couldn't find any data file at .*splits") as raised:
        load_images(str(tmp_path / "splits"))
    assert raised.type is ValueError
    shutil.copy(path, tmp_path / "my_test.parquet")
    assert len(load_images(str(tmp_path / "my_test.parquet"), "test", resolution=8)) == 2


@pytest.mark.hostile(14)
@pytest.mark.parametrize("name, read", [("x.npy", load_images), ("x.npz", survey)])
def test_what_a_killed_decoding_left_is_removed_by_the_next(tmp_path, monkeypatch, name, read):
    _classes(tmp_path / "set")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    cache = tmp_path / "cache" / "cond_ddpm"
    cache.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, theirs, elsewhere = (
        cache / f"{name}.{host}-{process}.partial"
        for host, process in ((platform.node(), ended.pid), (platform.node(), os.getppid()), ("elsewhere", ended.pid))
    )
    for file in (left, theirs, elsewhere):
        file.write_bytes(b"x")
    read(str(tmp_path / "set"))
    assert not left.exists() and theirs.exists() and elsewhere.exists()
    assert len(list(cache.glob("*.partial"))) == 2


FULL = r"not enough disk space for the decoded pictures \(0.8 MB\) in .*; free some, or set HF_DATASETS_CACHE to a folder"


@pytest.fixture
def large(tmp_path):
    """Small files, of which 256 x 256 pixels are made."""
    for row in range(4):
        _classes(tmp_path / "set", names=["cat"], name=f"{row}.bmp")
    return tmp_path / "set"


@pytest.mark.hostile(14)
def test_a_disk_that_is_full_is_reported_before_pictures_are_decoded(large, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=786_431))
    monkeypatch.setattr("cond_ddpm.data.cache.to_array", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OSError, match=FULL):
        load_images(str(large), resolution=256)


LIMITED = """
import os, resource, signal, sys
import datasets
from pathlib import Path
from cond_ddpm.data import load_images

datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    load_images(sys.argv[1], resolution=256)
except OSError as error:
    print(error)
"""


def _in_a_process(source, cache, *limit):
    command = [sys.executable, "-c", LIMITED, str(source), str(cache), *limit]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.hostile(14)
@pytest.mark.end_to_end
def test_a_write_that_fails_half_way_is_reported_and_leaves_nothing(tmp_path, large):
    done = _in_a_process(large, tmp_path / "cache", "500000")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(f"{FULL}.*", done.stdout.strip())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.hostile(14)
@pytest.mark.end_to_end
def test_a_full_file_system_is_reported_and_leaves_nothing(tmp_path, large):
    """A real one of 500 kB, on which writing to a memory-mapped file would kill the process by SIGBUS."""
    (tmp_path / "disk").mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", tmp_path / "disk"], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        done = _in_a_process(large, tmp_path / "disk" / "cache")
        left = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(f"{FULL}.*", done.stdout.strip()) and not left


@pytest.mark.hostile(14)
def test_the_table_of_a_data_set_finds_no_room_either(shapes_parquet, monkeypatch):
    def full(*_):
        raise OSError(28, "Error writing bytes to file")

    monkeypatch.setattr("datasets.DatasetBuilder.download_and_prepare", full)
    with pytest.raises(OSError, match=r"not enough disk space for the table of the data set in .*; free some"):
        load_images(str(shapes_parquet), resolution=3)


@pytest.mark.parametrize("make", [_classes, _parquet_file], ids=["classes", "parquet_file"])
@pytest.mark.hostile(24)
def test_a_config_name_is_refused_where_there_are_none(tmp_path, make):
    with pytest.raises(ValueError, match=r"dataset_config_name: expected none for .* no configurations, got 'fine'; leave"):
        load_images(str(make(tmp_path / "set")), config_name="fine")


@pytest.mark.hostile(24)
def test_a_config_name_that_a_folder_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'fine' not found"):
        load_images(str(_parquet_folder(tmp_path / "set")), config_name="fine")
