"""The settings of every command, each said once: type, default, help, bounds, and whether a resume may change it.

settings.py   what a setting is, and how a class of settings is checked
training.py   `cond-ddpm train`
"""

from cond_ddpm.config.settings import Settings, checked_arguments, may_change_at_resume, setting
from cond_ddpm.config.training import TrainConfig

__all__ = ["Settings", "TrainConfig", "checked_arguments", "may_change_at_resume", "setting"]
