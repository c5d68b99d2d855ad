"""The settings that name labelled images; those of training and of every command that compares with real ones.

May import: `config.settings`. Next in the data flow: `cond_ddpm/data/` loads what `dataset` names.
"""

from pathlib import Path
from typing import Literal

from cond_ddpm.config.settings import Settings, setting

Channels = Literal[1, 3]
Fit = Literal["crop", "pad", "stretch"]
# What training chooses by the pictures if it is not given. A resumed run takes it from its checkpoint.
CHOSEN = ("fit", "resolution", "channels", "random_flip", "num_validation_images")


class ColumnsConfig(Settings):
    """Which parts of a data set hold the images and their labels."""

    dataset_config_name: str | None = setting(default=None, help="Configuration of the data set, where it has several.")
    image_column: str | None = setting(default=None, help="Column of the images; found by its type if not given.")
    label_column: str | None = setting(default=None, help="Column of the labels; found by its type if not given.")
    fit: Fit | None = setting(
        default=None,
        help="How a picture becomes square: crop keeps its centre, pad adds borders in the colour of its edge, stretch changes"
        " its proportions. If not given, training chooses by the pictures, and a model's pictures are fitted as for its"
        " training.",
    )


class PreparationConfig(ColumnsConfig):
    """How pictures become what a network is trained on. What is not given is chosen by the pictures."""

    resolution: int | None = setting(
        default=None,
        help="Height and width in pixels; if not given, 16, 32 or 64, whichever is nearest to the pictures'.",
        at_least=1,
    )
    channels: Channels | None = setting(
        default=None, help="1 for grey, 3 for RGB; if not given, those of the first image, or 3 if another is in colour."
    )
    random_flip: bool | None = setting(
        default=None,
        help="Mirror half of the images. If not given, they are mirrored unless the classes are digits or letters, or one is"
        " named after a side (left), or mirrored images are unlike the others of their class.",
    )
    num_validation_images: int | None = setting(
        default=None,
        help="Images held out of the training split, for the validation loss that early stopping watches; if not given, 5% of"
        " each class, but at least 3 images of it and at most a quarter of it, and at most 1,000 images in all.",
        at_least=1,
    )


class DataConfig(PreparationConfig):
    """Settings of `cond-ddpm data`."""

    dataset: str = setting(help="Data set to look at, as for `cond-ddpm train`.", is_path=True)
    split: str = setting(default="train", help="Split to train on.")
    test_split: str | None = setting(
        default=None, help="Split in which to search for copies too; if not given, the split test, where there is one."
    )
    all_files: bool = setting(default=False, help="Name every file of a finding, up to 10,000, not the first three alone.")
    output: Path | None = setting(default=None, help="Picture to write: images as the network will see them, a row a class.")

    def check(self) -> None:
        super().check()
        if self.output is not None and self.output.suffix.lower() != ".png":
            raise ValueError(f"output: expected a name ending in .png, got {self.output}.")


class RealImagesConfig(ColumnsConfig):
    """The real images that a command takes beside a model."""

    dataset: str = setting(help="Data set of real images, as for `cond-ddpm train`.", is_path=True)
    split: str = setting(default="train", help="Split of them.")
