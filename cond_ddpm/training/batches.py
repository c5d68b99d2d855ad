"""The images of a run, held in memory, and which of them each step sees.

May import: `config, data, diffusion`, and `training.{network, plan, speed}`. Next in the data flow: `step.py` trains on a
batch of the images.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.data import CHOSEN
from cond_ddpm.config.settings import unless_chosen
from cond_ddpm.data import (
    Batch,
    LabelledImages,
    Prepared,
    Report,
    balanced_order,
    data_fingerprint,
    epoch_order,
    hold_out,
    make_batch,
    prepare,
    report,
)
from cond_ddpm.diffusion import StepRandomness
from cond_ddpm.training.network import with_base
from cond_ddpm.training.plan import LENGTHS
from cond_ddpm.training.speed import chosen_here


@dataclasses.dataclass
class TrainingData:
    """A data set, split into images to train on and images held out for the validation loss."""

    images: LabelledImages
    train_indices: np.ndarray
    val_indices: np.ndarray
    batch_size: int
    seed: int
    random_flip: bool
    class_sampling: str
    prepared: Prepared[TrainConfig]
    notes: list[str]  # what was chosen besides, in words; empty in a resumed run
    _order: tuple[int, np.ndarray] | None = None  # of the current epoch

    @functools.cached_property
    def report(self) -> Report:
        """What was found in the data. Only the main process asks for it: near doubles take their time."""
        return report(self.prepared.config.dataset, self.prepared)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.images.shape[1:]

    @property
    def num_classes(self) -> int:
        return len(self.images.class_names)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the last images of an epoch's order wait for another epoch."""
        return len(self.train_indices) // self.batch_size

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, that the step with this index (from 0) belongs to."""
        return step // self.steps_per_epoch + 1

    def batch_indices(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of the global batch of a step: a function of (seed, step)."""
        epoch, position = self.epoch_of(step), step % self.steps_per_epoch
        if self._order is None or self._order[0] != epoch:
            indices = self.train_indices
            if self.class_sampling == "balanced":
                order = balanced_order(indices, self.images.labels[indices], self.seed, epoch)
            else:
                order = epoch_order(indices, self.seed, epoch)
            self._order = epoch, order
        first = position * self.batch_size
        return self._order[1][first : first + self.batch_size]

    def batch(self, indices: np.ndarray, randomness: StepRandomness, device: torch.device) -> Batch:
        """What a step sees of the images at these indices, changed by the random choices for them."""
        flip, augmentation = randomness.flip if self.random_flip else None, randomness.augmentation
        if augmentation is not None and flip is not None:  # mirrored images are ordinary then: the network is not told of it
            augmentation = augmentation * np.array([0, 1, 1, 1, 1], np.float32)
        return make_batch(self.images, indices, flip, augmentation, device=device)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data, to refuse other data when the run resumes."""
        fingerprint = data_fingerprint(self.images)
        return {"class_names": self.images.class_names, "num_images": len(self.images), "fingerprint": fingerprint}


def load_training_data(
    config: TrainConfig, accelerator: Accelerator, recorded: dict[str, Any] | None = None
) -> tuple[TrainConfig, TrainingData]:
    """The data set, decoded once, by the main process; and the settings with what was chosen by its pictures.

    Args:
        config: the settings. What they leave open is chosen; or else it is as in `recorded`.
        accelerator: of the run.
        recorded: the settings of the checkpoint from which the run resumes.

    Raises:
        ValueError: fewer training images than a batch has; a base model that does not fit the settings.
        MemoryError: no network that could be chosen fits into the memory.
    """
    with accelerator.main_process_first():
        if recorded is None:
            prepared = load_training_images(config)
        else:
            config = as_recorded(config, recorded)
            prepared = prepare(config.dataset, config.train_split, config, chooses=False)
    images, config = prepared.images, prepared.config
    train_indices, val_indices = hold_out(images, config.num_validation_images)
    shape, num_classes = images.images.shape[1:], len(images.class_names)
    notes: list[str] = []
    if recorded is None:
        config, notes = chosen_here(config, accelerator, shape, len(train_indices), num_classes)
    return config, TrainingData(
        images,
        train_indices,
        val_indices,
        config.batch_size,
        config.seed,
        prepared.random_flip,
        config.class_sampling,
        prepared,
        notes,
    )


def load_training_images(config: TrainConfig) -> Prepared[TrainConfig]:
    """The data set, and the settings with what was chosen by its pictures and by the base model."""
    based = with_base(config)
    prepared = prepare(based.dataset, based.train_split, based.with_open({"model": "hybrid"}))
    if config.resolution is None and based.resolution is not None:
        prepared.reasons["resolution"] = f"the size of {config.init_from}"
    if config.channels is None and based.channels is not None:
        prepared.reasons["channels"] = f"grey or in colour as {config.init_from} (--channels)"
    return prepared


def as_recorded(config: TrainConfig, recorded: dict[str, Any]) -> TrainConfig:
    """The settings of a resumed run: what they leave open is as in its checkpoint.

    If `minutes` is another number than the recorded one, the steps that were chosen change in proportion.
    """
    before = {**unless_chosen(TrainConfig), **recorded}
    names = {*CHOSEN, *unless_chosen(TrainConfig), "init_from"} - {*LENGTHS}
    minutes = before.get("minutes")
    if minutes is not None and all(getattr(config, name) is None for name in LENGTHS):
        names |= {"minutes", *LENGTHS}
        if config.minutes not in (None, minutes):
            steps = round(before["max_train_steps"] * config.minutes / minutes)
            before |= {"max_train_minutes": config.minutes, "max_train_steps": steps}
    else:
        config = config.with_open({"num_epochs": unless_chosen(TrainConfig)["num_epochs"]})
    values: dict[str, Any] = {name: before.get(name) for name in names if getattr(config, name) is None}
    if minutes is not None or before.get("init_from") is not None:
        values["unet"] = {**before["unet"], **config.unet}
    return dataclasses.replace(config, **values)
