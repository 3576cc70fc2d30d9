"""From raw terms to a calibrated score, thresholds, and `anomaly`; validation images only.

Terms are standardised by validation normals. With known abnormal validation images their weights
are those of a logistic regression (classes weighted equally, weights not negative: no term may
speak for an image because it is unusual), which a few images move little from the weights that are
expected: of the term that was trained against known abnormal images, and of those that the caller
trusts. With normals alone, or where no term tells the two apart, the trusted ones weigh the same,
or all.

No threshold rests on an image that was fitted: thresholds are those of cross-fitted scores, of
which each comes from a fit without the image (and the term `local` from map statistics without it,
which is up to the caller).

`anomaly` is the calibrated score for people: 0.5 at the threshold, in units of how much normal
images scatter. A sigmoid would be 1.000 for every strong defect; d / (scale + |d|) still tells 50
deviations (0.990) from 100 (0.995).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime.files import checksum, digest, write_text
from jax_noisy_anogan.scoring.thresholds import (
    Thresholds,
    decide,
    fit_thresholds,
    quantile_threshold,
)

Terms = Mapping[str, Float[np.ndarray, " n"]]

CALIBRATED = "calibrated"
ANOMALY = "anomaly"
# The anomaly at the threshold of the calibrated score.
DECISION = 0.5
# A fit without one image rests on three: fewer say nothing of a deviation.
FEWEST_NORMALS = 4
_FOLDS = 20
# The weights that are expected count as so many abnormal images. Cross-fitted AUROC of validation
# images with 1, 3, 10, 30: magnetic tiles (5 known) 0.715, 0.794, 0.838, 0.851, (6 known) 0.933,
# 0.925, 0.917, 0.917, (30 known) 0.831, 0.836, 0.835, 0.837; MNIST 8 (200 known) 0.996, then 0.997.
_EXPECTED = 10.0


class CalibrationError(UserError, RuntimeError):
    """A run cannot be calibrated, or its calibration cannot be read."""


@dataclass(frozen=True)
class Calibration:
    """How scores of one run become decisions.

    Attributes:
      terms: names, in the order of `mean`, `std` and `weights`.
      mean, std: of each term over validation normals; the deviation has a floor.
      weights, intercept: of the standardised terms; their sum is the calibrated score, a logit.
      scale: calibrated scores are this far apart where `anomaly` moves from 0.5 to 0.75.
      thresholds: by score name, `CALIBRATED` included.
      rule: the rule asked for.
      normals, abnormals: how many validation images it rests on.
    """

    terms: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    scale: float
    thresholds: dict[str, Thresholds]
    rule: str
    normals: int
    abnormals: int

    def calibrated(self, terms: Terms) -> Float[np.ndarray, " n"]:
        """The calibrated score: above 0 is rather abnormal than normal."""
        values = np.stack([np.asarray(terms[name], np.float64) for name in self.terms], axis=-1)
        standardised = (values - np.array(self.mean)) / np.array(self.std)
        # A matrix product rounds a row otherwise among others than alone.
        return (standardised * np.array(self.weights)).sum(axis=-1) + self.intercept

    def anomaly(self, terms: Terms) -> Float[np.ndarray, " n"]:
        """From 0 to 1, above 0.5 where the calibrated score is above its threshold."""
        return self.to_anomaly(self.calibrated(terms))

    def to_anomaly(self, calibrated: Float[np.ndarray, " *n"]) -> Float[np.ndarray, " *n"]:
        """`anomaly` of calibrated scores: 0.5 (1 + d / (scale + |d|)), d = score - threshold.

        It is 0.1 to 0.2 for most normal images, which lie a few deviations below the threshold;
        0.75 is one deviation above it, 0.95 nine, 0.995 ninety-nine.
        """
        d = np.asarray(calibrated, np.float64) - self.thresholds[CALIBRATED].chosen
        found = DECISION * (1.0 + d / (self.scale + np.abs(d)))
        # Rounding must not take back the decision on a score just above the threshold.
        return np.where(d > 0, np.maximum(found, np.nextafter(DECISION, 1.0)), found)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

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
            absent = {field.name for field in dataclasses.fields(cls)} - set(values)
            if absent:
                raise ValueError(f"{', '.join(sorted(absent))} is missing")
            thresholds = {k: Thresholds(**v) for k, v in values.pop("thresholds").items()}
            values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
            return cls(thresholds=thresholds, **values)._checked()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CalibrationError(f"not a calibration ({error})") from error

    def _checked(self) -> Calibration:
        rows = np.array([self.mean, self.std, self.weights], float)
        chosen = [self.thresholds[name].chosen for name in (*self.terms, CALIBRATED)]
        others = [
            (t.quantile, t.rate_low, t.rate_high)
            for t in (self.thresholds[name] for name in (*self.terms, CALIBRATED))
        ]
        figures = [*rows.ravel(), self.intercept, self.scale, *chosen, *np.ravel(others)]
        is_finite = np.isfinite(np.array(figures, float)).all()
        if rows.shape != (3, len(self.terms)) or not is_finite:
            raise ValueError("a figure is missing or not finite")
        if self.scale <= 0 or (rows[1] <= 0).any():
            raise ValueError("a scale or deviation is not positive")
        return self


def stamp(model: Model, config: Config) -> str:
    """Tells trained models, searches and scores apart: none is judged by thresholds of another."""
    search = dataclasses.asdict(config.search) | {"record_curve": False}
    score = dataclasses.asdict(config.score)
    for name in ("threshold_rule", "false_positive_rate", "yardsticks"):  # no score hangs on them
        del score[name]
    return digest(checksum(model[1:]), search, score)


# The part that each normal, and each known abnormal, validation image shows.
Groups = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]


class Fitted(NamedTuple):
    """A calibration, and the calibrated scores of the validation images by fits without them."""

    calibration: Calibration
    normal: Float[np.ndarray, " n"]
    abnormal: Float[np.ndarray, " m"]


def fit(
    normal: Terms,
    abnormal: Terms,
    *,
    groups: Groups | None = None,
    rule: str,
    false_positive_rate: float,
    learned: str = "",
    trusted: Sequence[str] = (),
) -> Fitted:
    """Fit to the terms of validation images.

    Args:
      normal: terms of normal validation images, at least `FEWEST_NORMALS`; each by map statistics
        without the image and others of its part.
      abnormal: of known abnormal validation images; arrays of length 0 where there are none.
      groups: the part that each image shows; None: each one of its own.
      rule: "best_f1", "youden" or "quantile", see `fit_thresholds`.
      false_positive_rate: of the quantile thresholds.
      learned: the term that was trained against known abnormal images, if any.
      trusted: terms that share the weight where nothing abnormal is known; none means all.

    Raises:
      CalibrationError: too few normal images, or a term that is not finite.
    """
    names = tuple(normal)
    normals, abnormals = _matrix(normal), _matrix(abnormal)
    require_normals(len(normals))
    if not (np.isfinite(normals).all() and np.isfinite(abnormals).all()):
        raise CalibrationError("a term of a validation image is not finite")
    expected = _expected_weights(names, learned, trusted)
    balance = np.array([float(name in (trusted or names)) for name in names])
    whole = _fit_linear(normals, abnormals, expected, balance)
    if whole.balanced and balance.sum() == 1:
        # Whatever the fit, one term orders images alike. Fits without an image would differ in
        # scale only, by which an unusual normal image would lift the threshold of all others.
        scores = whole(normals), whole(abnormals)
    else:
        scores = _cross_fitted(normals, abnormals, expected, balance, whole, groups)
    if whole.balanced:
        # Nothing abnormal says where 0 should lie: it lies at the quantile threshold.
        shift = quantile_threshold(scores[0], false_positive_rate)
        whole = whole._replace(intercept=-shift)
        scores = scores[0] - shift, scores[1] - shift
    columns = {name: (normals[:, k], abnormals[:, k]) for k, name in enumerate(names)}
    parts = len(normals) if groups is None else len(np.unique(groups[0]))
    thresholds = {
        name: fit_thresholds(
            *values, rule=rule, false_positive_rate=false_positive_rate, parts=parts
        )
        for name, values in {**columns, CALIBRATED: scores}.items()
    }
    own = whole(normals)
    if decide(own, thresholds[CALIBRATED].chosen).all():
        # Scores of fits without an image lie elsewhere where nothing tells the images apart.
        thresholds[CALIBRATED] = fit_thresholds(
            own,
            scores[1][:0],
            rule="quantile",
            false_positive_rate=false_positive_rate,
            parts=parts,
        )
    calibration = Calibration(
        terms=names,
        mean=tuple(whole.mean.tolist()),
        std=tuple(whole.std.tolist()),
        weights=tuple(whole.weights.tolist()),
        intercept=float(whole.intercept),
        scale=_spread(scores[0], thresholds[CALIBRATED].chosen),
        thresholds=thresholds,
        rule=rule,
        normals=len(normals),
        abnormals=len(abnormals),
    )
    return Fitted(calibration, *scores)


def require_normals(count: int) -> None:
    """Check that there are enough normal validation images, before any work on them.

    Raises:
      CalibrationError: fewer than `FEWEST_NORMALS`.
    """
    if count < FEWEST_NORMALS:
        raise CalibrationError(
            f"{count} normal validation images: at least {FEWEST_NORMALS} are needed; raise "
            "config.data.validation_fraction"
        )


def require_anomaly(threshold: float, name: str) -> None:
    """Refuse a threshold that no anomaly can have.

    Raises:
      ConfigError: it is not from 0 to 1.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"{name}={threshold}: expected an anomaly from 0 to 1, as 0.5")


def _spread(normal: Float[np.ndarray, " n"], threshold: float) -> float:
    """How much calibrated scores of normal images scatter, with a floor.

    Where they all but agree, a tenth of the way from their median to the threshold: otherwise every
    image would have an anomaly near 0 or near 1.
    """
    way = abs(threshold - float(np.median(normal)))
    return max(float(normal.std(ddof=1)), 0.1 * way, 1e-6 * (1.0 + abs(threshold)))


def _expected_weights(
    names: Sequence[str], learned: str, trusted: Sequence[str]
) -> Float[np.ndarray, " terms"]:
    """The learned term counts as much as each trusted one; without those, as all others together.

    Where nothing was learned and no term is trusted, nothing is expected: all are 0.

    The learned term alone would be blind to kinds of abnormal images that training did not know:
    with one digit of nine known, every term tells that one from normal images, and D alone none
    of the others so well. AUROC on nine digits, 62 images of one in validation, of four trainings
    whose test images decided nothing else: D alone 0.887, this 0.942, all terms alike 0.947.
    Cross-fitted AUROC of validation images where all kinds are known (Table 2, six runs with 8
    known images): 0.938, 0.925, 0.909.
    """
    learns = np.array([float(name == learned) for name in names])
    trusts = np.array([float(name in trusted) for name in names])
    if learned and not trusted:
        trusts = (1.0 - learns) / (1.0 - learns).sum()
    expected = learns + trusts
    return expected / max(expected.sum(), 1.0)


class _Linear(NamedTuple):
    """A weighted sum of standardised terms.

    Attributes:
      balanced: the trusted terms weigh the same, and the intercept is still to be chosen.
    """

    mean: Float[np.ndarray, " terms"]
    std: Float[np.ndarray, " terms"]
    weights: Float[np.ndarray, " terms"]
    intercept: float
    balanced: bool

    def __call__(self, values: Float[np.ndarray, "n terms"]) -> Float[np.ndarray, " n"]:
        return (values - self.mean) / self.std @ self.weights + self.intercept


def _fit_linear(
    normals: Float[np.ndarray, "n terms"],
    abnormals: Float[np.ndarray, "m terms"],
    expected: Float[np.ndarray, " terms"],
    balance: Float[np.ndarray, " terms"],
    near: _Linear | None = None,
) -> _Linear:
    """The fit; `near` is one to similar images, at which it begins."""
    mean = normals.mean(axis=0)
    # A term that is the same for all normal images still has a scale: its own size.
    std = np.maximum(normals.std(axis=0, ddof=1), 1e-6 * (1.0 + np.abs(mean)))
    z_normal = (normals - mean) / std
    if len(abnormals):
        start = None if near is None else np.append(near.weights, near.intercept)
        weights, intercept = _logistic_regression(
            z_normal, (abnormals - mean) / std, expected, start
        )
        # All are zero where every term is lower for the known abnormal images: nothing is learned.
        # Fits to parts of the images stay of the kind of the fit to all: others count otherwise.
        if weights.any() or near is not None:
            return _Linear(mean, std, weights, intercept, balanced=False)
    count = balance.sum()
    sums = (z_normal * balance).sum(axis=1) / count
    # The mean of independent terms deviates by 1 / sqrt(count). A few images in which the terms
    # happen to cancel would give next to nothing, and a scale that explodes.
    scale = max(float(sums.std(ddof=1)), 0.5 / np.sqrt(count))
    return _Linear(mean, std, balance / count / scale, 0.0, balanced=True)


def _cross_fitted(
    normals: Float[np.ndarray, "n terms"],
    abnormals: Float[np.ndarray, "m terms"],
    expected: Float[np.ndarray, " terms"],
    balance: Float[np.ndarray, " terms"],
    whole: _Linear,
    groups: Groups | None,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """The score of every image by a fit of the same kind as `whole`, without the image's part.

    The abnormal images of a single part are not left out: without them, nothing of their kind is
    known. No threshold rests on a single one (`fit_thresholds`).
    """
    scores = whole(normals), whole(abnormals)
    for held_normal, held_abnormal in _folds(len(normals), len(abnormals), groups):
        rest = np.delete(abnormals, held_abnormal, axis=0)
        rest = rest if len(rest) else abnormals
        without = _fit_linear(
            np.delete(normals, held_normal, axis=0),
            rest[:0] if whole.balanced else rest,
            expected,
            balance,
            whole,
        )
        scores[0][held_normal] = without(normals[held_normal])
        scores[1][held_abnormal] = without(abnormals[held_abnormal])
    return scores


def _folds(
    normals: int, abnormals: int, groups: Groups | None
) -> Iterator[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]]:
    """Which images a fit leaves out: neighbours together, one at a time where there are few.

    Those of a part are always left out together.
    """
    if groups is not None:
        from sklearn.model_selection import GroupKFold  # takes a second to import

        numbers = np.concatenate(groups)
        count = min(_FOLDS, len(np.unique(numbers)))
        for _, held in GroupKFold(count).split(numbers, groups=numbers):
            yield held[held < normals], held[held >= normals] - normals
        return
    count = min(_FOLDS, max(normals, abnormals))
    left_out = np.arange(abnormals if abnormals > 1 else 0)
    yield from zip(
        np.array_split(np.arange(normals), count), np.array_split(left_out, count), strict=True
    )


def _matrix(terms: Terms) -> Float[np.ndarray, "n terms"]:
    return np.stack([np.asarray(values, np.float64) for values in terms.values()], axis=-1)


def _logistic_regression(
    normal: Float[np.ndarray, "n terms"],
    abnormal: Float[np.ndarray, "m terms"],
    expected: Float[np.ndarray, " terms"],
    start: Float[np.ndarray, " parameters"] | None = None,
) -> tuple[Float[np.ndarray, " terms"], float]:
    """Weights >= 0 and intercept of a ridge-penalised logistic regression, classes weighted alike.

    The ridge draws the weights to `expected` with 10 / m beside a mean over the m abnormal images:
    what is expected counts the same whatever their number, and more images outweigh it.

    Terms of clearly abnormal images lie tens of deviations away, where they say nothing about the
    border: beyond 10 all count the same for the fit.
    """
    x = np.clip(np.concatenate([normal, abnormal]), -10.0, 10.0)
    y = np.concatenate([-np.ones(len(normal)), np.ones(len(abnormal))])
    share = np.where(y > 0, 0.5 / len(abnormal), 0.5 / len(normal))
    ridge = _EXPECTED / len(abnormal)

    def loss(parameters: Float[np.ndarray, " k"]) -> tuple[float, Float[np.ndarray, " k"]]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin, away = y * (x @ weights + intercept), weights - expected
        value = share @ np.logaddexp(0.0, -margin) + 0.5 * ridge * away @ away
        slope = -share * y / (1.0 + np.exp(np.clip(margin, -500, 500)))
        return value, np.append(slope @ x + ridge * away, slope.sum())

    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    if start is None:
        start = np.append(np.full(x.shape[1], 0.1), 0.0)
    found = optimize.minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 10_000},
    )
    return found.x[:-1], float(found.x[-1])
