"""What the judges of samples look at: the share of real test pictures that each names, whole, shuffled and blurred.

    python benchmarks/judges.py --dataset PATH [NAME=SAMPLES ...]

SAMPLES is what `cond-ddpm evaluate --save_samples` keeps (an .npz or a folder). A judge of shapes does not name pictures
whose parts were shuffled: their textures and colours are all still there. Prints Markdown rows, of 2,000 pictures each: the
share named as the class asked for, and after the slash the share named as no class.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def main(dataset: str, samples: list[str]) -> None:
    import numpy as np
    import torch

    from cond_ddpm.data import load_images
    from cond_ddpm.data.cache import cache_folder
    from cond_ddpm.evaluation.augmentation import blurred, shuffled
    from cond_ddpm.evaluation.classifier import NETWORKS, get_classifier
    from cond_ddpm.evaluation.external_samples import load_samples, with_class_ids

    train, test = load_images(dataset, "train"), load_images(dataset, "test")
    judges = {name: get_classifier(name, train, test, cache_folder() / "evaluate") for name in NETWORKS}
    grey = lambda images: images.mean(1, keepdim=True).expand_as(images)  # noqa: E731
    shown = {
        "real test pictures": (test, lambda images: images),
        "in 8x8 patches, shuffled": (test, lambda images: shuffled(images, test.images.shape[-1] // 8)),
        "in 4x4 patches, shuffled": (test, lambda images: shuffled(images, test.images.shape[-1] // 4)),
        **{f"blurred by {d:g} pixels": (test, lambda images, d=d: blurred(images, d)) for d in (1.0, 2.0, 3.0)},
        "grey": (test, grey),
    }
    for one in samples:
        name, _, path = one.partition("=")
        shown[name] = (with_class_ids(load_samples(Path(path), test.images.shape[-1]), test), lambda images: images)
    print(f"| | {' | '.join(judges)} |\n|{'---|' * (1 + len(judges))}")
    for name, (data, change) in shown.items():
        torch.manual_seed(0)
        counts = np.zeros((len(judges), 2))
        count = min(len(data), 2000)
        for start in range(0, count, 500):
            images = change(torch.from_numpy(data.images[start : start + 500].copy()).float() / 127.5 - 1)
            labels = torch.from_numpy(data.labels[start : start + 500].astype(np.int64))
            for row, judge in zip(counts, judges.values()):
                with torch.no_grad():
                    named = judge.network(images)[1].argmax(1)
                row += (int((named == labels).sum()), int((named == len(data.class_names)).sum()))
        cells = [f"{right / count:.1%} / {none / count:.1%}" for right, none in counts]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="CIFAR-10, by its Hub id or a local folder")
    parser.add_argument("samples", nargs="*", metavar="NAME=SAMPLES")
    main(**vars(parser.parse_args()))
