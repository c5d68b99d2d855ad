"""What measuring costs beyond the feature extractor: images/s of the statistics against those of the bare extractor.

    python benchmarks/evaluation.py [--images 4000] [--repeats 5]

Prints JSON and a Markdown row for RESULTS.md: the classifier (untrained; the same operations), random images, in turn.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def main(images: int, repeats: int) -> None:
    import machine
    import numpy as np
    import torch

    from cond_ddpm.evaluation.classifier_networks import NUM_FEATURES, ConvolutionalClassifier
    from cond_ddpm.evaluation.extractors import Extractor
    from cond_ddpm.evaluation.statistics import Tally

    network = ConvolutionalClassifier(10, (3, 32, 32)).eval()

    @torch.no_grad()
    def extract(batch):
        features, logits = network(torch.from_numpy(batch).float() / 127.5 - 1)
        return features, logits[None]

    extractor = Extractor("classifier", extract, NUM_FEATURES, ("convolutional",), {})
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, images)
    starts = range(0, images, 500)
    extract(data[:500])  # the first is slower than all others
    ratios = []
    for _ in range(repeats):
        started = time.perf_counter()
        for start in starts:
            extract(data[start : start + 500])
        bare = time.perf_counter() - started
        tally = Tally(extractor, 10, 5000, data.shape[1:])
        started = time.perf_counter()
        for start in starts:
            rows = range(start, min(start + 500, images))
            tally.update(rows, data[start : start + 500], labels[start : start + 500])
        ratios.append(bare / (time.perf_counter() - started))
    machine.show([{"throughput_relative_to_extractor": statistics.median(ratios)}], all=ratios)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    main(**vars(parser.parse_args()))
