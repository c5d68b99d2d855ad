"""The settings of `cond-ddpm publish` and `cond-ddpm ema`, which write and publish pipeline folders.

May import: `config.settings`. Next in the data flow: `ema.py` averages, `hub/` publishes.
"""

from pathlib import Path
from typing import Literal

from cond_ddpm.config.settings import Settings, setting


class PublishConfig(Settings):
    """Settings of `cond-ddpm publish`."""

    model: Path = setting(help="Pipeline folder, such as RUN/pipeline.")
    repo_id: str = setting(help="USER/NAME on the Hub; made, if it does not exist.")
    private: bool = setting(default=False, help="Make the repository private.")
    space: bool = setting(default=False, help="Also publish a demo Space of the same name.")
    space_hardware: Literal["cpu", "gpu"] = setting(
        default="cpu", help="What the Space's packages are for; gpu is also for ZeroGPU. The hardware is chosen on the Hub."
    )
    dry_run: bool = setting(default=False, help="Check, show what would be uploaded, and upload nothing.")


class EmaConfig(Settings):
    """Settings of `cond-ddpm ema`."""

    run: Path = setting(help="Run folder, with its ema/ and pipeline/.")
    std: float = setting(help="Relative width of the average, as a share of the run; 0.02 to 0.25.")
    step: int | None = setting(default=None, help="Where the average ends, one of the snapshots; if not given, the last.")
    output: Path | None = setting(
        default=None, help="New folder; if not given, RUN/pipeline-ema-STD, or -STD-step-N, which is written anew."
    )
