"""Operating points: what other thresholds than the run's own would find, and at which price."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.held_out import PARTS, Measured
from jax_noisy_anogan.scoring.calibration import CALIBRATED, FEWEST_NORMALS
from jax_noisy_anogan.scoring.thresholds import decide, quantile_threshold, rate_interval

RATES = (0.001, 0.01, 0.05)
# Without a part that sets the threshold alone, it lies this much of the scale lower.
_FAR = 2.0
# A single known abnormal image is not left out of the fit that judges it.
_FEWEST_ABNORMAL = 2


class Found(NamedTuple):
    """How many of some images are above a threshold."""

    flagged: int
    images: int

    @classmethod
    def above(cls, limit: float, scores: Float[np.ndarray, " n"]) -> Found:
        """Count them."""
        return cls(int(decide(scores, limit).sum()), len(scores))

    def rate(self) -> str:
        """The rate with its interval, for people; there has to be an image."""
        low, high = rate_interval(self.flagged, self.images)
        share = self.flagged / self.images
        return f"{self} ({share:.1%}; 95 % interval {low:.1%} to {high:.1%})"

    def __str__(self) -> str:
        return f"{self.flagged:,} of {self.images:,}" if self.images else "–"


class OperatingPoint(NamedTuple):
    """A threshold that so many further normal images exceed, and what it finds.

    Attributes:
      false_alarms: the rate.
      needs: as many normal validation images have to be there; `has` are.
      threshold: the anomaly, for `score --threshold`; None where `has` is below `needs`.
      validation_abnormal: of the known abnormal images, by fits without the image.
      test_abnormal, test_normal: of the test images.
    """

    false_alarms: float
    needs: int
    has: int
    threshold: float | None
    validation_abnormal: Found
    test_abnormal: Found
    test_normal: Found

    def cells(self) -> list[str]:
        """A row of a table, as people read it: rate, threshold, what is found."""
        if self.threshold is None:
            missing = f"needs {self.needs:,} normals, has {self.has:,}"
            return [f"{self.false_alarms:.1%}", missing, "", "", ""]
        found = (self.validation_abnormal, self.test_abnormal, self.test_normal)
        return [f"{self.false_alarms:.1%}", f"{self.threshold:.4g}", *map(str, found)]


class SetBy(NamedTuple):
    """A single part, or image, of the normal validation images that sets the threshold alone.

    Attributes:
      image: id of its photograph with the highest score.
      photographs: how many of the part there are.
      threshold: the anomaly that the threshold would have without them.
    """

    image: str
    photographs: int
    threshold: float

    def __str__(self) -> str:
        others = self.photographs - 1
        more = f" and {others} more of the same part set" if others else " sets"
        return (
            f"{self.image}{more} the threshold alone: without, it would be an anomaly of "
            f"{self.threshold:.2g}; look whether this normal validation image is normal"
        )


HEADS = (
    "false alarms",
    "anomaly above",
    "known defects found",
    "test defects found",
    "test normals flagged",
)


def operating_points(
    measured: Measured, is_abnormal: Bool[np.ndarray, " n"]
) -> list[OperatingPoint]:
    """One point for each of `RATES`, from the scores of normal validation images.

    Args:
      is_abnormal: the truth about the test images.
    """
    normal, known, test = (measured.calibrated[part] for part in PARTS)
    known = known if len(known) >= _FEWEST_ABNORMAL else known[:0]
    points = []
    for rate in RATES:
        needs = math.ceil(1 / rate - 1e-9) - 1
        enough = len(normal) >= needs
        limit = quantile_threshold(normal, rate) if enough else math.inf
        points.append(
            OperatingPoint(
                false_alarms=rate,
                needs=needs,
                has=len(normal),
                threshold=float(measured.calibration.to_anomaly(np.array(limit)))
                if enough
                else None,
                validation_abnormal=Found.above(limit, known),
                test_abnormal=Found.above(limit, test[is_abnormal]),
                test_normal=Found.above(limit, test[~is_abnormal]),
            )
        )
    return points


def set_by(measured: Measured, split: Split, false_positive_rate: float) -> SetBy | None:
    """What sets the threshold alone: without it the quantile lies two scales of `anomaly` lower.

    A defect that hides among the normal images does that, or a part unlike all others. None where
    nothing does, or where known abnormal images set the threshold.

    Args:
      false_positive_rate: that the threshold was chosen for.
    """
    normal, fitted = measured.calibrated[PARTS[0]], measured.calibration
    decides = fitted.thresholds[CALIBRATED]
    indices = split.validation_normal
    if len(normal) == 0 or len(normal) != len(indices) or decides.chosen != decides.quantile:
        return None
    highest = int(np.argmax(normal))
    parts = np.arange(len(split.ids)) if split.groups is None else split.groups
    same = parts[indices] == parts[indices[highest]]
    rest = normal[~same]
    if len(rest) < FEWEST_NORMALS:
        return None
    without = quantile_threshold(rest, false_positive_rate)
    if decides.chosen - without < _FAR * fitted.scale:
        return None
    anomaly = float(fitted.to_anomaly(np.array(without)))
    return SetBy(split.ids[int(indices[highest])], int(same.sum()), anomaly)
