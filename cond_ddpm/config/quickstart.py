"""The settings of `cond-ddpm quickstart`; all else is in its preset, `configs/quickstart.yaml`.

May import: `config.settings`. Next in the data flow: `quickstart.py` trains by that preset, then draws and judges digits.
"""

from pathlib import Path

from cond_ddpm.config.settings import Settings, setting


class QuickstartConfig(Settings):
    """Settings of `cond-ddpm quickstart`."""

    output_dir: Path = setting(
        default=Path("runs/quickstart"), help="Folder of the run and of digits.png; a run that is there is replaced."
    )
    max_train_steps: int | None = setting(
        default=None, help="Stop training after this many steps; if not given, as the preset says.", at_least=1
    )
    num_images_per_class: int = setting(
        default=50, help="Samples of each digit that the classifier judges; up to 10 of them are drawn.", at_least=1
    )
    resume_from_checkpoint: str | None = setting(
        default=None,
        help="Resume a training that was stopped: `latest` (or start, if there is no checkpoint yet), or a checkpoint-N.",
        is_path=True,
    )
