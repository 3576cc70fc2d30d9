"""What a report shows: which images are worth looking at, and every figure beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jax_noisy_anogan.evaluation.metrics import ImageIntervals, ImageMetrics
from jax_noisy_anogan.evaluation.pixel_metrics import PixelIntervals, PixelResult
from jax_noisy_anogan.scoring.calibration import decide
from jax_noisy_anogan.scoring.maps import Box

Picture = UInt8[np.ndarray, "height width channels"]


class Selection(NamedTuple):
    """Indices of the images to show; no image is in two groups.

    Attributes:
      false_negatives: abnormal, not flagged; the lowest score first.
      false_positives: normal, flagged; the highest score first.
      most_anomalous, least_anomalous: of the others, by score.
    """

    false_negatives: Int[np.ndarray, " a"]
    false_positives: Int[np.ndarray, " b"]
    most_anomalous: Int[np.ndarray, " c"]
    least_anomalous: Int[np.ndarray, " d"]


@dataclass(frozen=True)
class ReportImage:
    """One image with what was found in it.

    Attributes:
      path: where it came from, as the user knows it.
      score: the one that decides.
      is_abnormal: the truth.
      is_flagged: the decision.
      image: grey or RGB.
      class_name: kind of defect, or name of the class; may be empty.
      terms: further scores, shown under the pictures.
      reconstruction: G(z_hat), of the image's size.
      heatmap: RGB, as `pictures.overlay` draws it, of the image's size.
      mask: True at the pixels known to be defective.
      box: the largest region found.
    """

    path: str
    score: float
    is_abnormal: bool
    is_flagged: bool
    image: Picture
    class_name: str = ""
    terms: Mapping[str, float] = field(default_factory=dict)
    reconstruction: Picture | None = None
    heatmap: Picture | None = None
    mask: Bool[np.ndarray, "height width"] | None = None
    box: Box | None = None


@dataclass(frozen=True)
class ScoreSummary:
    """The metrics of one score: a row of the first table."""

    name: str
    metrics: ImageMetrics
    intervals: ImageIntervals | None = None


@dataclass(frozen=True)
class Report:
    """What `write_report` writes.

    Attributes:
      title: heading; `subtitle` stands below it.
      score_name: which of `summaries` decides; histogram, curves and images are about it.
      scores, is_abnormal: of every image, and the `threshold` above which it is flagged.
      summaries: metrics of every score.
      class_names: of every image; gives the table per kind of defect. Empty: no such table.
      settings: name to value; values that are mappings become groups.
      pixel, pixel_intervals, pixel_by_class: pixel metrics, where masks are known.
      false_negatives, false_positives, most_anomalous, least_anomalous: chosen by `select_images`.
      heat_range: the map's values at which heatmaps begin and are strongest.
      failures: path to error, of images that could not be scored.
      level: coverage of the intervals.
    """

    title: str
    score_name: str
    scores: Float[np.ndarray, " n"]
    is_abnormal: Bool[np.ndarray, " n"]
    threshold: float
    summaries: Sequence[ScoreSummary]
    subtitle: str = ""
    class_names: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    pixel: PixelResult | None = None
    pixel_intervals: PixelIntervals | None = None
    pixel_by_class: Mapping[str, PixelResult] = field(default_factory=dict)
    false_negatives: Sequence[ReportImage] = ()
    false_positives: Sequence[ReportImage] = ()
    most_anomalous: Sequence[ReportImage] = ()
    least_anomalous: Sequence[ReportImage] = ()
    heat_range: tuple[float, float] | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    level: float = 0.95


def select_images(
    scores: Float[np.ndarray, " n"],
    is_abnormal: Bool[np.ndarray, " n"],
    *,
    threshold: float,
    misses: int = 12,
    extremes: int = 6,
) -> Selection:
    """The worst misses of either kind, and the most and least anomalous of the other images.

    Args:
      misses: at most so many false negatives, and so many false positives.
      extremes: at most so many of the most, and of the least anomalous images.
    """
    flagged = decide(scores, threshold)
    rising = np.argsort(scores, kind="stable")
    falling = rising[::-1]
    false_negatives = rising[(is_abnormal & ~flagged)[rising]]
    false_positives = falling[(~is_abnormal & flagged)[falling]]
    others = rising[(is_abnormal == flagged)[rising]]
    most = others[::-1][:extremes]
    return Selection(
        false_negatives[:misses],
        false_positives[:misses],
        most,
        others[: max(min(extremes, len(others) - len(most)), 0)],
    )
