"""From raw terms to a calibrated score, a probability, and thresholds; validation images only.

Terms are standardised by validation normals. With known abnormal validation images their weights
are those of a logistic regression (classes weighted equally, weights not negative: no term may
speak for an image because it is unusual), which a few images move little from the term that was
trained against known abnormal images; with normals alone, or where no term tells the two apart, all
terms weigh the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize  # type: ignore[import-untyped]

from jax_noisy_anogan.errors import UserError

Terms = Mapping[str, Float[np.ndarray, " n"]]

CALIBRATED = "calibrated"
_SMALLEST = 2
# Where in the gap between two scores a threshold lies: nearer to the lower one, since abnormal
# images scatter more than normal ones. With 10 normal and 2 known abnormal images of MNIST, of the
# validation part, the rest of that part had F1 0.96 to 0.98, and 0.94 to 0.97 with the middle.
_GAP_SHARE = 1 / 3


class CalibrationError(UserError, RuntimeError):
    """A run cannot be calibrated, or its calibration cannot be read."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one score; an image above the chosen one is called abnormal.

    Attributes:
      chosen: the one that decides: the rule's, or `quantile` where the rule's would call every
        normal validation image abnormal.
      quantile: which normal validation images exceed at most at the chosen false-positive rate.
      best_f1, youden: best F1, and largest true minus false positive rate, on the validation
        images; None without known abnormal ones.
    """

    chosen: float
    quantile: float
    best_f1: float | None
    youden: float | None


@dataclass(frozen=True)
class Calibration:
    """How scores of one run become decisions.

    Attributes:
      terms: names, in the order of `mean`, `std` and `weights`.
      mean, std: of each term over validation normals.
      weights, intercept: of the standardised terms; their sum is the calibrated score, a logit.
      thresholds: by score name, `CALIBRATED` included.
      rule: the rule asked for.
      normals, abnormals: how many validation images it rests on.
    """

    terms: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    thresholds: dict[str, Thresholds]
    rule: str
    normals: int
    abnormals: int

    def calibrated(self, terms: Terms) -> Float[np.ndarray, " n"]:
        """The calibrated score: above 0 is rather abnormal than normal."""
        values = np.stack([np.asarray(terms[name], np.float64) for name in self.terms], axis=-1)
        standardised = (values - np.array(self.mean)) / np.array(self.std)
        return standardised @ np.array(self.weights) + self.intercept

    def probability(self, terms: Terms) -> Float[np.ndarray, " n"]:
        """The calibrated score in [0, 1], at equal shares of normal and abnormal images.

        Without known abnormal images it is not a probability but a scale: one half at the quantile
        threshold, and one standard deviation of normal images is one logit.
        """
        return 1.0 / (1.0 + np.exp(-np.clip(self.calibrated(terms), -500, 500)))

    def is_abnormal(self, terms: Terms, threshold: float | None = None) -> Bool[np.ndarray, " n"]:
        """Decisions by the calibrated score.

        Args:
          threshold: a probability that replaces the stored threshold.
        """
        if threshold is not None:
            return decide(self.probability(terms), threshold)
        return decide(self.calibrated(terms), self.thresholds[CALIBRATED].chosen)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
          CalibrationError: the file is missing or not a calibration.
        """
        hint = f"run `python -m jax_noisy_anogan.evaluate --workdir {path.parent}` first"
        try:
            return cls.from_json(path.read_text(errors="replace"))
        except OSError as error:
            raise CalibrationError(f"{path} cannot be read ({error.strerror}): {hint}") from error
        except CalibrationError as error:
            raise CalibrationError(f"{path} is {error}: {hint}") from error

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Rebuild from JSON text.

        Raises:
          CalibrationError: not a calibration, or one with a figure missing or not finite.
        """
        try:
            values = json.loads(text)
            thresholds = {k: Thresholds(**v) for k, v in values.pop("thresholds").items()}
            values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
            return cls(thresholds=thresholds, **values)._checked()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CalibrationError(f"not a calibration ({error})") from error

    def _checked(self) -> Calibration:
        rows = np.array([self.mean, self.std, self.weights], float)
        chosen = [self.thresholds[name].chosen for name in (*self.terms, CALIBRATED)]
        quantiles = [self.thresholds[name].quantile for name in (*self.terms, CALIBRATED)]
        figures = np.array([*rows.ravel(), self.intercept, *chosen, *quantiles], float)
        if rows.shape != (3, len(self.terms)) or not np.isfinite(figures).all():
            raise ValueError("a figure is missing or not finite")
        return self


def fit(
    normal: Terms,
    abnormal: Terms,
    *,
    rule: str,
    false_positive_rate: float,
    learned: str = "",
) -> Calibration:
    """Fit to the terms of validation images.

    Args:
      normal: terms of normal validation images, at least two.
      abnormal: of known abnormal validation images; arrays of length 0 where there are none.
      rule: "best_f1" or "youden", which become "quantile" without abnormal images; or "quantile".
      false_positive_rate: of the quantile thresholds.
      learned: the term that was trained against known abnormal images, if any; few validation
        images leave the weight with it.

    Raises:
      CalibrationError: fewer than two normal images, or a term that is not finite.
    """
    names = tuple(normal)
    normals, abnormals = _matrix(normal), _matrix(abnormal)
    require_normals(len(normals))
    if not (np.isfinite(normals).all() and np.isfinite(abnormals).all()):
        raise CalibrationError("a term of a validation image is not finite")
    mean = normals.mean(axis=0)
    # A term that is the same for all normal images still has a scale: its own size.
    std = np.maximum(normals.std(axis=0, ddof=1), 1e-6 * (1.0 + np.abs(mean)))
    z_normal, z_abnormal = (normals - mean) / std, (abnormals - mean) / std
    weights, intercept = np.zeros(len(names)), 0.0
    if len(abnormals):
        expected = np.array([float(name == learned) for name in names])
        weights, intercept = _logistic_regression(z_normal, z_abnormal, expected)
    # All are zero where every term is lower for the known abnormal images: then nothing is learned.
    if not weights.any():
        weights, intercept = _equal_weights(z_normal, false_positive_rate)
    thresholds = {
        name: _thresholds(normals[:, k], abnormals[:, k], rule, false_positive_rate)
        for k, name in enumerate(names)
    }
    thresholds[CALIBRATED] = _thresholds(
        z_normal @ weights + intercept, z_abnormal @ weights + intercept, rule, false_positive_rate
    )
    return Calibration(
        terms=names,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        weights=tuple(weights.tolist()),
        intercept=float(intercept),
        thresholds=thresholds,
        rule=rule,
        normals=len(normals),
        abnormals=len(abnormals),
    )


def require_normals(count: int) -> None:
    """Check that there are enough normal validation images, before any work on them.

    Raises:
      CalibrationError: fewer than two.
    """
    if count < _SMALLEST:
        raise CalibrationError(
            f"{count} normal validation images: at least {_SMALLEST} are needed; raise "
            "config.data.validation_fraction"
        )


def quantile_threshold(normal: Float[np.ndarray, " n"], false_positive_rate: float) -> float:
    """The smallest score of a normal image that at most this share of them exceeds."""
    # 0.29 of 100 images is 28.999999999999996 in floating point.
    allowed = int(false_positive_rate * len(normal) + 1e-9)
    return float(np.sort(normal)[len(normal) - 1 - allowed])


def best_f1_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest F1, in the gap between the scores beside it (`_GAP_SHARE`)."""

    def f1(true_positive: np.ndarray, false_positive: np.ndarray) -> np.ndarray:
        return 2 * true_positive / (true_positive + false_positive + len(abnormal))

    return _best_threshold(normal, abnormal, f1)


def youden_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest true minus false positive rate (Youden's J)."""

    def j(true_positive: np.ndarray, false_positive: np.ndarray) -> np.ndarray:
        # Both rates times both numbers: whole numbers, so that ties are exact.
        return true_positive * len(normal) - false_positive * len(abnormal)

    return _best_threshold(normal, abnormal, j)


def _best_threshold(normal: np.ndarray, abnormal: np.ndarray, quality) -> float:
    scores = np.unique(np.concatenate([normal, abnormal]))
    inside = scores[:-1] + np.diff(scores) * _GAP_SHARE
    # Nothing lies between neighbouring floating-point numbers: there the lower one is the cut.
    between = np.where(inside < scores[1:], inside, scores[:-1])
    # Below all scores, between two neighbours each; never above all, which would find nothing.
    cuts = np.concatenate([[np.nextafter(scores[0], -np.inf)], between])
    above = [len(s) - np.searchsorted(np.sort(s), cuts, side="right") for s in (abnormal, normal)]
    values = quality(*above)
    # Of equally good ones the highest: fewer normal images are flagged.
    return float(cuts[len(values) - 1 - int(np.argmax(values[::-1]))])


def _thresholds(
    normal: np.ndarray, abnormal: np.ndarray, rule: str, false_positive_rate: float
) -> Thresholds:
    quantile = quantile_threshold(normal, false_positive_rate)
    if not len(abnormal):
        return Thresholds(quantile, quantile, None, None)
    f1, youden = best_f1_threshold(normal, abnormal), youden_threshold(normal, abnormal)
    chosen = {"quantile": quantile, "best_f1": f1, "youden": youden}[rule]
    # Where a score does not separate, F1 is best with everything flagged: no decision at all.
    decides = not decide(normal, chosen).all()
    return Thresholds(chosen if decides else quantile, quantile, f1, youden)


def _matrix(terms: Terms) -> Float[np.ndarray, "n terms"]:
    return np.stack([np.asarray(values, np.float64) for values in terms.values()], axis=-1)


def _logistic_regression(
    normal: Float[np.ndarray, "n terms"],
    abnormal: Float[np.ndarray, "m terms"],
    expected: Float[np.ndarray, " terms"],
) -> tuple[Float[np.ndarray, " terms"], float]:
    """Weights >= 0 and intercept of a ridge-penalised logistic regression, classes weighted alike.

    The ridge draws the weights to `expected` with 1 / m beside a mean over the images: what is
    expected counts the same whatever their number, and more images outweigh it.

    Terms of clearly abnormal images lie tens of deviations away, where they say nothing about the
    border: they are compressed for the fit by the factor that brings the farthest to 10.
    """
    shrink = np.maximum(np.abs(np.concatenate([normal, abnormal])).max(axis=0) / 10.0, 1.0)
    x = np.concatenate([normal, abnormal]) / shrink
    y = np.concatenate([-np.ones(len(normal)), np.ones(len(abnormal))])
    share = np.where(y > 0, 0.5 / len(abnormal), 0.5 / len(normal))
    ridge = 1.0 / len(abnormal)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin, away = y * (x @ weights + intercept), weights - expected
        value = share @ np.logaddexp(0.0, -margin) + 0.5 * ridge * away @ away
        slope = -share * y / (1.0 + np.exp(np.clip(margin, -500, 500)))
        return value, np.append(slope @ x + ridge * away, slope.sum())

    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    start = np.append(np.full(x.shape[1], 0.1), 0.0)
    found = optimize.minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 10_000},
    )
    return found.x[:-1] / shrink, float(found.x[-1])


def _equal_weights(
    normal: Float[np.ndarray, "n terms"], false_positive_rate: float
) -> tuple[Float[np.ndarray, " terms"], float]:
    """The mean of the standardised terms, scaled to unit deviation, 0 at the quantile threshold."""
    sums = normal.mean(axis=1)
    weights = np.full(normal.shape[1], 1.0 / normal.shape[1]) / max(float(sums.std(ddof=1)), 1e-6)
    return weights, -quantile_threshold(normal @ weights, false_positive_rate)


def decide(scores: Float[np.ndarray, " *n"], threshold: float) -> Bool[np.ndarray, " *n"]:
    """True where abnormal: the score is above the threshold."""
    return np.asarray(scores > threshold)
