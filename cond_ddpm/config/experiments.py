"""The settings of `cond-ddpm study` and `cond-ddpm tune`, which train and measure several models.

May import: the rest of `config`. What a run would refuse of its settings is refused here, before any is trained. Next in the
data flow: `experiments/`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cond_ddpm.config.data import ColumnsConfig
from cond_ddpm.config.evaluation import EvaluationConfig, MeasurementConfig
from cond_ddpm.config.sampling import CallConfig
from cond_ddpm.config.settings import Settings, check_names, check_value, make, names_of, setting, typed_fields
from cond_ddpm.config.training import TrainConfig

# The output folder of a run is in the experiment's, and what was stopped is resumed.
_OF_RUNS = [name for name in names_of(TrainConfig) if name not in ("output_dir", "resume_from_checkpoint")]


class ExperimentConfig(Settings):
    """What a study and a search share."""

    output_dir: str = setting(help="Folder of all; each run is a folder in it.", is_path=True)
    base: dict[str, Any] = setting(help="Settings of training that the runs share, as for `cond-ddpm train`.")
    evaluate: dict[str, Any] = setting(
        default=dict, help="How they are measured, as for `cond-ddpm evaluate`; the data are those of training."
    )
    sampling: dict[str, Any] = setting(
        default=dict, help="How samples are made for that, such as num_inference_steps, guidance_scale and mixed_precision."
    )

    def check(self) -> None:
        super().check()
        check_names(self.base, _OF_RUNS, "base", "settings of training")
        make(MeasurementConfig, self.evaluate, "evaluate", "`cond-ddpm evaluate`")
        make(CallConfig, self.sampling, "sampling", "sampling")

    def settings_of(self, changes: dict[str, Any], where: str, folder: Path) -> TrainConfig:
        """The settings of a run in its folder, which is resumed if it was stopped.

        Raises:
            ValueError: settings that training does not take.
        """
        fixed = {"output_dir": str(folder), "resume_from_checkpoint": "latest"}
        return make(TrainConfig, {**self.base, **changes}, where, "training", **fixed)

    def evaluation_of(self, run: TrainConfig) -> EvaluationConfig:
        """What a run is measured against: the data that it was trained on."""
        columns = dataclasses.asdict(run.part(ColumnsConfig))
        return EvaluationConfig(dataset=run.dataset, split=run.train_split, **columns, **self.evaluate)


class StudyConfig(ExperimentConfig):
    """Settings of `cond-ddpm study`."""

    models: dict[str, Any] = setting(help="Name of each model, and the settings of training in which it differs.")
    evaluations: int = setting(default=4, help="Moments of each run that are measured, evenly spaced to the last.", at_least=1)

    def check(self) -> None:
        super().check()
        if not self.models:
            raise ValueError("models: expected one or more, each a name and its settings, got none.")
        for name in self.models:
            if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
                raise ValueError(f"models: expected names that folders can have, got {name!r}; take another name.")
        for name, run in self.runs().items():
            if not run.use_ema or not run.num_ema_snapshots:
                raise ValueError(f"models.{name}: expected use_ema and num_ema_snapshots, by which its course is measured.")

    def runs(self) -> dict[str, TrainConfig]:
        """The settings of each model's run.

        Raises:
            ValueError: settings that training does not take.
        """
        found = {}
        for name, changes in self.models.items():
            if not isinstance(changes or {}, dict):
                raise ValueError(f"models.{name}: expected settings of training, got {changes!r}.")
            found[name] = self.settings_of(changes or {}, f"models.{name}", Path(self.output_dir) / name)
        return found


# With these, val_loss is of something else, or of other images.
_OF_THE_LOSS = {
    *("prediction_type", "min_snr_gamma", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
    *("dataset", "dataset_config_name", "train_split", "resolution", "channels", "fit", "num_validation_images"),
}


class TuneConfig(ExperimentConfig):
    """Settings of `cond-ddpm tune`."""

    search: dict[str, Any] = setting(
        help="Setting of training, or unet.NAME, and a list of choices, or {low, high} with `log: true` or `step` if wanted."
    )
    objective: Literal["val_loss", "frechet_distance"] = setting(
        default="val_loss",
        help="What is to be small: val_loss, which only trials of one objective of training share, or frechet_distance, by"
        " an evaluation at the end of each trial.",
    )
    trials: int = setting(
        default=20, help="How many in all, over all machines and restarts; those pruned are counted.", at_least=1
    )
    pruner: Literal["median", "hyperband", "none"] = setting(
        default="median", help="What stops trials whose val_loss is worse than that of others at the same epoch."
    )
    storage: str | None = setting(
        default=None,
        help="Where the trials are kept; if not given, an SQLite file in output_dir. For many machines the URL of a database,"
        " or journal:FILE on a disk that they share.",
    )
    seed: int = setting(default=0, help="Seed of the search.", at_least=0, at_most=2**32 - 1)

    def check(self) -> None:
        super().check()
        if not self.search:
            raise ValueError("search: expected one setting or more, got none.")
        fields = {field.name: (field, type_) for field, type_ in typed_fields(TrainConfig) if field.name in _OF_RUNS}
        plain = [name for name in self.search if not str(name).startswith("unet.")]
        check_names(plain, set(_OF_RUNS) - {"unet"}, "search", "settings of training, and unet.NAME to search")
        uneven = set(self.search) & _OF_THE_LOSS
        if self.objective == "val_loss" and uneven:
            raise ValueError(f"search: expected nothing that changes what val_loss means, got {', '.join(sorted(uneven))}.")
        for name, space in self.search.items():
            _check_space(name, space)
            for value in ends(space) if name in fields else ():
                try:
                    check_value(*fields[name], value)
                except ValueError as error:
                    raise ValueError(f"search.{error}") from None
        self.first_that_fits(lambda run: None)

    def run(self, chosen: dict[str, Any], folder: Path) -> TrainConfig:
        """The settings of a trial; `unet.NAME` goes into `unet`.

        Raises:
            ValueError: settings that training does not take.
        """
        changes = {name: value for name, value in chosen.items() if not name.startswith("unet.")}
        unet = self.base.get("unet") or {}
        if isinstance(unet, dict):
            of_unet = {name[5:]: value for name, value in chosen.items() if name.startswith("unet.")}
            changes["unet"] = {**unet, **of_unet}
        return self.settings_of(changes, "base", folder)

    def first_that_fits(self, check: Callable[[TrainConfig], None]) -> None:
        """Raise ValueError, with the first reason, if all combinations of the search are refused, by training or `check`."""
        first = None
        combinations = itertools.product(*map(ends, self.search.values()))
        for values in itertools.islice(combinations, 100):
            try:
                return check(self.run(dict(zip(self.search, values)), Path(self.output_dir) / "trial-0"))
            except ValueError as error:
                first = first or error
        raise ValueError(f"search: expected some trials whose settings fit, but none would: {first}")


def ends(space: list | dict) -> list:
    """The choices of a search space, or its least and its greatest number."""
    return space if isinstance(space, list) else [space["low"], space["high"]]


def _check_space(name: str, space: Any) -> None:
    is_range = isinstance(space, dict) and {"low", "high"} <= set(space) <= {"low", "high", "log", "step"}
    if not (is_range or (isinstance(space, list) and space)):
        raise ValueError(f"search.{name}: expected a list of choices, or low and high, got {space!r}.")
    if is_range:
        low, high, step = (space.get(key, 1) for key in ("low", "high", "step"))
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (low, high, step))
        if not (numbers and low < high and step > 0 and (low > 0 or not space.get("log"))):
            raise ValueError(f"search.{name}: expected numbers, low < high, and low above 0 with log, got {space!r}.")
