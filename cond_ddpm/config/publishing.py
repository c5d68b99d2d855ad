"""The settings of `cond-ddpm publish` and `cond-ddpm ema`, which write and publish pipeline folders.

May import: `config.settings`. Next in the data flow: `ema.py` averages, `hub/` publishes.
"""

import re
from pathlib import Path
from typing import Literal

from cond_ddpm.config.settings import Settings, setting


class LicenceConfig(Settings):
    """Under which terms others may use what is published."""

    license: str | None = setting(
        default=None,
        may_change=True,
        help="Licence of the weights as the Hub names it, such as mit or cc-by-4.0; if not given, as the card says already.",
    )
    dataset_license: str | None = setting(
        default=None, may_change=True, help="Licence of the training images; if not given, as the card says already."
    )

    def check(self) -> None:
        super().check()
        for name in ("license", "dataset_license"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch("[a-z0-9][a-z0-9.-]*", value):
                raise ValueError(
                    f"{name}: expected a licence as the Hub names it, such as mit, cc-by-4.0 or other, got {value!r}."
                )


class PublishConfig(LicenceConfig):
    """Settings of `cond-ddpm publish`."""

    model: Path = setting(help="Pipeline folder, such as RUN/pipeline.")
    repo_id: str = setting(help="USER/NAME on the Hub; made, if it does not exist.")
    private: bool = setting(default=False, help="Make the repository private.")
    space: bool | Literal["static"] = setting(
        default=False,
        help="Also publish a demo Space of the same name; static: as a page that draws in the browser and costs no computer.",
    )
    space_hardware: Literal["cpu", "gpu"] = setting(
        default="cpu",
        help="Whether the Space installs torch for the CPU, or for a GPU or ZeroGPU. Its hardware is chosen on the Hub.",
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
