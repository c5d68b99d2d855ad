"""A small classifier, trained once on the real training split, so that samples of any data set can be measured offline.

May import: `data, files, fingerprints, processes`. Its 128 features give a Frechet distance, and its predictions the share of
samples that are of the requested class. Next: `extractors.py` wraps it as a feature extractor.
"""

import sys
from dataclasses import asdict, dataclass
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
from cond_ddpm.files import replacing
from cond_ddpm.fingerprints import value_fingerprint
from cond_ddpm.processes import process_state

NUM_FEATURES = 128


@dataclass(frozen=True)
class _Recipe:
    """How the classifier is trained. The names of cached classifiers depend on it."""

    version: int = 1
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    images_seen: int = 540_000
    max_epochs: int = 20


_RECIPE = _Recipe()


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(hidden)))
        return F.relu(hidden + self.norm2(self.conv2(inner)))


class Classifier(nn.Module):
    """A small residual network of 64, 128 and 256 channels, at a half, a quarter and an eighth of the image's size.

    `forward`: images (B, C, S, S) in [-1, 1] -> features (B, 128) and logits (B, num_classes).
    """

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        # Its stride keeps operations few where there are many pixels.
        self.stem = nn.Conv2d(in_channels, 64, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.block1, self.block2, self.block3 = _Residual(64), _Residual(128), _Residual(256)
        self.widen2 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.widen3 = nn.Conv2d(128, 256, 3, padding=1, bias=False)
        self.norm2, self.norm3 = nn.BatchNorm2d(128), nn.BatchNorm2d(256)
        self.embed = nn.Linear(256, NUM_FEATURES)
        self.classify = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.block1(F.relu(self.norm(self.stem(images))))  # (B, 64, S / 2, S / 2)
        hidden = F.relu(self.norm2(self.widen2(F.max_pool2d(hidden, 2, ceil_mode=True))))
        hidden = self.block2(hidden)  # (B, 128, S / 4, S / 4)
        hidden = F.relu(self.norm3(self.widen3(F.max_pool2d(hidden, 2, ceil_mode=True))))
        hidden = self.block3(hidden).mean(dim=(2, 3))  # (B, 256)
        features = self.embed(hidden)
        return features, self.classify(F.relu(features))


def get_classifier(data: LabelledImages, test: LabelledImages, cache: Path) -> tuple[Classifier, float]:
    """The classifier for a training split and its accuracy on the test split; trained the first time, then read from a cache.

    With several processes, the main one trains and the others wait; so does another evaluation that needs the same classifier.

    Args:
        data: the training split.
        test: real images that the classifier is not trained on.
        cache: folder of trained classifiers.
    """
    new = lambda: Classifier(len(data.class_names), data.images.shape[1])  # noqa: E731
    key = value_fingerprint([data_fingerprint(data), data_fingerprint(test), asdict(_RECIPE)])
    file = cache / f"classifier-{key}.safetensors"
    state = process_state()
    if state.is_main_process and not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # another evaluation of the same data may be training it
            if not file.is_file():
                network = new()
                accuracy = _train(network, data, test, state.device)
                tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
                with replacing(file) as partial:
                    save_file(tensors, partial, {"accuracy": str(accuracy)})
    state.wait_for_everyone()
    network = new()  # even if it was just trained, because its memory format differs from that of a loaded one
    with safe_open(file, "pt") as opened:
        network.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        accuracy = float(opened.metadata()["accuracy"])
    return network.eval().requires_grad_(False).to(state.device), accuracy


def _train(network: Classifier, data: LabelledImages, test: LabelledImages, device: torch.device) -> float:
    """Train by SGD with one learning-rate cycle, flips, shifts and label smoothing; return the accuracy on the test split."""
    batch_size = min(_RECIPE.batch_size, len(data))
    steps_per_epoch = len(data) // batch_size
    epochs = max(1, min(_RECIPE.max_epochs, round(_RECIPE.images_seen / len(data))))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        network.train().to(device)
        if device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack this overload
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=_RECIPE.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=_RECIPE.weight_decay,
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, _RECIPE.learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.25
        )
        rng, everything = np.random.default_rng(0), np.arange(len(data))
        with tqdm(total=epochs * steps_per_epoch, unit="step", desc="classifier", file=sys.stderr, leave=False) as bar:
            for epoch in range(epochs):
                order = epoch_order(everything, 0, epoch)
                for step in range(steps_per_epoch):
                    indices = order[step * batch_size : (step + 1) * batch_size]
                    flip = rng.random(batch_size) < 0.5 if data.flippable else None
                    batch = make_batch(data, indices, flip, device=device)
                    with torch.autocast(device.type, dtype=torch.bfloat16):
                        logits = network(_shifted(batch.images, rng))[1]
                    loss = F.cross_entropy(logits.float(), batch.class_labels, label_smoothing=0.1)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    cycle.step()
                    bar.update()
    network.eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(test), 500):
            batch = make_batch(test, np.arange(start, min(start + 500, len(test))), device=device)
            correct += int((network(batch.images)[1].argmax(1) == batch.class_labels).sum())
    return correct / len(test)


def _shifted(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image shifted by up to an eighth of its size and padded by reflection."""
    batch, _, height, width = images.shape
    margin = height // 8
    padded = F.pad(images, (margin, margin, margin, margin), mode="reflect").permute(0, 2, 3, 1)
    tops, lefts = (torch.from_numpy(rng.integers(0, 2 * margin + 1, (batch, 1))).to(images.device) for _ in range(2))
    rows, columns = (start + torch.arange(size, device=images.device) for start, size in ((tops, height), (lefts, width)))
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
