"""When a run ends, and what share of it is done.

May import: `config`, and the state's `Progress`. The learning-rate schedule and the snapshots of the averages follow that
share.
"""

import dataclasses
import math

from cond_ddpm.config import TrainConfig
from cond_ddpm.training.state import Progress


@dataclasses.dataclass(frozen=True)
class Horizon:
    """A run ends after a number of steps, after a time, or when the validation loss stops improving: whichever is first."""

    steps: float  # infinite where only the time counts
    seconds: float  # infinite where only the steps count
    patience: int | None  # validations without a better validation loss

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> "Horizon":
        seconds = math.inf if config.max_train_minutes is None else config.max_train_minutes * 60
        steps: float = math.inf
        if config.max_train_steps is not None:
            steps = config.max_train_steps
        elif seconds == math.inf:
            steps = config.num_epochs * steps_per_epoch
        return cls(steps, seconds, config.patience)

    def share_done(self, progress: Progress) -> float:
        """The share of the steps or of the time, whichever is larger: 0 at the start, 1 or slightly more at the end."""
        return max(progress.step / self.steps, progress.elapsed_seconds / self.seconds)

    def is_over(self, progress: Progress) -> bool:
        return progress.step >= self.steps or progress.elapsed_seconds >= self.seconds or self.stops_early(progress)

    def stops_early(self, progress: Progress) -> bool:
        return self.patience is not None and progress.epochs_since_best >= self.patience

    def seconds_left(self, progress: Progress) -> float:
        return self.seconds - progress.elapsed_seconds

    def __str__(self) -> str:
        """Such as "700 steps or 10 validations without improvement"."""
        ends = [f"{self.steps} steps"] if self.steps < math.inf else []
        ends += [f"{self.seconds / 60:g} minutes"] if self.seconds < math.inf else []
        ends += [f"{self.patience} validations without improvement"] if self.patience is not None else []
        return " or ".join(ends)
