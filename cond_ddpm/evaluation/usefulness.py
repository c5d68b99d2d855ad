"""Whether samples are as useful as real images: a classifier is trained on each, and tested on held-out real images.

May import: `data, evaluation.classifier`. Next: `evaluate.py` puts what is found into results.json.
This is the classification accuracy score of Ravuri & Vinyals 2019 (arXiv 1905.10887). "Both" is whether samples help beside
the real images (Azizi 2023, arXiv 2304.08466).
"""

from typing import Any

import numpy as np
import torch

from cond_ddpm.data import LabelledImages, joined
from cond_ddpm.evaluation.classifier import Recipe, accuracy, mirrors_of, trained_network

_NETWORK = "convolutional"
# The same number of steps for all three, so that twice as many images are not also twice the training.
_RECIPE = Recipe(destroyed=0, epochs=0)  # 640 steps of 40 images
_SEEDS = 3


def measure_usefulness(
    samples: LabelledImages, real: LabelledImages, held_out: LabelledImages, device: torch.device
) -> dict[str, Any]:
    """The record `usefulness` of results.json.

    Args:
        samples: what is measured.
        real: real images. As many of them as there are samples are chosen at random, if there are more.
        held_out: real images that the classifiers are tested on.
        device: where they are trained.
    """
    count = min(len(samples), len(real))
    chosen = [part.part(np.random.default_rng(0).permutation(len(part))[:count]) for part in (samples, real)]
    sets = {"samples": chosen[0], "real": chosen[1], "both": joined(*chosen)}
    found: dict[str, Any] = {
        "num_images": count,
        "num_held_out": len(held_out),
        "network": _NETWORK,
        "steps": _RECIPE.steps(count),
        "seeds": _SEEDS,
    }
    mirrors = mirrors_of(real)  # for all three alike
    accuracies = {
        name: [
            accuracy(trained_network(_NETWORK, data, device, _RECIPE, seed, mirrors), held_out, device)
            for seed in range(_SEEDS)
        ]
        for name, data in sets.items()
    }
    found["accuracy"] = {name: float(np.mean(values)) for name, values in accuracies.items()}
    found["accuracy_std"] = {name: float(np.std(values, ddof=1)) for name, values in accuracies.items()}
    return found
