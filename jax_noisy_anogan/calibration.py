"""From raw terms to a calibrated score, a probability, and thresholds; validation images only.

Terms are standardised by validation normals. With known abnormal validation images their weights
are those of a logistic regression (classes weighted equally, weights not negative: no term may
speak for an image because it is unusual); with normals alone all terms weigh the same.
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

from jax_noisy_anogan.metrics import decide

Terms = Mapping[str, Float[np.ndarray, " n"]]

CALIBRATED = "calibrated"
_RIDGE = 0.01
_SMALLEST = 2


class CalibrationError(RuntimeError):
    """A run cannot be calibrated, or its calibration cannot be read."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one score; an image above the chosen one is called abnormal.

    Attributes:
      chosen: the one that decides.
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
        try:
            return cls.from_json(path.read_text())
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be read ({error.strerror}): run `python -m jax_noisy_anogan."
                f"evaluate --workdir {path.parent}` first"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Rebuild from JSON text.

        Raises:
          CalibrationError: not a calibration.
        """
        try:
            values = json.loads(text)
            thresholds = {k: Thresholds(**v) for k, v in values.pop("thresholds").items()}
            values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
            return cls(thresholds=thresholds, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CalibrationError(f"not a calibration: {error}") from error


def fit(
    normal: Terms,
    abnormal: Terms,
    *,
    rule: str,
    false_positive_rate: float,
) -> Calibration:
    """Fit to the terms of validation images.

    Args:
      normal: terms of normal validation images, at least two.
      abnormal: of known abnormal validation images; arrays of length 0 where there are none.
      rule: "best_f1" or "youden", which become "quantile" without abnormal images; or "quantile".
      false_positive_rate: of the quantile thresholds.

    Raises:
      CalibrationError: fewer than two normal images, or a term that is not finite.
    """
    names = tuple(normal)
    normals, abnormals = _matrix(normal), _matrix(abnormal)
    if len(normals) < _SMALLEST:
        raise CalibrationError(
            f"{len(normals)} normal validation images: at least {_SMALLEST} are needed; raise "
            "config.data.validation_fraction"
        )
    if not (np.isfinite(normals).all() and np.isfinite(abnormals).all()):
        raise CalibrationError("a term of a validation image is not finite")
    mean = normals.mean(axis=0)
    # A term that is the same for all normal images still has a scale: its own size.
    std = np.maximum(normals.std(axis=0, ddof=1), 1e-6 * (1.0 + np.abs(mean)))
    z_normal, z_abnormal = (normals - mean) / std, (abnormals - mean) / std
    if len(abnormals):
        weights, intercept = _logistic_regression(z_normal, z_abnormal)
    else:
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


def quantile_threshold(normal: Float[np.ndarray, " n"], false_positive_rate: float) -> float:
    """The smallest score of a normal image that at most this share of them exceeds."""
    return float(np.quantile(normal, 1.0 - false_positive_rate, method="higher"))


def best_f1_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest F1, in the middle of the gap between the scores beside it."""

    def f1(true_positive: np.ndarray, false_positive: np.ndarray) -> np.ndarray:
        return 2 * true_positive / (true_positive + false_positive + len(abnormal))

    return _best_threshold(normal, abnormal, f1)


def youden_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest true minus false positive rate (Youden's J)."""

    def j(true_positive: np.ndarray, false_positive: np.ndarray) -> np.ndarray:
        return true_positive / len(abnormal) - false_positive / len(normal)

    return _best_threshold(normal, abnormal, j)


def _best_threshold(normal: np.ndarray, abnormal: np.ndarray, quality) -> float:
    scores = np.unique(np.concatenate([normal, abnormal]))
    # Below all scores, between two neighbours each; never above all, which would find nothing.
    cuts = np.concatenate([[scores[0] - 1.0], (scores[:-1] + scores[1:]) / 2])
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
    return Thresholds(chosen, quantile, f1, youden)


def _matrix(terms: Terms) -> Float[np.ndarray, "n terms"]:
    return np.stack([np.asarray(values, np.float64) for values in terms.values()], axis=-1)


def _logistic_regression(
    normal: Float[np.ndarray, "n terms"], abnormal: Float[np.ndarray, "m terms"]
) -> tuple[Float[np.ndarray, " terms"], float]:
    """Weights >= 0 and intercept of a ridge-penalised logistic regression, classes weighted alike.

    Terms of clearly abnormal images lie tens of deviations away, where they say nothing about the
    border: they are compressed for the fit by the factor that brings the farthest to 10.
    """
    shrink = np.maximum(np.abs(np.concatenate([normal, abnormal])).max(axis=0) / 10.0, 1.0)
    x = np.concatenate([normal, abnormal]) / shrink
    y = np.concatenate([-np.ones(len(normal)), np.ones(len(abnormal))])
    share = np.where(y > 0, 0.5 / len(abnormal), 0.5 / len(normal))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin = y * (x @ weights + intercept)
        value = share @ np.logaddexp(0.0, -margin) + 0.5 * _RIDGE * weights @ weights
        slope = -share * y / (1.0 + np.exp(np.clip(margin, -500, 500)))
        return value, np.append(slope @ x + _RIDGE * weights, slope.sum())

    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    start = np.append(np.full(x.shape[1], 0.1), 0.0)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x[:-1] / shrink, float(found.x[-1])


def _equal_weights(
    normal: Float[np.ndarray, "n terms"], false_positive_rate: float
) -> tuple[Float[np.ndarray, " terms"], float]:
    """The mean of the standardised terms, scaled to unit deviation, 0 at the quantile threshold."""
    sums = normal.mean(axis=1)
    weights = np.full(normal.shape[1], 1.0 / normal.shape[1]) / max(float(sums.std(ddof=1)), 1e-6)
    return weights, -quantile_threshold(normal @ weights, false_positive_rate)
