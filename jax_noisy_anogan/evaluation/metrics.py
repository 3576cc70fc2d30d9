"""How well scores and maps separate normal from abnormal: images, pixels, kinds of defect.

One decision rule holds everywhere: an image (or pixel) is called abnormal when its score is
**above** the threshold (`decide`). A threshold that is itself the score of a normal validation
image therefore does not flag that image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import optimize, special

from jax_noisy_anogan.scoring.thresholds import decide


class ImageMetrics(NamedTuple):
    """Image metrics; the first four are nan when only one of the two classes is present.

    Attributes:
      auroc: area under the ROC curve; ties count half.
      average_precision: sum of precision times gain in recall, without interpolation.
      f1_best: largest F1 over all thresholds; chosen on the very images that it judges, so it is a
        bound on what a threshold could reach. With a share p of abnormal images it is at least
        2p / (1 + p).
      f1_at_threshold: F1 of `decide` at `threshold`.
      threshold: as given.
    """

    auroc: float
    average_precision: float
    f1_best: float
    f1_at_threshold: float
    threshold: float


class Interval(NamedTuple):
    """Percentile interval of a bootstrap; nan where the statistic is undefined."""

    low: float
    high: float


class ImageIntervals(NamedTuple):
    """An interval for each of `ImageMetrics`' figures."""

    auroc: Interval
    average_precision: Interval
    f1_best: Interval
    f1_at_threshold: Interval


def image_metrics(
    scores: Float[np.ndarray, " n"], is_abnormal: Bool[np.ndarray, " n"], *, threshold: float
) -> ImageMetrics:
    """AUROC, average precision and F1 of scores that grow with abnormality.

    Raises:
      ValueError: lengths differ, or a score is not finite.
    """
    from sklearn import metrics  # takes seconds to import

    scores, is_abnormal = _check(scores, is_abnormal)
    if is_abnormal.all() or not is_abnormal.any():
        return ImageMetrics(nan, nan, nan, nan, threshold)
    precision, recall, _ = metrics.precision_recall_curve(is_abnormal, scores)
    # Where precision and recall are both 0, F1 is 0.
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return ImageMetrics(
        auroc=float(metrics.roc_auc_score(is_abnormal, scores)),
        average_precision=float(metrics.average_precision_score(is_abnormal, scores)),
        f1_best=float(f1.max()),
        f1_at_threshold=float(
            metrics.f1_score(is_abnormal, decide(scores, threshold), zero_division=0.0)
        ),
        threshold=threshold,
    )


def image_metrics_by_class(
    scores: Float[np.ndarray, " n"],
    is_abnormal: Bool[np.ndarray, " n"],
    class_names: Sequence[str],
    *,
    threshold: float,
) -> dict[str, ImageMetrics]:
    """Metrics of each abnormal class against all normal images, in alphabetical order.

    Args:
      class_names: of each image; those of normal images are not looked at.
    """
    scores, is_abnormal = _check(scores, is_abnormal)
    names = np.asarray(class_names, dtype=str)
    if len(names) != len(scores):
        raise ValueError(f"{len(names)} class names for {len(scores)} scores")
    found = {}
    for name in np.unique(names[is_abnormal]):
        chosen = ~is_abnormal | (names == name)
        found[str(name)] = image_metrics(scores[chosen], is_abnormal[chosen], threshold=threshold)
    return found


def image_intervals(
    scores: Float[np.ndarray, " n"],
    is_abnormal: Bool[np.ndarray, " n"],
    *,
    threshold: float,
    seed: int,
    groups: Int[np.ndarray, " n"] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> ImageIntervals:
    """Intervals of all of `image_metrics`: `auroc_interval`, the others by bootstrap.

    Images are resampled within each class. With few images the bootstrap is too narrow. The scores
    are sorted once and every resample is a set of weights on them, so that a thousand resamples of
    ten thousand images take about a second.

    Args:
      groups: the part that each image shows: parts are drawn, and counted, instead of images.
    """
    scores, is_abnormal = _check(scores, is_abnormal)
    if is_abnormal.all() or not is_abnormal.any():
        return ImageIntervals(*[Interval(nan, nan)] * 4)
    order = np.argsort(-scores, kind="stable")
    ordered, abnormal = scores[order], is_abnormal[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    flagged = np.count_nonzero(decide(ordered, threshold))
    values = []
    for chosen in bootstrap_samples(is_abnormal, seed, resamples, groups):
        weight = np.bincount(chosen, minlength=len(scores))[order]
        true = np.concatenate(([0], np.cumsum(weight * abnormal)))
        false = np.concatenate(([0], np.cumsum(weight * ~abnormal)))
        f1_at = 2 * true[flagged] / (true[flagged] + false[flagged] + true[-1])
        true, false = (counts[np.append(0, last_of_ties + 1)] for counts in (true, false))
        precision = true[1:] / np.maximum(true[1:] + false[1:], 1)
        values.append(
            (
                np.sum(np.diff(true) * precision) / true[-1],
                np.max(2 * true / (true + false + true[-1])),
                f1_at,
            )
        )
    parts = np.arange(len(scores)) if groups is None else groups
    counts = [len(np.unique(parts[is_abnormal == kind])) for kind in (True, False)]
    auroc = image_metrics(scores, is_abnormal, threshold=threshold).auroc
    return ImageIntervals(
        auroc_interval(auroc, *counts, level=level),
        *(percentiles(column, level) for column in zip(*values, strict=True)),
    )


def auroc_interval(auroc: float, abnormal: int, normal: int, *, level: float = 0.95) -> Interval:
    """Where the AUROC of so many images lies: the score interval of Newcombe 2006, method 5.

    It holds all theta with |theta - AUROC| <= z sqrt(V(theta)), where V is the variance of Hanley
    and McNeil 1982 with the mean of both numbers in place of each. It is right for few images too,
    and never of width 0.
    """
    z, half = special.ndtri((1 + level) / 2), (abnormal + normal) / 2 - 1

    def excess(theta: float) -> float:
        shared = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + half * shared) / (abnormal * normal)
        return float((theta - auroc) ** 2 - z**2 * variance)

    inside = float(np.clip(auroc, 1e-9, 1 - 1e-9))
    low = optimize.brentq(excess, 0.0, inside) if auroc > 0 else 0.0
    high = optimize.brentq(excess, inside, 1.0) if auroc < 1 else 1.0
    return Interval(low, high)


def bootstrap_samples(
    strata: Shaped[np.ndarray, " n"],
    seed: int,
    resamples: int,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Iterator[Int[np.ndarray, " drawn"]]:
    """Indices drawn with replacement, of every stratum as many images, or groups, as it has."""
    rng = np.random.default_rng(seed)
    groups = np.arange(len(strata)) if groups is None else groups
    members: list[np.ndarray | list[np.ndarray]] = []
    for value in np.unique(strata):
        own = np.flatnonzero(strata == value)
        own = own[np.argsort(groups[own], kind="stable")]
        ends = np.flatnonzero(np.diff(groups[own])) + 1
        members.append(own if len(ends) + 1 == len(own) else np.split(own, ends))

    def drawn(parts: np.ndarray | list[np.ndarray]) -> np.ndarray:
        chosen = rng.integers(len(parts), size=len(parts))
        # One index for many images: thousands of parts of one image each would take seconds.
        return (
            parts[chosen]
            if isinstance(parts, np.ndarray)
            else np.concatenate([parts[k] for k in chosen])
        )

    for _ in range(resamples):
        yield np.concatenate([drawn(parts) for parts in members])


def percentiles(values: Sequence[float], level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values, float), (tail, 1 - tail))
    return Interval(float(low), float(high))


def _check(
    scores: Float[np.ndarray, " n"], is_abnormal: Bool[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    scores, is_abnormal = np.asarray(scores, float), np.asarray(is_abnormal)
    if is_abnormal.dtype != bool or scores.ndim != 1 or scores.shape != is_abnormal.shape:
        raise ValueError(
            f"scores {scores.shape} and is_abnormal {is_abnormal.shape} of {is_abnormal.dtype}: "
            "expected two equally long rows, the second of bool"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite: leave out the images "
            "that could not be scored"
        )
    return scores, is_abnormal
