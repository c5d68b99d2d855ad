"""How far a judge can be trusted: the confidence interval of its accuracy, and below which accuracy it gives no figures.

May import: the standard library. Next: `classifier.py` records the interval, and `evaluate.py` leaves figures out.
"""

import math
from typing import Any

CONFIDENCE = 0.95
_DEVIATIONS = 1.96  # of a Gaussian, within which a share of CONFIDENCE lies
_SHARE = 0.5  # of the way from chance to all images, that a judge must have gone


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Where a probability is with 95% confidence, if in `count` trials a share of them succeeded (Wilson 1927, eq. 4)."""
    square = _DEVIATIONS**2 / count
    centre, half = share + square / 2, math.sqrt(share * (1 - share) * square + square**2 / 4)
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    return max(0.0, low), min(1.0, high)


def least_accuracy(num_classes: int) -> float:
    """That a judge must have with 95% confidence to be trusted: halfway between chance and all images."""
    chance = 1 / num_classes
    return chance + _SHARE * (1 - chance)


def why_not_trusted(judges: dict[str, dict[str, Any]], num_classes: int) -> str | None:
    """A sentence on the judge that does not recognise enough real images, if there is one.

    Args:
        judges: name -> its record in results.json.
        num_classes: of the data set.
    """
    least = least_accuracy(num_classes)
    for name, judge in judges.items():
        low, high = judge["held_out_accuracy_interval"]
        if low < least:
            return (
                f"the {name} classifier recognises {judge['held_out_accuracy']:.0%} of {judge['tested_images']:,} real images"
                f" that it was not trained on, so between {low:.0%} and {high:.0%} with {CONFIDENCE:.0%} confidence; to be"
                f" trusted with {num_classes} classes it must be above {least:.0%}, halfway between chance and all"
            )
    return None


def withhold(metrics: dict[str, Any]) -> None:
    """Make null what rests on the judges: label accuracies, and the figures of the classes."""
    for name in ("label_accuracy", "label_accuracies", "recognised_as_no_class"):
        metrics[name] = None
    for row in metrics["classes"].values():
        row |= {name: None for name in row if name != "num_images"}
