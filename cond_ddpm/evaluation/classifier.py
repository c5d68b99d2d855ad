"""Classifiers of the real images, trained once, so that samples of any data set can be measured without the internet.

May import: `data, files, fingerprints, hardware, pretrained_models, processes, evaluation.{augmentation, classifier_networks,
trust}`. The features of the first give a Fréchet distance; both say which samples are of the requested class. Next:
`extractors.py` wraps them; `usefulness.py` and `guidance.py` train others by the same functions.

Those of CIFAR-10 come with the package, in `pretrained/judges`. A file there is taken where its name is that of the data and
of the recipe (`classifier_key`), and none is trained.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from cond_ddpm.data import LabelledImages, data_fingerprint, epoch_order, joined, make_batch
from cond_ddpm.data.choices import choose_flip
from cond_ddpm.evaluation.augmentation import destroyed, shuffled, varied
from cond_ddpm.evaluation.classifier_networks import AttentionClassifier, ConvolutionalClassifier
from cond_ddpm.evaluation.trust import least_accuracy, wilson_interval
from cond_ddpm.files import write
from cond_ddpm.fingerprints import value_fingerprint
from cond_ddpm.hardware import precision_for
from cond_ddpm.pretrained_models import pretrained_folder
from cond_ddpm.processes import process_state

# The first has the features. Each is trained by the optimizer that its kind of network is usually trained by.
NETWORKS: dict[str, type[ConvolutionalClassifier | AttentionClassifier]] = {
    "convolutional": ConvolutionalClassifier,
    "attention": AttentionClassifier,
}
_PATCHES = 4  # in each direction: 8x8 pixels each of a 32x32 image


@dataclass(frozen=True)
class Recipe:
    """How classifiers are trained. The names of cached classifiers depend on what it says for their data."""

    version: int = 2
    min_steps: int = 625  # smaller batches see to that: what little can be learned of few images takes steps, not passes
    min_batch_size: int = 32
    max_batch_size: int = 128
    destroyed: float = 0.25  # share of a batch that loses its shapes, and with them its class
    epochs: int = 20  # within the limits of the next two
    min_images_seen: int = 25_600
    max_images_seen: int = 640_000

    def images_seen(self, count: int) -> int:
        """For a training split of `count` images."""
        return min(max(self.epochs * count, self.min_images_seen), self.max_images_seen)

    def batch_size(self, count: int) -> int:
        return min(max(self.images_seen(count) // self.min_steps, self.min_batch_size), self.max_batch_size)

    def steps(self, count: int) -> int:
        return self.images_seen(count) // self.batch_size(count)


RECIPE = Recipe()
_FEW_HELD_OUT = 200  # images; if fewer leave it open whether a judge can be trusted, it is tested by cross-fitting too
_FOLDS = 3
_TIMED_STEPS = 4


@dataclass(frozen=True)
class Judge:
    """A trained classifier: a network of `NETWORKS`, frozen, and how it did on real images that it was not trained on.

    Args:
        network: images (B, C, S, S) in [-1, 1] -> features (B, 128) and logits (B, num_classes + 1); the last is no class.
        accuracy: share of the held-out images whose class it names. If these are too few to say whether it can be trusted,
            that of `_FOLDS` other networks, each trained on all images but a part, and tested on that part (cross-fitting).
        tested: how many images the accuracy is the share of.
        shuffled_accuracy: the same after each image was cut into 4x4 patches and these were shuffled: a judge of shapes must
            not recognise them; None where the size is not a multiple of 4.
    """

    network: nn.Module
    accuracy: float
    tested: int
    shuffled_accuracy: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy is with 95% confidence."""
        return wilson_interval(self.accuracy, self.tested)

    @property
    def record(self) -> dict[str, Any]:
        """How far it can be trusted, for results.json."""
        return {
            "held_out_accuracy": self.accuracy,
            "held_out_accuracy_interval": list(self.interval),
            "tested_images": self.tested,
            "held_out_accuracy_shuffled": self.shuffled_accuracy,
        }


def get_classifier(name: str, data: LabelledImages, test: LabelledImages, cache: Path) -> Judge:
    """The classifier for a training split: the one that comes with the package, or trained once, then read from a cache.

    With several processes, the main one trains and the others wait; so does another evaluation that needs the same classifier.

    Args:
        name: one of `NETWORKS`.
        data: the training split.
        test: real images that the classifier is not trained on.
        cache: folder of trained classifiers.
    """
    state = process_state()
    if state.is_main_process:
        train_classifier(name, data, test, cache, state.device)
    state.wait_for_everyone()
    return load_classifier(name, data, test, cache, state.device)


def classifier_file(name: str, data: LabelledImages, test: LabelledImages, cache: Path) -> Path:
    """Where the classifier is, or will be once it is trained."""
    file_name = f"classifier-{name}-{classifier_key(data, test)}.safetensors"
    shipped = pretrained_folder() / "judges" / file_name  # so that those of CIFAR-10 are the same for everybody
    return shipped if shipped.is_file() else cache / file_name


def train_classifier(name: str, data: LabelledImages, test: LabelledImages, cache: Path, device: torch.device) -> None:
    """Train it and write its file, unless that is there."""
    file = classifier_file(name, data, test, cache)
    if file.is_file():
        return
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # another evaluation of the same data may be training it
        if not file.is_file():
            judge = new_judge(name, data, test, device)
            record = {"accuracy": str(judge.accuracy), "tested": str(judge.tested)}
            if judge.shuffled_accuracy is not None:
                record["shuffled_accuracy"] = str(judge.shuffled_accuracy)
            tensors = {key: tensor.contiguous().cpu() for key, tensor in judge.network.state_dict().items()}
            write(file, save(tensors, record))


def load_classifier(name: str, data: LabelledImages, test: LabelledImages, cache: Path, device: torch.device) -> Judge:
    network = _new_network(name, data)  # also if it was just trained, for its memory format differs from that of a loaded one
    with safe_open(classifier_file(name, data, test, cache), "pt") as opened:
        network.load_state_dict({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
        record = opened.metadata()
    shuffled_accuracy = float(record["shuffled_accuracy"]) if "shuffled_accuracy" in record else None
    tested = int(record.get("tested", len(test)))  # the files that come with the package do not say it
    return Judge(network.eval().requires_grad_(False).to(device), float(record["accuracy"]), tested, shuffled_accuracy)


def classifier_key(data: LabelledImages, test: LabelledImages) -> str:
    """What the name of a classifier's file ends with: a function of the images and of the recipe."""
    batch_size = RECIPE.batch_size(len(data))
    recipe: list[Any] = [RECIPE.version, batch_size, int(batch_size * RECIPE.destroyed), RECIPE.steps(len(data))]
    recipe += ["not mirrored"] if data.flippable and not mirrors_of(data) else []
    return value_fingerprint([data_fingerprint(data), data_fingerprint(test), recipe])


def mirrors_of(data: LabelledImages) -> bool:
    """Whether judges see images mirrored, as the training of a model decides it by itself.

    A judge that saw left arrows mirrored would take both sides for the same. It takes up to a second, so it is asked once.
    """
    return choose_flip(data)[0]


def new_judge(
    name: str,
    data: LabelledImages,
    test: LabelledImages,
    device: torch.device,
    recipe: Recipe | None = None,
    folds: int = _FOLDS,
) -> Judge:
    """Train one, and test it on images that it was not trained on.

    Args:
        name, data, test: as for `get_classifier`.
        device: where it is trained.
        recipe: how; None for that of `evaluate`.
        folds: of cross-fitting, if `test` has too few images to say whether the judge can be trusted; 0 for none.
    """
    mirrors = mirrors_of(data)
    network = trained_network(name, data, device, recipe, 0, mirrors)
    shuffled_accuracy = None
    if not test.images.shape[-1] % _PATCHES:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            shuffled_accuracy = accuracy(network, test, device, shuffle=True)
    judge = Judge(network, accuracy(network, test, device), len(test), shuffled_accuracy)
    low, high = judge.interval
    if len(test) >= _FEW_HELD_OUT or not folds or not low < least_accuracy(len(data.class_names)) <= high:
        return judge
    everything = data if data_fingerprint(data) == data_fingerprint(test) else joined(data, test)
    # Sorted by class, each fold has as many images of a class as the others.
    order = np.random.default_rng(0).permutation(len(everything))
    fold_of = np.empty(len(everything), np.int64)
    fold_of[order[np.argsort(everything.labels[order], kind="stable")]] = np.arange(len(everything)) % folds
    right = 0.0
    for fold in range(folds):
        part, rest = everything.part(fold_of == fold), everything.part(fold_of != fold)
        right += len(part) * accuracy(trained_network(name, rest, device, recipe, 0, mirrors), part, device)
    return Judge(network, right / len(everything), len(everything), shuffled_accuracy)


def seconds_per_step(
    name: str, data: LabelledImages, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How long a step of the training takes here, by a few steps of a network that is thrown away."""
    size = RECIPE.batch_size(len(data))
    recipe = Recipe(epochs=0, min_images_seen=_TIMED_STEPS * size, min_batch_size=size, max_batch_size=size)
    started = clock()
    trained_network(name, data, device, recipe, 0, mirrors=False)
    return (clock() - started) / _TIMED_STEPS


def most_trainings(test: LabelledImages) -> int:
    """How many networks `new_judge` trains at most, if it is given these held-out images."""
    return 1 + _FOLDS if len(test) < _FEW_HELD_OUT else 1


def _new_network(name: str, data: LabelledImages) -> ConvolutionalClassifier | AttentionClassifier:
    return NETWORKS[name](len(data.class_names), data.images.shape[1:])


def _optimizer(name: str, network: nn.Module) -> tuple[torch.optim.Optimizer, float]:
    """And its highest learning rate."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "convolutional":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), 0.1
    return torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.05), 1.5e-3


def trained_network(
    name: str,
    data: LabelledImages,
    device: torch.device,
    recipe: Recipe | None = None,
    seed: int = 0,
    mirrors: bool | None = None,
) -> ConvolutionalClassifier | AttentionClassifier:
    """Train with one learning-rate cycle and label smoothing on varied images, and on destroyed ones as a class of their own.

    Args:
        name: one of `NETWORKS`.
        data: what it is trained on.
        device: where.
        recipe: how; None for that of `evaluate`.
        seed: of the weights, the order and the variations.
        mirrors: whether half of the images are mirrored; None for `mirrors_of` the images.
    """
    mirrors = mirrors_of(data) if mirrors is None else mirrors
    network, recipe = _new_network(name, data), recipe or RECIPE
    batch_size = min(recipe.batch_size(len(data)), len(data))
    lost = int(batch_size * recipe.destroyed)
    steps, steps_per_epoch = recipe.steps(len(data)), len(data) // batch_size
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        network.train().to(device)
        if device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack this overload
        some = np.random.default_rng(0).permutation(len(data))[:5000]
        network.prepare(make_batch(data, some, device=device).images)
        optimizer, learning_rate = _optimizer(name, network)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
        )
        rng, everything = np.random.default_rng(seed), np.arange(len(data))
        for step in tqdm(range(steps), unit="step", desc=f"{name} classifier", file=sys.stderr, leave=False):
            epoch, place = divmod(step, steps_per_epoch)
            if place == 0:
                order = epoch_order(everything, seed, epoch)
            flip = rng.random(batch_size) < 0.5 if mirrors else None
            batch = make_batch(data, order[place * batch_size : (place + 1) * batch_size], flip, device=device)
            images = torch.cat([destroyed(batch.images[:lost]), varied(batch.images[lost:])])
            labels = batch.class_labels.clone()
            labels[:lost] = len(data.class_names)
            if device.type == "cpu":
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision_for(device) == "bf16"):
                logits = network(images)[1]
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, test: LabelledImages, device: torch.device, shuffle: bool = False) -> float:
    """The share of the images, whole or with their patches shuffled, whose class the network names."""
    correct = 0
    for start in range(0, len(test), 500):
        batch = make_batch(test, np.arange(start, min(start + 500, len(test))), device=device)
        images = shuffled(batch.images, _PATCHES) if shuffle else batch.images
        correct += int((network(images)[1].argmax(1) == batch.class_labels).sum())
    return correct / len(test)
