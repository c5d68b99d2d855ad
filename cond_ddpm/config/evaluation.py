"""The settings of `cond-ddpm evaluate`, and of what a study or a search measures.

May import: `config.settings, config.data, config.sampling`. Next in the data flow: `evaluation/` compares samples with real
images.
"""

from pathlib import Path

from cond_ddpm.config.data import Channels, RealImagesConfig
from cond_ddpm.config.sampling import GuidanceScaleConfig, NetworksConfig, NumStepsConfig, RevisionConfig, SeedConfig
from cond_ddpm.config.settings import names_of, setting


class MeasurementConfig(SeedConfig):
    """How samples are measured, whatever the data: what `evaluate` in a study or a search may have."""

    test_split: str | None = setting(
        default=None,
        help="Held-out real images, whose metrics are the reference; if not given, the split test, or where"
        " there is none a tenth of --split, which is then held out of the comparison too.",
    )
    features: str = setting(
        default="classifier",
        help="Features to compare by: classifier, which is trained here, inception, dinov2, imagenet (offline), or"
        " the folder of a DINOv2.",
        is_path=True,
    )
    weights: str | None = setting(
        default=None, help="Weights of Inception or DINOv2, where they cannot be downloaded.", is_path=True
    )
    num_samples: int | None = setting(
        default=None,
        help="Number of samples: equally many of each class, or in proportion to the real images where these are uneven. If"
        " not given, as many as there are real images to compare with, from 1,000 to 50,000, the literature's number.",
        at_least=2,
    )
    repeats: int = setting(default=1, help="Evaluations with other seeds, for a mean and a standard deviation.", at_least=1)
    subset: int = setting(
        default=5000, help="Samples, and real images, that KID, precision and recall are computed of.", at_least=2
    )
    usefulness: bool = setting(
        default=False,
        help="Also train classifiers on samples, on as many real images, and on both, with three seeds each, and test them on"
        " held-out real images (classification accuracy score); minutes on a CPU.",
    )
    usefulness_images: int = setting(
        default=5000, help="Samples, and real images, that these classifiers are trained on, at most.", at_least=10
    )


class EvaluationConfig(MeasurementConfig, RealImagesConfig):
    """What is measured and how; all of it goes into results.json."""

    resolution: int = setting(default=32, help="Height and width of --samples; a model has its own.", at_least=1)
    channels: Channels | None = setting(
        default=None, help="Channels of --samples; if not given, those of the first real image. A model has its own."
    )


class EvaluateConfig(RevisionConfig, NetworksConfig, NumStepsConfig, GuidanceScaleConfig, EvaluationConfig):
    """Settings of `cond-ddpm evaluate`."""

    model: str | None = setting(
        default=None, help="Pipeline folder, such as RUN/pipeline, or Hub repository, to measure.", is_path=True
    )
    samples: Path | None = setting(default=None, help="In place of a model: a folder of `CLASS/*.png`, or an .npz.")
    save_samples: Path | None = setting(default=None, help="Keep the samples: an .npz, or a new folder.")
    output: Path = setting(help="results.json to write; pictures go beside it.")

    def check(self) -> None:
        super().check()
        if (self.model is None) == (self.samples is None):
            raise ValueError("model: expected either a model or --samples; give one of the two.")
        of_samples = {"samples", "output", *names_of(EvaluationConfig)} - {"seed", "num_samples", "repeats"}
        for name in self.changed():
            if self.samples is not None and name not in of_samples:
                raise ValueError(f"{name}: expected none with --samples, which are made already; leave it out.")
            if self.model is not None and name in ("resolution", "channels"):
                raise ValueError(f"{name}: expected none with --model, which has its own; leave it out.")
