"""Where a score becomes a decision: thresholds from validation images, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

Counts = Int[np.ndarray, " cuts"]

# Where in the gap between two scores a threshold lies: nearer to the lower one, since abnormal
# images scatter more than normal ones. With 10 normal and 2 known abnormal images of MNIST, of the
# validation part, the rest of that part had F1 0.96 to 0.98, and 0.94 to 0.97 with the middle.
_GAP_SHARE = 1 / 3
# A single abnormal image that sets a threshold says nothing of others.
_FEWEST_ABNORMAL = 2
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one score; an image above the chosen one is called abnormal.

    Attributes:
      chosen: the one that decides: the rule's, or `quantile` where the rule's would call every
        normal validation image abnormal.
      quantile: see `quantile_threshold`.
      best_f1, youden: best F1, and largest true minus false positive rate, on the validation
        images; None with fewer than two known abnormal ones.
      rate_low, rate_high: where the false-positive rate of `chosen` lies with a confidence of 95 %,
        see `rate_interval`.
    """

    chosen: float
    quantile: float
    best_f1: float | None
    youden: float | None
    rate_low: float = 0.0
    rate_high: float = 1.0


def fit_thresholds(
    normal: Float[np.ndarray, " n"],
    abnormal: Float[np.ndarray, " m"],
    *,
    rule: str,
    false_positive_rate: float,
    parts: int | None = None,
) -> Thresholds:
    """Thresholds from the scores of validation images.

    Args:
      normal, abnormal: scores that the images did not take part in fitting.
      rule: "best_f1", "youden" or "quantile", which also decides with fewer than two abnormal
        images.
      parts: how many parts the normal images show: several photographs of one say little more than
        one, so the interval of the rate counts parts. None: as many as images.
    """
    quantile = quantile_threshold(normal, false_positive_rate)
    f1 = youden = None
    chosen = quantile
    if len(abnormal) >= _FEWEST_ABNORMAL:
        f1, youden = best_f1_threshold(normal, abnormal), youden_threshold(normal, abnormal)
        wanted = {"quantile": quantile, "best_f1": f1, "youden": youden}[rule]
        # Where a score does not separate, F1 is best with everything flagged: no decision at all.
        chosen = quantile if decide(normal, wanted).all() else wanted
    flagged = int(decide(normal, chosen).sum())
    parts = len(normal) if parts is None else parts
    interval = rate_interval(flagged * parts / len(normal), parts)
    return Thresholds(chosen, quantile, f1, youden, *interval)


def quantile_threshold(normal: Float[np.ndarray, " n"], false_positive_rate: float) -> float:
    """The lowest threshold that a further normal image exceeds with at most this probability.

    A further image is as likely to fall into any of the n + 1 gaps between n scores: it exceeds the
    k-th largest with probability k / (n + 1) (conformal prediction, Vovk et al. 2005). Where even
    the largest is exceeded more often, the threshold lies beyond it, see `_beyond`.

    Args:
      normal: at least two scores that the images did not take part in fitting.
    """
    ordered = np.sort(np.asarray(normal, np.float64))
    # 0.29 of 100 images is 28.999999999999996 in floating point.
    allowed = int(false_positive_rate * (len(ordered) + 1) + 1e-9)
    if allowed:
        return float(ordered[-allowed])
    return _beyond(ordered, false_positive_rate)


def _beyond(ordered: Float[np.ndarray, " n"], rate: float) -> float:
    """A threshold above the largest score, from an exponential tail of the upper half.

    The k scores above the (k + 1)-th largest exceed it by E_1, ..., E_k. With exponential excesses
    a further score exceeds max E + c mean E with probability (k + 1) / (n + 1) times the product of
    1 / (1 + 1/j + c/k) over j from 1 to k (Rényi's spacings): the uncertainty of the mean is
    counted in, as Student's t does for normal scores. The rate decides c.
    """
    count = len(ordered)
    tail = max(count // 2, 1)
    excess = ordered[-tail:] - ordered[-tail - 1]
    places = np.arange(1, tail + 1)

    def log_ratio(c: float) -> float:
        chance = np.log((tail + 1) / (count + 1)) - np.log(1 + 1 / places + c / tail).sum()
        return float(chance - np.log(rate))

    highest = tail * ((1 / rate) ** (1 / tail) + 1.0)
    c = optimize.brentq(log_ratio, 0.0, highest)
    return float(ordered[-1] + c * excess.mean())


def best_f1_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest F1, in the gap between the scores beside it (`_GAP_SHARE`)."""

    def f1(true_positive: Counts, false_positive: Counts) -> np.ndarray:
        return 2 * true_positive / (true_positive + false_positive + len(abnormal))

    return _best_threshold(normal, abnormal, f1)


def youden_threshold(normal: Float[np.ndarray, " n"], abnormal: Float[np.ndarray, " m"]) -> float:
    """The threshold of largest true minus false positive rate (Youden's J)."""

    def j(true_positive: Counts, false_positive: Counts) -> np.ndarray:
        # Both rates times both numbers: whole numbers, so that ties are exact.
        return true_positive * len(normal) - false_positive * len(abnormal)

    return _best_threshold(normal, abnormal, j)


def _best_threshold(
    normal: np.ndarray, abnormal: np.ndarray, quality: Callable[..., np.ndarray]
) -> float:
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


def rate_interval(flagged: float, count: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate of which `flagged` of `count` were seen."""
    tail = (1 - _CONFIDENCE) / 2
    low = special.betaincinv(flagged, count - flagged + 1, tail) if flagged else 0.0
    high = special.betaincinv(flagged + 1, count - flagged, 1 - tail) if flagged < count else 1.0
    return float(low), float(high)


def decide(scores: Float[np.ndarray, " *n"], threshold: float) -> Bool[np.ndarray, " *n"]:
    """True where abnormal: the score is above the threshold."""
    return np.asarray(scores > threshold)
