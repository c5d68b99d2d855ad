"""The last step of the quickstart: draw digits, and count how many a classifier recognises as the requested digit.

May import: everything, since nothing imports it. The classifier is scikit-learn's, trained here on real digits.
It is at the end of the data flow: it writes a labelled grid and prints two accuracies.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from cond_ddpm.cli import guarded
from cond_ddpm.data import MNIST5K, load_images


def digit_classifier():
    """A support vector machine trained on the 4,000 training digits of mnist5k, and its accuracy on the other 1,000.

    It also sees each training digit shifted by one pixel in four directions, since samples are not centred like MNIST.
    """
    from sklearn.svm import SVC

    train, test = (load_images(MNIST5K, split) for split in ("train", "test"))
    shifted = [np.roll(train.images, shift, axis=axis) for axis in (2, 3) for shift in (-1, 1)]
    images = np.concatenate([train.images, *shifted])
    classifier = SVC(C=10).fit(_features(images), np.tile(train.labels, 5))
    return classifier, float(np.mean(classifier.predict(_features(test.images)) == test.labels))


def _features(images: np.ndarray) -> np.ndarray:
    """(N, 1, 32, 32) uint8 -> (N, 256) in [0, 1]: means of 2x2 pixels, which noise in single pixels hardly changes."""
    return images.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(len(images), -1) / 255


def judge_digits(model: str, images_per_class: int, num_inference_steps: int, output: Path) -> None:
    import torch
    from accelerate import PartialState

    from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
    from cond_ddpm.sampling import generate
    from cond_ddpm.visualize import class_grid

    pipeline = CondDDPMPipeline.from_pretrained(model).to(PartialState().device)
    labels = np.repeat(np.arange(10), images_per_class)
    with torch.autocast(pipeline.device.type, dtype=torch.bfloat16):
        images = generate(pipeline, labels.tolist(), range(len(labels)), num_inference_steps=num_inference_steps)
    classifier, held_out = digit_classifier()
    accuracy = float(np.mean(classifier.predict(_features(images)) == labels))
    shown = images.reshape(10, images_per_class, *images.shape[1:])[:, :10]
    class_grid(shown.reshape(-1, *images.shape[1:]), [str(digit) for digit in range(10)], output)
    print(f"held-out real digits that the classifier recognises: {held_out:.1%} of {len(load_images(MNIST5K, 'test'))}")
    print(f"samples recognised as the requested digit: {accuracy:.1%} of {len(labels)}")
    print(f"grid of samples: {output}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cond_ddpm.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="pipeline folder trained on mnist5k")
    parser.add_argument("--images_per_class", type=int, default=50)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    return guarded(judge_digits, *vars(parser.parse_args(arguments)).values())


if __name__ == "__main__":
    sys.exit(main())
