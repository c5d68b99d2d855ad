"""The blind reading: the sheet shows what the key says, evenly over the classes, and the score is what can be counted."""

import importlib.util
import json

import numpy as np
import pytest
from conftest import NAMES, ROOT, shapes
from PIL import Image

spec = importlib.util.spec_from_file_location("blind", ROOT / "benchmarks" / "blind.py")
blind = importlib.util.module_from_spec(spec)
spec.loader.exec_module(blind)


def test_every_class_is_shown_equally_often():
    labels = np.repeat([0, 1, 2], [50, 3, 7])
    chosen = blind.evenly(labels, 9, np.random.default_rng(0))
    assert len(set(chosen)) == 9 and np.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert sorted(np.bincount(labels[blind.evenly(labels, 10, np.random.default_rng(0))])) == [3, 3, 4]


def test_the_sheets_show_what_the_key_says(shapes_parquet, tmp_path, monkeypatch):
    images, labels = shapes(30)
    samples = 255 - images
    np.savez(tmp_path / "samples.npz", images=samples, class_labels=labels)
    from cond_ddpm import data

    original = data.load_images
    real = original(str(shapes_parquet), "train", 8)
    monkeypatch.setattr(data, "load_images", lambda dataset, split: real)  # the stand-in has no test split
    blind.make("stand-in", {"ours": tmp_path / "samples.npz"}, tmp_path / "out", 12, seed=0)
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    assert [entry["number"] for entry in key] == list(range(1, 25))
    assert {entry["source"] for entry in key} == {"ours", "real"} and len(list((tmp_path / "out").glob("*.png"))) == 2
    size, margin = 8 * blind.SCALE, blind.MARGIN
    for entry in key:
        page, place = divmod(entry["number"] - 1, blind.COLUMNS * blind.ROWS)
        x, y = place % blind.COLUMNS * (size + margin) + margin // 2, place // blind.COLUMNS * (size + margin) + margin
        picture = np.asarray(Image.open(tmp_path / "out" / f"sheet-{page + 1}.png"))[y : y + size, x : x + size]
        expected = samples[entry["index"]] if entry["source"] == "ours" else real.images[entry["index"]].transpose(1, 2, 0)
        assert np.array_equal(picture[:: blind.SCALE, :: blind.SCALE], np.broadcast_to(expected, (8, 8, 3)))
        found = labels[entry["index"]] if entry["source"] == "ours" else real.labels[entry["index"]]
        assert entry["class"] == NAMES[found]


def test_the_score_counts_by_hand(tmp_path):
    key = [
        {"number": 1, "source": "real", "class": "cat"},
        {"number": 2, "source": "ours", "class": "cat"},
        {"number": 3, "source": "ours", "class": "dog"},
    ]
    file = tmp_path / "answers.txt"
    file.write_text("1 cat\n\n2 none\n3 Dog\n")
    first = blind.read_answers(file, {1, 2, 3})
    real, ours = blind.score(key, [first, {1: "cat", 2: "cat", 3: "cat"}])
    assert real == {"source": "real", "answers": 2, "named": 1.0, "standard error": 0.0, "cat": 1.0}
    assert ours == {"source": "ours", "answers": 4, "named": 0.5, "standard error": 0.25, "cat": 0.5, "dog": 0.5}
    for wrong in ("1 cat\n2 cat\n", "1 cat\n2\n3 dog\n", "4 cat\n"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"answers\.txt: expected"):
            blind.read_answers(file, {1, 2, 3})
