"""The settings of every command, each said once: type, default, help, bounds, and whether a resume may change it.

settings.py       what a setting is, and how a class of settings is checked
presets.py        the files of settings that come with the package, by name; `cond-ddpm presets`
flags.py          a class of settings -> flags, `--config FILE`, `--help` and errors
data.py           what names labelled images
training.py       `cond-ddpm train`
sampling.py       `cond-ddpm sample` and `export`, and what all that samples shares
visualization.py  `cond-ddpm visualize KIND`
evaluation.py     `cond-ddpm evaluate`
quickstart.py     `cond-ddpm quickstart`
demo.py           `cond-ddpm demo`
experiments.py    `cond-ddpm study` and `tune`
publishing.py     `cond-ddpm publish` and `ema`
"""

from cond_ddpm.config.evaluation import EvaluateConfig
from cond_ddpm.config.settings import Settings, checked_arguments, may_change_at_resume, setting
from cond_ddpm.config.training import TrainConfig

__all__ = ["EvaluateConfig", "Settings", "TrainConfig", "checked_arguments", "may_change_at_resume", "setting"]
