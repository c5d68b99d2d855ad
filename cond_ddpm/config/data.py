"""The settings that name labelled images; those of training and of every command that compares with real ones.

May import: `config.settings`. Next in the data flow: `cond_ddpm/data/` loads what `dataset` names.
"""

from typing import Literal

from cond_ddpm.config.settings import Settings, setting

Channels = Literal[1, 3]


class ColumnsConfig(Settings):
    """Which parts of a data set hold the images and their labels."""

    dataset_config_name: str | None = setting(default=None, help="Configuration of the data set, where it has several.")
    image_column: str | None = setting(default=None, help="Column of the images; found by its type if not given.")
    label_column: str | None = setting(default=None, help="Column of the labels; found by its type if not given.")


class RealImagesConfig(ColumnsConfig):
    """The real images that a command takes beside a model."""

    dataset: str = setting(help="Data set of real images, as for `cond-ddpm train`.", is_path=True)
    split: str = setting(default="train", help="Split of them.")
