"""A user's own folder of pictures: what is found in it, what is chosen by it, and that older runs keep what they had."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, make_pipeline, make_unet
from PIL import Image
from test_hub import results_of

from cond_ddpm.cli import main
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.data import DataConfig
from cond_ddpm.data import LabelledImages, balanced_order, load_images, prepare, report
from cond_ddpm.data.choices import choose_fit, choose_flip, choose_resolution, mirrored_unlike
from cond_ddpm.data.duplicates import exact_duplicates, near_duplicates, near_duplicates_across
from cond_ddpm.data.pictures import to_array
from cond_ddpm.data.survey import Survey, survey
from cond_ddpm.evaluation.copies import find_copies, nearest_others, nearest_training_images, nearness, warn_of_copies
from cond_ddpm.evaluation.real_images import warranted_samples
from cond_ddpm.experiments.study import _train
from cond_ddpm.fingerprints import file_checksum
from cond_ddpm.hub import check, complete, model_card
from cond_ddpm.hub.card import copies_text, licence_of
from cond_ddpm.hub.folder import published_files, trained_fit
from cond_ddpm.processes import memory_for
from cond_ddpm.training import records, train
from cond_ddpm.training.checkpoint import load_checkpoint


def _noise(seed, width=24, height=24):
    """A smooth picture, as photographs are; each seed has its own."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes with a fault of each kind."""
    for name, first, count in (("cat", 0, 24), ("dog", 100, 6)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(count):
            _noise(first + n).save(tmp_path / "pets" / name / f"{n:02d}.png")
    _noise(0).save(tmp_path / "pets" / "cat" / "again.bmp")  # the same pixels in another format
    _noise(1).save(tmp_path / "pets" / "dog" / "wrong.png")  # in the other class
    _noise(2, 60, 58).point(lambda value: value * 0.8).save(tmp_path / "pets" / "cat" / "darker.png")
    _noise(50, 90, 30).save(tmp_path / "pets" / "cat" / "long.png")
    _noise(51, 10, 10).save(tmp_path / "pets" / "cat" / "tiny.png")
    return tmp_path / "pets"


def _survey(sizes, plain=False, labels=None, names=("a", "b")):
    count = len(sizes)
    zeros = np.zeros(count, np.uint64)
    return Survey(
        split="train",
        labels=np.zeros(count, np.int64) if labels is None else labels,
        class_names=list(names),
        names=np.array([f"{n}.png" for n in range(count)]),
        sizes=np.array(sizes),
        modes=np.array(["RGB"] * count),
        plain=np.full(count, plain),
        pixels=zeros,
        hashes=zeros,
        similar=np.zeros((0, 2), np.int64),
        unreadable={},
    )


def test_the_report_names_the_file_of_each_finding(folder, capsys, tmp_path):
    picture = tmp_path / "sheet" / "data.png"
    assert main(["data", "--dataset", str(folder), "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "cat 28, dog 7",
        "10x10 (cat/tiny.png) to 60x58 (cat/darker.png)",
        "fewer than 20 pictures of dog (7)",
        "'cat' has 4 times as many pictures as 'dog'",
        "2 pictures are the same as another: cat/again.bmp = cat/00.png, dog/wrong.png = cat/01.png",
        "1 picture is nearly the same as another: cat/darker.png = cat/02.png",
        "of these doubles, 1 is in another class: dog/wrong.png = cat/01.png",
        "cat/tiny.png (10x10)",
        "of 1 picture, half or more is lost as they become square: cat/long.png (90x30)",
        "4 images for the validation loss, 1 to 3 of each class",
    ):
        assert words in printed, words
    with Image.open(picture) as opened:
        assert opened.size[0] > 500


def test_every_file_of_a_finding_can_be_had(tmp_path, capsys):
    """The warning names three, `--all_files true` and a run's data.txt all of them."""
    (tmp_path / "data" / "one").mkdir(parents=True)
    for n in range(24):
        _noise(n % 12).save(tmp_path / "data" / "one" / f"{n:02d}.png")
    found = report("data", prepare(str(tmp_path / "data"), "train", DataConfig(dataset="data")))
    (warning,) = (one for one in found.warnings if "the same" in one)
    assert warning.count(" = ") == 3 and "and 9 more; the model will copy these sooner." in warning
    assert found.named == {warning.partition(":")[0]: [f"one/{n:02d}.png = one/{n - 12:02d}.png" for n in range(12, 24)]}
    command = ["data", "--dataset", str(tmp_path / "data")]
    assert (
        main(command) == 0
        and "\nWhere more files are counted than named, --all_files true names them all." in capsys.readouterr().out
    )
    assert main([*command, "--all_files", "true"]) == 0 and "\n  one/23.png = one/11.png\n" in capsys.readouterr().out
    config = TrainConfig(
        dataset=str(tmp_path / "data"), model="simple", unet=TINY, resolution=8, max_train_steps=1, batch_size=8
    )
    run = train(dataclasses.replace(config, num_inference_steps=1, report_to="none", output_dir=str(tmp_path / "run")))
    kept = (run / "data.txt").read_text()
    assert "\n\n12 pictures are the same as another:\n  one/12.png = one/00.png\n" in kept
    assert "one/23.png = one/11.png" in kept and "one/23.png" not in (run / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:.* are in colour and are converted to grey")
def test_one_picture_in_colour_among_grey_ones_keeps_its_colours(tmp_path):
    """The first picture does not decide, unless the run began with a version where it did."""
    (tmp_path / "one").mkdir()
    for n in range(8):
        _noise(n).convert("L" if n < 7 else "RGB").save(tmp_path / "one" / f"{n}.png")
    config = DataConfig(dataset=str(tmp_path))
    prepared = prepare(str(tmp_path), "train", config)
    assert prepared.images.images.shape[1] == 3 and prepared.config.channels == 3 and not report("", prepared).warnings[1:]
    assert "colour, though the first picture is grey (--channels 1 or 3)" in report("", prepared).lines["network"]
    grey = "1 picture in colour becomes grey: one/7.png."
    before = prepare(str(tmp_path), "train", config, chooses=False)
    assert before.images.images.shape[1] == 1 and grey in report("", before).warnings
    asked = prepare(str(tmp_path), "train", dataclasses.replace(config, channels=1))
    assert asked.images.images.shape[1] == 1 and grey not in report("", asked).warnings
    asked.reasons["channels"] = "grey as the base model"  # which was not asked for
    assert grey in report("", asked).warnings


def test_what_pictures_lose_is_in_the_report(tmp_path):
    (tmp_path / "one").mkdir()
    for n in range(6):
        _noise(n).convert("RGBA" if n else "RGB").save(tmp_path / "one" / f"{n}.png")
    Image.new("RGBA", (24, 24)).save(tmp_path / "one" / "7.png")
    (lost,) = prepare(str(tmp_path), "train", DataConfig(dataset=str(tmp_path))).lost
    assert lost.startswith("1 of 7 pictures, the first of them in row 6 (") and "are partly transparent" in lost


def test_a_row_without_a_picture_is_named(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [_noise(0), None, _noise(1)], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    assert main(["data", "--dataset", str(tmp_path / "train.parquet")]) == 1
    assert "1 of 3 that cannot be read; repair or remove them:\n  row 1: the row has no picture" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_all_named(folder, capsys):
    (folder / "cat" / "00.png").write_bytes(b"nothing")
    (folder / "dog" / "cut.png").write_bytes((folder / "dog" / "00.png").read_bytes()[:200])
    assert main(["data", "--dataset", str(folder)]) == 1
    printed = capsys.readouterr().err
    assert "2 of 36 that cannot be read; repair or remove them:" in printed
    assert "  cat/00.png: " in printed and "  dog/cut.png: " in printed


@pytest.mark.filterwarnings("ignore:.* it has the splits test, train")
def test_copies_in_another_split_are_found(tmp_path):
    for split, seeds in (("train", range(8)), ("test", (3, 20, 21))):
        (tmp_path / split / "one").mkdir(parents=True)
        for seed in seeds:
            _noise(seed).save(tmp_path / split / "one" / f"{seed}.png")
    _noise(5, 40, 40).save(tmp_path / "test" / "one" / "larger.png")
    train_split, test_split = (survey(str(tmp_path), split) for split in ("train", "test"))
    images = [load_images(str(tmp_path), split, 32).images for split in ("train", "test")]
    exact = exact_duplicates(test_split, train_split)
    near = near_duplicates_across(test_split, images[1], train_split, images[0])
    named = [[(test_split.names[row], train_split.names[found]) for row, found in pairs] for pairs in (exact, near)]
    assert named == [[("test/one/3.png", "train/one/3.png")], [("test/one/larger.png", "train/one/5.png")]]
    assert not exact_duplicates(train_split) and not near_duplicates(train_split, images[0])


@pytest.mark.filterwarnings("ignore:.* it has the splits test, train")
def test_another_split_has_the_same_classes(tmp_path, capsys):
    for split, name in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        (tmp_path / split / name).mkdir(parents=True)
        _noise(len(split + name)).save(tmp_path / split / name / "0.png")
    assert main(["data", "--dataset", str(tmp_path), "--num_validation_images", "1"]) == 1
    assert "test_split: expected the classes cat, dog, got cat in test" in capsys.readouterr().err


def test_the_digits_are_surveyed_as_they_are():
    found = survey("mnist5k", "test")
    assert len(found) == 1000 and (found.sizes == 28).all()


@pytest.mark.parametrize(
    "sizes, plain, fit, resolution",
    [
        ([(28, 28)] * 4, True, "crop", 32),
        ([(16, 16)] * 4, True, "crop", 16),
        ([(64, 64)] * 4, False, "crop", 64),
        ([(400, 300), (300, 400), (200, 200)], False, "crop", 64),
        ([(40, 20), (40, 30), (40, 40)], True, "pad", 32),  # a plain edge goes on in the border
    ],
)
def test_size_and_fit_follow_from_the_pictures(sizes, plain, fit, resolution):
    found = _survey(sizes, plain)
    assert choose_fit(found)[0] == fit and choose_resolution(found, fit)[0] == resolution


def test_what_is_mirrored():
    rng = np.random.default_rng(0)
    any_side = rng.integers(0, 256, (200, 1, 16, 16), np.uint8)  # a mirror image is as likely as the image itself
    one_side = any_side // 8
    one_side[..., :8] += 128  # bright on the left, all of them
    labels = np.arange(200) % 2
    make = lambda images, names: LabelledImages(images, labels, names)  # noqa: E731
    assert choose_flip(make(any_side, ["cat", "dog"]))[0]
    assert not choose_flip(make(one_side, ["cat", "dog"]))[0]
    assert not choose_flip(make(any_side, ["1", "2"]))[0]
    assert not choose_flip(make(any_side, ["turn left", "turn right"]))[0]
    assert not choose_flip(make(any_side, ["turnLeft", "turnRight"]))[0]
    assert choose_flip(make(any_side, ["cleft", "bright"]))[0]
    assert mirrored_unlike(make(one_side, ["cat", "dog"])) == (1.0, 200)
    symmetric = np.concatenate([any_side[..., :8], any_side[..., :8][..., ::-1]], axis=-1)
    assert mirrored_unlike(make(symmetric, ["cat", "dog"])) == (0.5, 200)


def test_the_three_fits_by_hand():
    picture = Image.fromarray(np.repeat([[10, 10, 200, 200, 10, 10]], 2, axis=0).astype(np.uint8))  # 6x2
    assert to_array(picture, 2, 1).tolist() == [[[200, 200], [200, 200]]]
    padded = to_array(picture, 6, 1, "pad")[0]
    assert padded[2].tolist() == padded[3].tolist() == [10, 10, 200, 200, 10, 10]
    assert (padded[[0, 1, 4, 5]] == 10).all()  # the median of its edge
    assert to_array(picture, 6, 1, "stretch")[0].tolist() == [[10, 10, 200, 200, 10, 10]] * 6
    with pytest.raises(ValueError, match="fit: expected one of crop, pad, stretch, got 'zoom'"):
        to_array(picture, 6, 1, "zoom")


def test_balanced_sampling_repeats_small_classes_evenly():
    indices = np.arange(100, 111)
    labels = np.array([0] * 8 + [1] * 3)
    order = balanced_order(indices, labels, seed=1, epoch=2)
    assert len(order) == 11 and np.array_equal(order, balanced_order(indices, labels, 1, 2))
    assert not np.array_equal(order, balanced_order(indices, labels, 1, 3))
    times = np.bincount(order - 100, minlength=11)
    assert sorted([times[:8].sum(), times[8:].sum()]) == [5, 6]  # as often, but for the rest
    assert times[:8].max() == 1 and times[8:].max() - times[8:].min() <= 1


def test_out_of_memory_is_one_line_that_says_what_to_change():
    device, advice = torch.device("cpu"), "lower --batch_size"
    with (
        pytest.raises(MemoryError, match=r"out of memory on cpu: a step does not fit; lower --batch_size. .*allocate"),
        memory_for(device, "a sample", "something else"),
        memory_for(device, "a step", advice),
    ):
        torch.empty(2**50)
    with pytest.raises(MemoryError, match="a step does not fit"), memory_for(device, "a step", advice):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(RuntimeError, match="shapes differ"), memory_for(device, "a step", advice):
        raise RuntimeError("shapes differ")


@pytest.fixture
def config(shapes_parquet, tmp_path):
    return TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="simple",
        unet={**TINY, "block_out_channels": [8, 16]},
        batch_size=16,
        num_validation_images=16,
        max_train_steps=4,
        checkpointing_steps=2,
        checkpoints_total_limit=None,
        save_images_epochs=0,
        num_ema_snapshots=0,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


@pytest.mark.end_to_end
def test_an_older_run_resumes_as_it_began_when_its_command_is_repeated(config):
    """Older versions had defaults, and recorded them, where the data now decide."""
    run = train(config)
    expected = load_checkpoint(run / "checkpoint-4")[0]["unet"]
    record = json.loads((run / "checkpoint-2" / "progress.json").read_text())
    for name in ("fit", "class_sampling"):
        del record["settings"][name]
    record["settings"]["random_flip"] = None
    (run / "checkpoint-2" / "progress.json").write_text(json.dumps(record))
    manifest = json.loads((run / "checkpoint-2" / "manifest.json").read_text())
    manifest["progress.json"] = file_checksum(run / "checkpoint-2" / "progress.json")
    (run / "checkpoint-2" / "manifest.json").write_text(json.dumps(manifest))
    left_open = dataclasses.replace(config, resolution=None, num_validation_images=None)
    again = train(dataclasses.replace(left_open, resume_from_checkpoint="checkpoint-2"))
    found = load_checkpoint(again / "checkpoint-4")[0]["unet"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="num_validation_images 16 -> 8"):
        other = dataclasses.replace(config, num_validation_images=8, max_train_steps=6)
        train(dataclasses.replace(other, resume_from_checkpoint="latest"))


@pytest.mark.end_to_end
def test_what_was_chosen_is_written_down_and_kept(config, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    left_open = dataclasses.replace(
        config, dataset=folder.name, resolution=None, num_validation_images=None, class_sampling="balanced", max_train_steps=2
    )
    run = train(left_open)
    record = json.loads((run / "config.json").read_text())
    assert (record["config"]["resolution"], record["config"]["fit"], record["config"]["random_flip"]) == (32, "crop", True)
    assert record["resolved"]["num_validation_images"] == 4
    training = json.loads((run / "pipeline" / "results.json").read_text())["training"]
    assert training["dataset"] == "pets" and not training["dataset_on_hub"]  # though the name alone could be one of the Hub
    assert (training["num_images"], training["num_validation_images"]) == (31, 4)
    assert training["data"]["duplicates"] == 2 and "cat/" not in json.dumps(training["data"])
    assert trained_fit({"results.json": json.dumps({"training": training}).encode()}) == "crop"
    assert "cat/long.png" in (run / "data.txt").read_text()
    train(dataclasses.replace(left_open, max_train_steps=3, resume_from_checkpoint="latest"))
    assert json.loads((run / "config.json").read_text())["config"]["resolution"] == 32


def test_a_model_of_an_older_study_counts_as_trained_though_it_recorded_defaults(tmp_path):
    settings = TrainConfig(output_dir=str(tmp_path))
    older = {**dataclasses.asdict(settings), "num_validation_images": 1000, "resolution": 32}
    del older["fit"]
    (tmp_path / "done.json").write_text(json.dumps(older))
    _train(settings, "model", tmp_path)
    with pytest.raises(ValueError, match="got other batch_size"):
        _train(dataclasses.replace(settings, batch_size=32), "model", tmp_path)


def test_a_number_of_held_out_images_that_does_not_fit_says_what_does(shapes_parquet):
    prepared = prepare(str(shapes_parquet), "train", DataConfig(dataset=str(shapes_parquet), num_validation_images=60))
    with pytest.raises(ValueError, match="leave it out to hold out a twentieth of each class"):
        report(str(shapes_parquet), prepared)
    assert prepared.config.resolution == 16


# Copies


def _tally(images, features, subset=1000):
    """What `find_copies` reads of a `Tally`."""
    rows = torch.arange(len(images))
    labels = rows % 2
    return SimpleNamespace(
        images=torch.from_numpy(images), image_rows=torch.stack([rows, labels], 1), rows=rows, kept=features, subset=subset
    )


def test_copies_light_up_and_new_images_do_not(tmp_path):
    rng = np.random.default_rng(0)
    make = lambda count: rng.integers(0, 256, (count, 3, 8, 8), np.uint8)  # noqa: E731
    features = lambda images: torch.from_numpy(images.reshape(len(images), -1)[:, :16].astype(np.float32))  # noqa: E731
    training, held_out, new = make(60), make(150), make(200)
    copied = new.copy()
    copied[::4] = (training[rng.integers(0, 60, 50)][..., ::-1] * 0.97).astype(np.uint8)  # mirrored, of class 0
    found = {}
    for name, samples in (("new", new), ("copied", copied)):
        tallies = (_tally(part, features(part)) for part in (samples, held_out, training))
        nearest = (nearest_training_images(part, training) for part in (samples, held_out))
        found[name] = find_copies(
            *tallies, *nearest, nearest_others(training, 150), training, ["a", "b"], tmp_path / f"{name}.png"
        )
    assert found["new"]["pixels"]["share"] < 0.05 and not warn_of_copies(found["new"])
    assert found["copied"]["pixels"]["share"] == pytest.approx(0.25, abs=0.04)
    assert found["copied"]["pixels"]["classes"]["a"] == pytest.approx(0.5, abs=0.05)
    assert found["copied"]["pixels"]["classes"]["b"] < 0.05
    (warning,) = warn_of_copies(found["copied"])
    assert re.match(r"2\d%", warning) and "in pixels, than 99% of 210 real images are to other real ones" in warning
    assert "by chance 1.4% would be" in copies_text(found["copied"])  # the third of 210 numbers
    with Image.open(tmp_path / "copied.png") as opened:
        assert opened.size[0] > 500


def test_a_held_out_image_that_is_doubled_does_not_hide_copies(tmp_path):
    """Of few held-out images the nearest is the threshold; if it is in the training split too, no copy would be nearer."""
    rng = np.random.default_rng(0)
    training, held_out = (rng.integers(0, 256, (count, 1, 4, 4), np.uint8) for count in (40, 20))
    held_out[3] = training[5]
    tallies = [_tally(part, torch.zeros(len(part), 2)) for part in (training[:10], held_out, training[:3])]
    nearest = (nearest_training_images(part, training) for part in (training[:10], held_out))
    found = find_copies(
        *tallies, *nearest, nearest_others(training, len(held_out)), training, ["a", "b"], tmp_path / "copies.png"
    )["pixels"]
    assert found["share"] == 1 and found["doubled_real"] == 1 and found["by_chance"] == 1 / 60
    nearest = (nearest_training_images(part, training) for part in (training[:10], training[:20]))  # nothing is held out
    found = find_copies(
        *tallies, *nearest, nearest_others(training, len(held_out)), training, ["a", "b"], tmp_path / "copies.png"
    )["pixels"]
    assert found["share"] == 1 and found["by_chance"] == 1 / 41  # the training images among themselves


def test_few_held_out_images_do_not_promise_more_than_they_can_say(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 4, 4), np.uint8)
    tallies = [_tally(part, torch.zeros(len(part), 2)) for part in (images[:10], images[10:19], images[19:22])]
    search = lambda training: [nearest_training_images(part, training) for part in (images[:10], images[10:19])]  # noqa: E731
    found = find_copies(
        *tallies, *search(images[19:]), nearest_others(images[19:], 9), images[19:], ["a", "b"], tmp_path / "copies.png"
    )
    assert found["pixels"]["by_chance"] == 1 / 31 and "features" not in found  # the least of 9 numbers and of 21
    assert "than any of 30 real images are to other real ones" in copies_text(found)
    none = find_copies(
        *tallies, *search(images[19:22]), nearest_others(images[19:22], 9), images[19:22], ["a", "b"], tmp_path / "none.png"
    )
    assert "too few training images" in copies_text(none) and not warn_of_copies(none)


def test_a_third_of_copies_lights_up_though_five_images_are_held_out(tmp_path):
    rng = np.random.default_rng(0)
    training, held_out, samples = (rng.integers(0, 256, (count, 3, 8, 8), np.uint8) for count in (45, 5, 90))
    samples[::3] = training[rng.integers(0, 45, 30)] // 2 + 64
    tallies = [_tally(part, torch.zeros(len(part), 2)) for part in (samples, held_out, training[:3])]
    nearest = (nearest_training_images(part, training) for part in (samples, held_out))
    (warning,) = warn_of_copies(
        find_copies(*tallies, *nearest, nearest_others(training, len(held_out)), training, ["a", "b"], tmp_path / "copies.png")
    )
    assert warning.startswith("33% of the samples are nearer to a training image, in pixels, than any of 50 real images")


def test_a_picture_that_occurs_often_does_not_hide_its_copies(tmp_path):
    """Its next four would be as near as the nearest, were they searched."""
    rng = np.random.default_rng(0)
    different = rng.integers(0, 256, (40, 1, 8, 8), np.uint8)
    training = np.concatenate([different, *[different[7:8]] * 5])
    copied = (different[7:8] * 0.97).astype(np.uint8)
    found = nearest_training_images(copied, training)
    assert found.rows[0, 0] == 7 and nearness(found.distances)[0] < 0.2


def test_nearness_by_hand():
    assert nearness(np.array([[1.0, 2.0, 4.0], [0.0, 2.0, 2.0]])).tolist() == [1 / 3, 0.0]


@pytest.mark.parametrize(
    "images, classes, samples", [(120, 2, 1000), (5000, 3, 5001), (50_000, 10, 50_000), (10**6, 7, 50_001)]
)
def test_as_many_samples_as_the_data_warrant(images, classes, samples):
    names = [str(n) for n in range(classes)]
    data = LabelledImages(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(images, np.int64), names)
    assert warranted_samples(data) == samples


# Publishing


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "model"
    pipeline = make_pipeline(make_unet())
    pipeline.companions = {"samples.png": b""}  # else they are drawn
    pipeline.save_pretrained(folder)
    return folder


def test_the_licence_is_the_users(published):
    from huggingface_hub import ModelCard

    complete(published)
    card = ModelCard.load(published / "README.md")
    assert card.data.license is None and "No licence has been given for the weights." in card.text
    complete(published, licences=("cc-by-4.0", "cc0-1.0"))
    complete(published)  # and it is kept
    card = ModelCard.load(published / "README.md")
    assert (card.data.license, card.data.to_dict()["dataset_license"]) == ("cc-by-4.0", "cc0-1.0")
    assert "The weights are under `cc-by-4.0`." in card.text and "The training images are under `cc0-1.0`." in card.text
    (published / "README.md").write_text("---\nlicense: mit\n---\nmine")
    with pytest.raises(ValueError, match="expected none with a card of your own"):
        complete(published, licences=("cc-by-4.0", None))


def test_a_licence_that_nobody_chose_is_not_kept(published):
    """Older versions wrote one into each card."""
    complete(published)
    card = (published / "README.md").read_text().replace("library_name", "license: apache-2.0\nlibrary_name")
    chosen, old = (
        card,
        card.replace("No licence has been given", "The weights and the code are under Apache-2.0. It was not given"),
    )
    for text, expected in ((chosen, "apache-2.0"), (old, None)):
        (published / "README.md").write_text(text)
        complete(published)
        assert licence_of(published) == expected


def test_a_licence_is_one_of_the_hubs_names(capsys):
    with pytest.raises(SystemExit):
        main(["publish", "--model", "x", "--repo_id", "me/x", "--license", "My own!"])
    assert "license: expected a licence as the Hub names it, such as mit, cc-by-4.0 or other" in capsys.readouterr().err


def test_own_files_are_published_and_secrets_in_them_are_found(published):
    complete(published)
    (published / "figures").mkdir()
    for name, content in (("LICENSE", "mine"), ("use.ipynb", "{}"), ("figures/one.png", "x"), ("notes.md", "hello")):
        (published / name).write_text(content)
    own = {"LICENSE", "use.ipynb", "figures/one.png", "notes.md"}
    assert own <= published_files(published)
    complete(published)
    assert own <= published_files(published)  # still there
    (published / "__pycache__").mkdir()
    for name in ("license.key", "NOTICE.safetensors", "__pycache__/a.txt"):
        (published / name).write_text("")
        assert name not in published_files(published)
        (published / name).unlink()
    (published / "use.ipynb").write_text(json.dumps({"cells": [{"source": "open('/home/me/data/x.png')"}]}))
    (published / "weights.bin").write_bytes(b"")
    problems = "\n".join(check(published))
    assert "use.ipynb contains a path on this machine, /home/me/data/x.png" in problems
    assert "weights.bin does not belong in a pipeline folder" in problems and "LICENSE" not in problems


def test_a_model_of_the_package_is_not_taken_for_one_of_the_hub(tmp_path):
    found = [records._is_on_hub(model) for model in ("someone/animals", "cifar10", str(tmp_path), None)]
    assert found == [True, False, False, False]


def test_the_card_names_the_base_model(published):
    pipeline = make_pipeline(make_unet())
    training = results_of(pipeline)["training"]
    assert "base" not in model_card(pipeline, {"training": training}, set(), "me/pets").partition("## Training")[2][:200]
    for on_hub in (True, False):
        found = {**training, "base_model": "someone/animals", "base_model_on_hub": on_hub}
        text = model_card(pipeline, {"training": found}, set(), "me/pets")
        assert "| base model | someone/animals, from whose weights it started |" in text
        assert ("base_model: someone/animals" in text) == on_hub  # the Hub links to it


def test_the_card_has_the_data_report_without_file_names(published, folder):
    prepared = prepare(str(folder), "train", DataConfig(dataset=str(folder)))
    facts = report(str(folder), prepared).facts
    pipeline = make_pipeline(make_unet())
    training = results_of(pipeline)["training"] | {"data": facts}
    text = model_card(pipeline, {"training": training}, set(), "me/pets")
    assert "| pictures | 35: cat 28, dog 7 |" in text and "made square by: crop" in text
    assert "| doubled pictures | 2 exactly, 1 nearly, 1 of them in different classes |" in text and ".png |" not in text
