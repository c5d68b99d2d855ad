"""What data cost: decoding all of a data set the first time and again, a batch as a share of a step, and start-up.

    python benchmarks/data.py --dataset PATH [--repeats 5]

The peer is what diffusers' example does: `datasets` with a transform that decodes each picture when it is asked for, under a
DataLoader (without torchvision: Pillow and numpy, which takes less). Prints JSON and a Markdown row for RESULTS.md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

BATCH = 64


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def load(dataset: str, cache: str) -> float:
    """In a process of its own: `load_images` of a process that has just imported it, without the imports."""
    code = f"""
import time, datasets
from pathlib import Path
import cond_ddpm.data as data
datasets.config.HF_DATASETS_CACHE = Path({cache!r})
started = time.perf_counter()
data.load_images({dataset!r})
print(time.perf_counter() - started)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(dataset: str, repeats: int) -> None:
    import machine
    import numpy as np
    import torch
    from training import Contender

    from cond_ddpm.config import TrainConfig
    from cond_ddpm.data import load_images, make_batch
    from cond_ddpm.diffusion import draw_training

    first, again = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            first.append(load(dataset, cache))
            again.append(load(dataset, cache))

    images = load_images(dataset)
    order = np.random.default_rng(0).permutation(len(images))
    config = TrainConfig(batch_size=BATCH)

    def batch(step: int) -> None:
        draw = draw_training(config, step, images.images.shape[1:], torch.device("cpu"))
        make_batch(images, order[step * BATCH : (step + 1) * BATCH], draw.flip)

    hybrid = Contender("ours hybrid", BATCH, False)
    hybrid.step()
    shares, noise_shares = [], []
    for step in range(3 * repeats):
        a_step = seconds(hybrid.step)
        shares.append(seconds(lambda step=step: batch(step)) / a_step)
        noise_shares.append(seconds(lambda: torch.randn(BATCH, *images.images.shape[1:])) / a_step)

    import datasets

    table = datasets.load_dataset(dataset, split="train")
    column = next(name for name, feature in table.features.items() if isinstance(feature, datasets.Image))
    table.set_transform(
        lambda rows: {"x": [torch.from_numpy(np.asarray(p.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1 for p in rows[column]]}
    )
    loader = iter(torch.utils.data.DataLoader(table, batch_size=BATCH, shuffle=True))
    next(loader)
    theirs = statistics.median(seconds(lambda: next(loader)) for _ in range(5 * repeats))
    ours = statistics.median(seconds(lambda step=step: batch(step)) for step in range(5 * repeats))

    command = [sys.executable, "-m", "cond_ddpm.cli", "--help"]
    starts = [seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)) for _ in range(repeats)]
    machine.show(
        [
            {
                "decode and cache, s": statistics.median(first),
                "again, s": statistics.median(again),
                "batch, share of a hybrid's step": statistics.median(shares),
                "of that its noise": statistics.median(noise_shares),
                "datasets with a transform over ours, a batch": theirs / ours,
                "cond-ddpm --help, s": statistics.median(starts),
            }
        ],
        versions=machine.versions("datasets"),
        images=len(images),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    main(**vars(parser.parse_args()))
