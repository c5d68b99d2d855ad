"""Classifiers of the real images, trained once, so that samples of any data set can be measured without the internet.

May import: `data, files, fingerprints, hardware, pretrained_models, processes, evaluate.{augmentation, classifier_networks}`.
The features of the first give a Frechet distance; both say which samples are of the requested class. Next: `extractors.py`
wraps them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from cond_ddpm.data import LabelledImages, data_fingerprint, epoch_order, make_batch
from cond_ddpm.evaluate.augmentation import destroyed, shuffled, varied
from cond_ddpm.evaluate.classifier_networks import AttentionClassifier, ConvolutionalClassifier
from cond_ddpm.files import replacing
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
class _Recipe:
    """How the classifiers are trained. The names of cached classifiers depend on what it says for their data."""

    version: int = 2
    batch_size: int = 128
    destroyed: int = 32  # images of a batch that lose their shapes, and with them their class
    epochs: int = 20  # within the limits of the next two
    min_images_seen: int = 12_800
    max_images_seen: int = 640_000

    def steps(self, count: int) -> int:
        """For a training split of `count` images."""
        return min(max(self.epochs * count, self.min_images_seen), self.max_images_seen) // self.batch_size


_RECIPE = _Recipe()


@dataclass(frozen=True)
class Judge:
    """A trained classifier: a network of `NETWORKS`, frozen, and how it did on real images that it was not trained on.

    Args:
        network: images (B, C, S, S) in [-1, 1] -> features (B, 128) and logits (B, num_classes + 1); the last is no class.
        accuracy: share of the held-out images whose class it names.
        shuffled_accuracy: the same after each image was cut into 4x4 patches and these were shuffled: a judge of shapes must
            not recognise them; None where the size is not a multiple of 4.
    """

    network: nn.Module
    accuracy: float
    shuffled_accuracy: float | None


def get_classifier(name: str, data: LabelledImages, test: LabelledImages, cache: Path) -> Judge:
    """The classifier for a training split: the one that comes with the package, or trained once, then read from a cache.

    With several processes, the main one trains and the others wait; so does another evaluation that needs the same classifier.

    Args:
        name: one of `NETWORKS`.
        data: the training split.
        test: real images that the classifier is not trained on.
        cache: folder of trained classifiers.
    """
    new = lambda: NETWORKS[name](len(data.class_names), data.images.shape[1:])  # noqa: E731
    file_name = f"classifier-{name}-{classifier_key(data, test)}.safetensors"
    shipped = pretrained_folder() / "judges" / file_name  # so that those of CIFAR-10 are the same for everybody
    file = shipped if shipped.is_file() else cache / file_name
    state = process_state()
    if state.is_main_process and not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # another evaluation of the same data may be training it
            if not file.is_file():
                network = new()
                record = _train(network, name, data, test, state.device)
                tensors = {key: tensor.contiguous().cpu() for key, tensor in network.state_dict().items()}
                with replacing(file) as partial:
                    save_file(tensors, partial, record)
    state.wait_for_everyone()
    network = new()  # even if it was just trained, because its memory format differs from that of a loaded one
    with safe_open(file, "pt") as opened:
        network.load_state_dict({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
        record = opened.metadata()
    shuffled_accuracy = float(record["shuffled_accuracy"]) if "shuffled_accuracy" in record else None
    return Judge(network.eval().requires_grad_(False).to(state.device), float(record["accuracy"]), shuffled_accuracy)


def classifier_key(data: LabelledImages, test: LabelledImages) -> str:
    """What the name of a classifier's file ends with: a function of the images and of the recipe."""
    recipe = [_RECIPE.version, _RECIPE.batch_size, _RECIPE.destroyed, _RECIPE.steps(len(data))]
    return value_fingerprint([data_fingerprint(data), data_fingerprint(test), recipe])


def _optimizer(name: str, network: nn.Module) -> tuple[torch.optim.Optimizer, float]:
    """And its highest learning rate."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "convolutional":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), 0.1
    return torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.05), 1.5e-3


def _train(
    network: ConvolutionalClassifier | AttentionClassifier,
    name: str,
    data: LabelledImages,
    test: LabelledImages,
    device: torch.device,
) -> dict[str, str]:
    """Train with one learning-rate cycle and label smoothing on varied images, and on destroyed ones as a class of their own.

    Returns:
        The accuracies, as the metadata of the classifier's file.
    """
    recipe = _RECIPE
    batch_size = min(recipe.batch_size, len(data))
    lost = batch_size * recipe.destroyed // recipe.batch_size
    steps, steps_per_epoch = recipe.steps(len(data)), len(data) // batch_size
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
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
        rng, everything = np.random.default_rng(0), np.arange(len(data))
        for step in tqdm(range(steps), unit="step", desc=f"{name} classifier", file=sys.stderr, leave=False):
            epoch, place = divmod(step, steps_per_epoch)
            if place == 0:
                order = epoch_order(everything, 0, epoch)
            flip = rng.random(batch_size) < 0.5 if data.flippable else None
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
        network.eval()
        record = {"accuracy": str(_accuracy(network, test, device))}
        if not test.images.shape[-1] % _PATCHES:
            record["shuffled_accuracy"] = str(_accuracy(network, test, device, shuffle=True))
        return record


@torch.no_grad()
def _accuracy(network: nn.Module, test: LabelledImages, device: torch.device, shuffle: bool = False) -> float:
    correct = 0
    for start in range(0, len(test), 500):
        batch = make_batch(test, np.arange(start, min(start + 500, len(test))), device=device)
        images = shuffled(batch.images, _PATCHES) if shuffle else batch.images
        correct += int((network(images)[1].argmax(1) == batch.class_labels).sum())
    return correct / len(test)
