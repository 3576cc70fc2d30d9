"""Settings against each other, from the scores of images that no training of them has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jax_noisy_anogan.evaluation.metrics import bootstrap_samples
from jax_noisy_anogan.scoring.calibration import ANOMALY

# Beside the score that decides, where a run has them.
TERMS = ("score", "discriminator", "local", "memory", "components")
_RESAMPLES = 500


class Judged(NamedTuple):
    """Scores of the images that a fold leaves out, by candidate and then by score.

    Attributes:
      is_abnormal: truth of each image.
      yardsticks: AUROC by name.
    """

    scores: list[dict[str, list[float]]]
    is_abnormal: list[bool]
    yardsticks: dict[str, float]


class Row(NamedTuple):
    """A candidate's figures.

    Attributes:
      auroc: of the score that decides, fold by fold.
      terms: mean AUROC over the folds, by name.
      gain: mean AUROC beyond that of the first candidate.
      error: standard error of `gain`; images are resampled, trainings are not.
    """

    name: str
    auroc: list[float]
    terms: dict[str, float]
    gain: float
    error: float

    @property
    def mean(self) -> float:
        """Over the folds."""
        return float(np.mean(self.auroc))


def rows(names: Sequence[str], judged: Sequence[Judged]) -> list[Row]:
    """Figures of all candidates, by their names and in their order."""
    gains = _resampled_gains(judged)
    table: list[Row] = []
    for place, candidate in enumerate(names):
        known = [name for name in (ANOMALY, *TERMS) if name in judged[0].scores[place]]
        by_fold = {
            name: [_auroc(fold.scores[place][name], fold.is_abnormal) for fold in judged]
            for name in known
        }
        auroc, reference = by_fold[ANOMALY], table[0].mean if table else None
        gain = 0.0 if reference is None else float(np.mean(auroc)) - reference
        terms = {name: float(np.mean(by_fold[name])) for name in known if name != ANOMALY}
        table.append(Row(candidate, auroc, terms, gain, float(np.std(gains[place]))))
    return table


def _resampled_gains(judged: Sequence[Judged]) -> Float[np.ndarray, "candidates resamples"]:
    """Mean AUROC beyond the first candidate's: images are drawn again, the same for all."""
    found = np.zeros((len(judged[0].scores), _RESAMPLES))
    for number, fold in enumerate(judged):
        truth = np.array(fold.is_abnormal)
        for draw, chosen in enumerate(bootstrap_samples(truth, number, _RESAMPLES)):
            for place, scores in enumerate(fold.scores):
                drawn = np.array(scores[ANOMALY])[chosen]
                found[place, draw] += _auroc(drawn, truth[chosen]) / len(judged)
    return found - found[0]


def _auroc(
    scores: Sequence[float] | Float[np.ndarray, " n"],
    is_abnormal: Sequence[bool] | Bool[np.ndarray, " n"],
) -> float:
    from sklearn.metrics import roc_auc_score  # takes seconds to import

    return float(roc_auc_score(is_abnormal, scores))


def best(table: Sequence[Row]) -> int:
    """The candidate to take: the first, unless another is better by more than a standard error."""
    better = [place for place, row in enumerate(table) if row.gain > row.error]
    return max(better, key=lambda place: table[place].mean, default=0)


def simple(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """AUROC of every yardstick fold by fold, of those that all folds have."""
    names = [n for n in judged[0].yardsticks if all(n in fold.yardsticks for fold in judged)]
    return {name: [fold.yardsticks[name] for fold in judged] for name in names}
