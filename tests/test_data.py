import io
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import CIFAR10, NAMES, ROOT, needs_cifar10, shapes, write_parquet
from datasets import ClassLabel, Dataset, Features, Image, Value
from diffusers.image_processor import VaeImageProcessor
from PIL import Image as PILImage

from cond_ddpm.data import LabelledImages, data_fingerprint, epoch_order, hold_out, load_images, make_batch


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
def test_cifar10():
    data = load_images(str(CIFAR10), "test")
    assert data.images.shape == (10_000, 3, 32, 32) and np.bincount(data.labels).tolist() == [1000] * 10
    assert data.class_names[7] == "horse" and data.flippable


def test_second_call_reads_the_cache(shapes_parquet, monkeypatch):
    first = load_images(str(shapes_parquet), resolution=8)
    monkeypatch.setattr("cond_ddpm.data._to_array", lambda *_: pytest.fail("decoded again"))
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
    data = load_images(_parquet(tmp_path / "gaps", pictures, [7, 1_000_000, 7]))  # what does not occur is no class
    assert data.labels.tolist() == [0, 1, 0] and data.class_names == ["7", "1000000"]
    (tmp_path / "decimal").mkdir()
    features = Features({"image": Image(), "label": Value("large_string")})
    assert load_images(_parquet(tmp_path / "decimal", pictures, ["10", "9", "10"], features)).class_names == ["9", "10"]


@pytest.mark.parametrize("names", [["bus", "train_diesel", "train_steam"], ["bus", "car", "train"], ["flask", "test_tube"]])
def test_folders_of_classes_whose_names_sound_like_splits(tmp_path, names):
    """load_dataset by itself would take some of them for splits, and drop the others without a word."""
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
        ([GOOD, FLOAT], [0, 0], "row 1: expected a picture, .*floating point"),
        ([GOOD, GOOD], [1, None], "label: expected a label in each row, got none in row 1"),
        ([GOOD], None, "label_column: expected a column of labels, got the columns image"),
        ([], [], "expected a data set with a split 'train', got"),
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
    with pytest.raises(FileNotFoundError, match=r"got ./nowhere, which is not there"):
        load_images("./nowhere")
    with pytest.raises(ValueError, match="split 'valid'"):
        load_images(str(shapes_parquet), "valid")
    with pytest.raises(ValueError, match=r"image_column: expected 'photo', got the columns img .Image., label .ClassLabel."):
        load_images(str(shapes_parquet), image_column="photo")


@pytest.mark.parametrize("name", ["my photos/typo", "a/b/c", "~/nothing", "nothing.parquet"])
def test_what_can_be_no_id_is_a_path(name):
    with pytest.raises(FileNotFoundError, match="which is not there"):
        load_images(name)


def test_single_files_and_needless_columns(tmp_path, shapes_parquet):
    (tmp_path / "x.png").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"expected a folder or a \.parquet file"):
        load_images(str(tmp_path / "x.png"))
    with pytest.raises(ValueError, match="image_column: expected 'label'"):
        load_images(str(shapes_parquet), image_column="label")
    with pytest.raises(ValueError, match="mnist5k: expected no config name or columns"):
        load_images("mnist5k", label_column="label")


def test_without_the_network_the_error_is_quick_and_names_three_ways(tmp_path):
    """An endpoint on loopback that refuses connections stands in for no network."""
    script = "from cond_ddpm.data import load_images; load_images('cifar10')"
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT), "PATH": ""}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert time.perf_counter() - started < 10
    last = done.stderr.strip().splitlines()[-1]
    assert "ConnectionError" in last and "--dataset path/to/folder" in last and "mnist5k" in last and "go online" in last
