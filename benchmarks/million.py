"""A data set of a million pictures: how long a run takes to start, whether its memory grows, and how fast it trains.

    python benchmarks/million.py --folder runs/million      # 4 GB of disk; the first time, minutes for making and decoding

It makes grey pictures of 32x32, in parquet files, and starts a run of few steps of a tiny network on all of them and, in turn,
on the first 50,000. Ratios of the two, and the most memory of each, are printed. Start counts from the start of the program
to the end of its first step. Each run is one process of one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

BATCH = 128
TINY = ["--unet.block_out_channels=[8,16]", "--unet.layers_per_block=1", "--unet.pos_dim=16"]


def make(folder: Path, count: int, rows_per_file: int = 50_000) -> None:
    """Blocks of random grey with a bar whose place is the class: of few bytes, and no two alike."""
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Features, Image

    schema = Features({"image": Image(), "label": ClassLabel(names=[f"class {label}" for label in range(8)])}).arrow_schema
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, rows_per_file):
        file = folder / f"train-{start // rows_per_file:05d}.parquet"
        if file.exists():
            continue
        rng, records = np.random.default_rng(start), []
        for row in range(start, min(start + rows_per_file, count)):
            image = rng.integers(0, 256, (8, 8), np.uint8).repeat(4, 0).repeat(4, 1)
            image[4 * (row % 8) : 4 * (row % 8) + 4] = 255
            written = b"P5 32 32 255\n" + image.tobytes()  # PGM, which is made and read in no time
            records.append({"image": {"bytes": written, "path": None}, "label": row % 8})
        partial = file.with_suffix(".partial")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema), partial)
        partial.replace(file)


def run(data: Path, output: Path, steps: int) -> dict[str, float]:
    """Train for so many steps: seconds until the first one, images a second, and megabytes at an early step and at the end."""
    flags = [f"--dataset={data}", f"--output_dir={output}", f"--max_train_steps={steps}", f"--batch_size={BATCH}"]
    flags += ["--model=attention", *TINY, "--resolution=32", "--num_validation_images=500", "--num_cpu_threads=1"]
    flags += ["--save_images_epochs=0", "--checkpointing_steps=0", "--report_to=none", "--mixed_precision=no"]
    flags += ["--num_ema_snapshots=0", "--random_flip=false", "--fit=crop"]
    started, first = time.time(), None
    with (output.parent / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "cond_ddpm.cli", "train", *flags], stdout=log, stderr=log)
        rows, memory = output / "metrics.jsonl", []
        while process.poll() is None:
            if first is None and rows.exists() and rows.stat().st_size:
                first = time.time() - started
            try:
                maps = psutil.Process(process.pid).memory_maps()  # anonymous: without pages of files, which can be read again
                memory.append((time.time(), sum(one.anonymous for one in maps) / 1e6))
            except psutil.Error:
                break
            time.sleep(0.5)
        if process.wait():
            raise SystemExit((output.parent / "log.txt").read_text())
    assert first is not None
    lines = [row for row in map(json.loads, rows.read_text().splitlines()) if "loss" in row]
    during = [megabytes for at, megabytes in memory if at > started + first]
    rate = statistics.median(line["images_per_second"] for line in lines[len(lines) // 4 :])
    early, late = statistics.median(during[: len(during) // 4 or 1]), statistics.median(during[-(len(during) // 4 or 1) :])
    return {"start": first, "images_per_second": rate, "early": early, "late": late, "most": max(m for _, m in memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the data sets, their caches and the runs")
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    os.environ |= {"HF_DATASETS_CACHE": str(given.folder.resolve() / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folders = {count: given.folder / f"data-{count}" for count in (50_000, given.pictures)}
    for count, folder in folders.items():
        started = time.time()
        make(folder, count)
        print(f"{count:,} pictures are there after {time.time() - started:.0f} seconds", flush=True)
    found: dict[int, list[dict[str, float]]] = {count: [] for count in folders}
    for number in range(given.rounds + 1):  # the first one looks at the pictures and decodes them
        for count, folder in folders.items():
            output = given.folder / f"run-{count}-{number}-{os.getpid()}"
            one = run(folder, output, given.steps if number else 2)
            print(f"{count:,}, round {number}: " + ", ".join(f"{name} {value:.1f}" for name, value in one.items()), flush=True)
            found[count] += [one] if number else []
    for name in ("start", "images_per_second", "early", "late", "most"):
        few, many = (statistics.median(one[name] for one in found[count]) for count in folders)
        print(f"{name}: {few:.1f} with {min(folders):,}, {many:.1f} with {max(folders):,}, ratio {many / few:.3f}")


if __name__ == "__main__":
    main()
