"""What a report shows: which images are worth looking at, and every figure beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jax_noisy_anogan import pictures
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.held_out import Seen
from jax_noisy_anogan.evaluation.metrics import ImageIntervals, ImageMetrics
from jax_noisy_anogan.evaluation.operating import OperatingPoint, SetBy
from jax_noisy_anogan.evaluation.pixel_metrics import PixelIntervals, PixelResult
from jax_noisy_anogan.scoring.calibration import DECISION, Calibration
from jax_noisy_anogan.scoring.thresholds import decide

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
      class_name: kind of defect, or name of the class.
      terms: further scores, shown under the pictures.
      reconstruction: G(z_hat), of the image's size.
      heatmap: RGB, as `pictures.overlay` draws it, of the image's size.
      mask: True at the pixels known to be defective; None where it is not known.
    """

    path: str
    score: float
    is_abnormal: bool
    is_flagged: bool
    image: Picture
    class_name: str
    terms: Mapping[str, float]
    reconstruction: Picture
    heatmap: Picture
    mask: Bool[np.ndarray, "height width"] | None


@dataclass(frozen=True)
class ScoreSummary:
    """The metrics of one score: a row of the first table."""

    name: str
    metrics: ImageMetrics
    intervals: ImageIntervals


@dataclass(frozen=True)
class Report:
    """What `write_report` writes.

    Attributes:
      title: heading; `subtitle` stands below it.
      scores, is_abnormal: of every image its anomaly, and the `threshold` above which it is
        flagged; histogram, curves and images are about them.
      operating_points: other thresholds, and what they find.
      set_by: the part that sets the threshold alone, if any.
      summaries: metrics of every score, `anomaly` among them.
      class_names: of every image; gives the table per kind of defect.
      settings: of the run, by section and name.
      pixel, pixel_intervals, pixel_by_class: pixel metrics, where masks are known.
      false_negatives, false_positives, most_anomalous, least_anomalous: chosen by `select_images`.
      hottest: the map's value at which heatmaps are strongest; they begin at 0.
      failures: path to error, of images that could not be scored.
      yardsticks: figures of simple methods on the same images, by name and figure.
      notice: a line above everything else; empty for none.
    """

    title: str
    subtitle: str
    scores: Float[np.ndarray, " n"]
    is_abnormal: Bool[np.ndarray, " n"]
    threshold: float
    operating_points: Sequence[OperatingPoint]
    set_by: SetBy | None
    summaries: Sequence[ScoreSummary]
    class_names: Sequence[str]
    settings: Mapping[str, Mapping[str, Any]]
    pixel: PixelResult | None
    pixel_intervals: PixelIntervals | None
    pixel_by_class: Mapping[str, PixelResult]
    false_negatives: Sequence[ReportImage]
    false_positives: Sequence[ReportImage]
    most_anomalous: Sequence[ReportImage]
    least_anomalous: Sequence[ReportImage]
    hottest: float
    failures: Mapping[str, str]
    yardsticks: Mapping[str, Mapping[str, float]]
    notice: str


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


Item = TypeVar("Item")


class Shortlist(Generic[Item]):
    """What `select_images` chooses from a stream, without keeping the rest."""

    def __init__(self, *, threshold: float):
        self._threshold = threshold
        self._kept: list[tuple[float, bool, Item]] = []

    def add(self, score: float, is_abnormal: bool, make: Callable[[], Item]) -> None:
        """Consider one image; `make` is called if it is among the chosen so far."""
        last = len(self._kept)
        scores = np.array([*(kept[0] for kept in self._kept), score])
        truths = np.array([*(kept[1] for kept in self._kept), is_abnormal])
        chosen = select_images(scores, truths, threshold=self._threshold)
        stays = sorted(np.concatenate(chosen).tolist())
        if stays and stays[-1] == last:
            self._kept.append((score, is_abnormal, make()))
        self._kept = [self._kept[k] for k in stays]

    def groups(self) -> dict[str, list[Item]]:
        """The chosen ones by the names of `Selection`."""
        scores = np.array([kept[0] for kept in self._kept])
        truths = np.array([kept[1] for kept in self._kept], bool)
        chosen = select_images(scores, truths, threshold=self._threshold)
        return {name: [self._kept[k][2] for k in group] for name, group in chosen._asdict().items()}


class Cards:
    """Keeps what the report shows of the images worth looking at while the test images pass by.

    Args:
      hottest: where heat is strongest.
    """

    def __init__(self, dataset: Dataset, split: Split, calibration: Calibration, hottest: float):
        self._dataset, self._split, self._hottest = dataset, split, hottest
        self._calibration = calibration
        self._shortlist = Shortlist[ReportImage](threshold=DECISION)

    def __call__(self, seen: Seen) -> None:
        """Keep a test image, if it may still be worth looking at."""
        row = {name: np.array([value]) for name, value in seen.terms.items()}
        score = float(self._calibration.anomaly(row)[0])
        is_abnormal = bool(self._split.is_abnormal[seen.example])
        self._shortlist.add(score, is_abnormal, lambda: self._card(seen, score, is_abnormal))

    def groups(self) -> dict[str, list[ReportImage]]:
        """The images by the names of `Selection`."""
        return self._shortlist.groups()

    def _card(self, seen: Seen, score: float, is_abnormal: bool) -> ReportImage:
        dataset, index = self._dataset, seen.example
        mask = None
        if dataset.has_masks and dataset.has_mask[index]:
            # Any part of a pixel: small defects would vanish.
            mask = dataset.source(dataset.resolution).mask(index) > 0
        return ReportImage(
            path=dataset.ids[index],
            score=score,
            is_abnormal=is_abnormal,
            is_flagged=bool(decide(np.array(score), DECISION)),
            image=seen.image,
            class_name=dataset.class_names[dataset.labels[index]],
            terms=seen.terms,
            reconstruction=seen.result.reconstruction,
            heatmap=pictures.overlay(seen.image, seen.map, low=0.0, high=self._hottest),
            mask=mask,
        )
