"""The settings of `cond-ddpm visualize KIND`, a class a kind of picture, and of `cond-ddpm report`.

May import: `config.settings, config.data, config.sampling`. Next in the data flow: `visualize/` draws the picture.
"""

from pathlib import Path
from typing import ClassVar

from cond_ddpm.config.data import RealImagesConfig
from cond_ddpm.config.sampling import (
    GuidanceScaleConfig,
    ModelConfig,
    NetworksConfig,
    NumStepsConfig,
    SamplingConfig,
    SeedConfig,
)
from cond_ddpm.config.settings import Settings, setting


class PictureConfig(Settings):
    """Where the picture goes."""

    suffix: ClassVar[str] = ".png"
    output: Path = setting(help="Picture to write.")

    def check(self) -> None:
        super().check()
        if self.output.suffix.lower() != self.suffix:
            raise ValueError(f"output: expected a name ending in {self.suffix}, got {self.output}.")


class ClassConfig(Settings):
    """Which class."""

    class_label: str | int | None = setting(default=None, help="Name or id; if not given, the first class.")


class ClassesConfig(Settings):
    """Which classes."""

    class_labels: list[str | int] | None = setting(default=None, help="Names or ids; if not given, every class.")


class ForwardConfig(PictureConfig, ModelConfig, SeedConfig, ClassConfig, RealImagesConfig):
    """A real image under more and more noise."""

    index: int = setting(default=0, help="Which image of the class.")


class DenoisingConfig(PictureConfig, SamplingConfig, ClassConfig):
    """Noise becoming an image."""

    columns: int = setting(default=9, help="Steps shown, evenly spaced from the first to the last.", at_least=2)


class GifConfig(PictureConfig, SamplingConfig, ClassesConfig):
    """Noise becoming images, in motion."""

    suffix: ClassVar[str] = ".gif"
    columns: int = setting(default=4, help="Images of each class.", at_least=1)


class ClassGridConfig(PictureConfig, SamplingConfig, ClassesConfig):
    """Samples of each class."""

    columns: int = setting(default=8, help="Images of each class.", at_least=1)


class GuidanceSweepConfig(PictureConfig, ModelConfig, NetworksConfig, NumStepsConfig, ClassesConfig):
    """A column for each guidance scale."""

    scales: list[float] = setting(default=lambda: [0, 0.5, 1, 1.5, 2, 3, 5, 8], help="Guidance scales; if not given, 0 to 8.")


class StepsSweepConfig(PictureConfig, ModelConfig, NetworksConfig, GuidanceScaleConfig, ClassesConfig):
    """A column for each number of steps."""

    steps: list[int] = setting(
        default=lambda: [2, 3, 5, 10, 20, 50, 100], help="Numbers of steps; if not given, 2 to 100.", at_least=1
    )


class EpochsConfig(PictureConfig, NetworksConfig, NumStepsConfig, GuidanceScaleConfig, ClassesConfig):
    """The same noise at moments of the training."""

    run: Path = setting(help="Run folder, with its ema/ and pipeline/.")
    std: float = setting(default=0.05, help="Relative width of the averages.")
    columns: int = setting(default=8, help="Moments shown.", at_least=1)


class NeighboursConfig(PictureConfig, SamplingConfig, ClassesConfig, RealImagesConfig):
    """Samples and the training images nearest to them."""

    columns: int = setting(default=5, help="Neighbours shown.", at_least=1)


class LossConfig(PictureConfig):
    """Losses of one run or several."""

    run: list[Path] = setting(help="Run folder, or several.")


class ReportConfig(Settings):
    """Settings of `cond-ddpm report`."""

    run: Path = setting(help="Run folder; report.html is written into it.")
