"""What a reader sees: numbered pictures without labels, samples among real ones, and the names that the reader gives them.

    python benchmarks/blind.py make --dataset PATH --output DIR NAME=SAMPLES [NAME=SAMPLES ...] [--pictures 40] [--seed 0]
    python benchmarks/blind.py score DIR ANSWERS.txt [ANSWERS.txt ...]

SAMPLES is what `cond-ddpm evaluate --save_samples` keeps (an .npz or a folder). `make` writes `DIR/sheet-N.png`, 20 pictures
each, mixed from every source and from held-out real pictures, as many of each source and evenly over the classes, and
`DIR/key.json`, which the reader does not see. An answer is a line "NUMBER CLASS", or "NUMBER none". `score` prints, for each
source, the share of pictures named as their class, with its standard error, and each class's share.

The reader should not have seen the pictures or the source, and should know the classes. A classifier may be fooled by texture;
where judges disagree, this has the last word.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
REAL, SCALE, COLUMNS, ROWS, MARGIN = "real", 4, 5, 4, 18


def evenly(labels: np.ndarray, number: int, rng: np.random.Generator) -> list[int]:
    """`number` indices, at random, with every class equally often, or once more than the others."""
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in rng.permutation(np.unique(labels))]
    turns = [index for turn in range(max(map(len, shuffled))) for found in shuffled for index in found[turn : turn + 1]]
    return [int(index) for index in turns[:number]]


def sheet(images: list[np.ndarray], first: int) -> Image.Image:
    """Pictures (C, H, W), uint8, magnified without smoothing, each under its number."""
    height, width = images[0].shape[1:]
    cell_height, cell_width = height * SCALE + MARGIN, width * SCALE + MARGIN
    page = Image.new("RGB", (COLUMNS * cell_width, ROWS * cell_height), "white")
    draw = ImageDraw.Draw(page)
    for place, image in enumerate(images):
        x, y = place % COLUMNS * cell_width + MARGIN // 2, place // COLUMNS * cell_height
        pixels = np.broadcast_to(image, (3, height, width)).transpose(1, 2, 0)
        draw.text((x, y + 3), str(first + place), fill="black")
        page.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize((width * SCALE, height * SCALE), 0), (x, y + MARGIN))
    return page


def make(dataset: str, sources: dict[str, Path], output: Path, pictures: int, seed: int) -> None:
    from cond_ddpm.data import load_images
    from cond_ddpm.evaluation.external_samples import load_samples, with_class_ids

    rng = np.random.default_rng(seed)
    real = load_images(dataset, "test")
    found = {REAL: real}
    for name, path in sources.items():
        found[name] = with_class_ids(load_samples(path, real.images.shape[-1]), real)
    shown = [(name, index) for name, data in found.items() for index in evenly(data.labels, pictures, rng)]
    order = [shown[place] for place in rng.permutation(len(shown))]
    output.mkdir(parents=True, exist_ok=True)
    page_size = COLUMNS * ROWS
    for start in range(0, len(order), page_size):
        images = [found[name].images[index] for name, index in order[start : start + page_size]]
        sheet(images, start + 1).save(output / f"sheet-{start // page_size + 1}.png")
    key = [
        {"number": place + 1, "source": name, "class": real.class_names[found[name].labels[index]], "index": index}
        for place, (name, index) in enumerate(order)
    ]
    (output / "key.json").write_text(json.dumps(key, indent=1))
    print(f"{len(order)} pictures in {output}; the classes are {', '.join(real.class_names)}")


def read_answers(file: Path, numbers: set[int]) -> dict[int, str]:
    """Number -> the name given.

    Raises:
        ValueError: a line of another form, an unknown number, or a picture without an answer.
    """
    answers = {}
    for line in filter(None, map(str.strip, file.read_text().splitlines())):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or int(number) not in numbers or not name.strip():
            raise ValueError(f"{file}: expected lines 'NUMBER CLASS' with a number of the sheets, got {line!r}.")
        answers[int(number)] = name.strip().lower()
    if missing := sorted(numbers - answers.keys()):
        raise ValueError(f"{file}: expected an answer for each picture, got none for {', '.join(map(str, missing))}.")
    return answers


def score(key: list[dict], answers: list[dict[int, str]]) -> list[dict]:
    """A row for each source: pictures shown, share named as their class, its standard error, and each class's share."""
    rows = []
    for source in dict.fromkeys(entry["source"] for entry in key):
        right: dict[str, list[bool]] = {}
        for entry in (entry for entry in key if entry["source"] == source):
            right.setdefault(entry["class"], []).extend(given[entry["number"]] == entry["class"].lower() for given in answers)
        every = [one for of_class in right.values() for one in of_class]
        share = sum(every) / len(every)
        row = {"source": source, "answers": len(every), "named": share}
        row["standard error"] = math.sqrt(share * (1 - share) / len(every))
        rows.append(row | {name: sum(right[name]) / len(right[name]) for name in sorted(right)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--dataset", required=True)
    making.add_argument("--output", type=Path, required=True)
    making.add_argument("--pictures", type=int, default=40, help="of each source and of real ones (default: 40)")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("sources", nargs="+", metavar="NAME=SAMPLES")
    scoring = commands.add_parser("score")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("answers", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "make":
        pairs = [source.partition("=") for source in given.sources]
        make(given.dataset, {name: Path(path) for name, _, path in pairs}, given.output, given.pictures, given.seed)
    else:
        import machine

        key = json.loads((given.folder / "key.json").read_text())
        numbers = {entry["number"] for entry in key}
        machine.show(score(key, [read_answers(file, numbers) for file in given.answers]))
