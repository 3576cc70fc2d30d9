"""Histogram, ROC and precision-recall curves as what a template draws in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import ticker

from jax_noisy_anogan.evaluation.pages import short
from jax_noisy_anogan.scoring.thresholds import decide

_BINS = 40  # at most, in the histogram; fewer for few images
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 406, 12, 254

Scores = Float[np.ndarray, " n"]
Truth = Bool[np.ndarray, " n"]


class Tick(NamedTuple):
    """A labelled place on an axis, in the drawing's coordinates."""

    place: float
    text: str


class Line(NamedTuple):
    """Path data with its CSS classes."""

    style: str
    path: str


class Chart(NamedTuple):
    """One chart, in the drawing's coordinates; the frame lies between left, right, top, bottom.

    Attributes:
      mark: where the threshold is on a curve.
    """

    name: str
    description: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    mark: tuple[float, float] | None = None
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


class _Axes(NamedTuple):
    """Data coordinates to those of the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(float(_LEFT + share * (_RIGHT - _LEFT)), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(float(_BOTTOM - share * (_BOTTOM - _TOP)), 1)

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        """Path data; points that fall on the one before are left out, which bounds its length."""
        drawn = [(self.x(x), self.y(y)) for x, y in points]
        kept = [p for place, p in enumerate(drawn) if place == 0 or p != drawn[place - 1]]
        return "M" + " L".join(f"{x} {y}" for x, y in kept)

    def ticks(self, *, percent: bool = False) -> tuple[list[Tick], list[Tick]]:
        """Of both axes; `percent` is about the vertical one."""
        across = [Tick(self.x(v), short(v)) for v in _round_values(self.x_low, self.x_high)]
        values = _round_values(self.y_low, self.y_high)
        texts = [f"{short(100 * v)}%" if percent else short(v) for v in values]
        return across, [Tick(self.y(v), text) for v, text in zip(values, texts, strict=True)]


def _round_values(low: float, high: float) -> list[float]:
    values = ticker.MaxNLocator(5).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(v) for v in values if low - slack <= v <= high + slack]


def legend(*, with_truth: bool) -> list[tuple[str, str]]:
    """CSS classes and names of what charts show."""
    known = [("dot normal", "normal"), ("dot abnormal", "abnormal")]
    rule = [("rule", "threshold")]
    return [*known, *rule, ("dot operating", "at the threshold")] if with_truth else rule


def curves(scores: Scores, is_abnormal: Truth, *, threshold: float, name: str) -> list[Chart]:
    """Histogram per class; with images of both classes also ROC and precision over recall.

    Args:
      name: of the score, below the histogram.
    """
    classes = {"normal": scores[~is_abnormal], "abnormal": scores[is_abnormal]}
    charts = [histogram(classes, threshold=threshold, name=name)]
    if is_abnormal.any() and not is_abnormal.all():
        flagged = decide(scores, threshold)
        charts.append(_roc(scores, is_abnormal, flagged))
        charts.append(_precision_recall(scores, is_abnormal, flagged))
    return charts


def histogram(classes: dict[str, Scores], *, threshold: float, name: str) -> Chart:
    """Shares of each class per score; a class is drawn in the colour of its CSS class."""
    scores = np.concatenate(list(classes.values()))
    low, high = float(min(scores.min(), threshold)), float(max(scores.max(), threshold))
    usual = float(max(np.quantile(scores, 0.98), threshold))
    # A few far outliers must not squeeze everything else into one bar: they go into the last one.
    cut = high - low > 2 * (usual - low) > 0
    high = usual + 0.05 * (usual - low) if cut else high
    high = high if high > low else low + 1.0
    bins = int(np.clip(2 * np.sqrt(len(scores)), _BINS // 4, _BINS))
    edges = np.linspace(low, high, bins + 1)
    shares = {
        kind: np.histogram(np.clip(values, low, high), edges)[0] / max(len(values), 1)
        for kind, values in classes.items()
    }
    axes = _Axes(low, high, 0.0, 1.05 * max(float(share.max()) for share in shares.values()))
    lines = []
    for kind, share in shares.items():
        if share.any():
            corners = [(low, 0.0)]
            for place, value in enumerate(share):
                corners += [(edges[place], value), (edges[place + 1], value)]
            lines.append(Line(f"area {kind}", axes.line([*corners, (high, 0.0)])))
    lines.append(Line("threshold", f"M{axes.x(threshold)} {_TOP} V{_BOTTOM}"))
    label = f"{name} (last bar: and above)" if cut else name
    ticks = axes.ticks(percent=True)
    return Chart("Scores", "Share of each class per score", label, "share", *ticks, lines)


def _roc(scores: Scores, is_abnormal: Truth, flagged: Truth) -> Chart:
    # Here, because the gallery of unlabelled files needs none of it.
    from sklearn import metrics

    axes = _Axes(0.0, 1.0, 0.0, 1.0)
    false, true, _ = metrics.roc_curve(is_abnormal, scores)
    lines = [
        Line("chance", axes.line([(0, 0), (1, 1)])),
        Line("curve", axes.line(list(zip(false, true, strict=True)))),
    ]
    mark = axes.x(flagged[~is_abnormal].mean()), axes.y(flagged[is_abnormal].mean())
    labels = "false-positive rate", "true-positive rate"
    return Chart("ROC", "ROC curve", *labels, *axes.ticks(), lines, mark)


def _precision_recall(scores: Scores, is_abnormal: Truth, flagged: Truth) -> Chart:
    from sklearn import metrics

    axes = _Axes(0.0, 1.0, 0.0, 1.0)
    precision, recall, _ = metrics.precision_recall_curve(is_abnormal, scores)
    # From recall 0 up; each step keeps the precision of its end, as average precision sums it.
    steps = [(0.0, float(precision[-2]))]
    for p, r in zip(precision[-2::-1], recall[-2::-1], strict=True):
        steps += [(steps[-1][0], p), (r, p)]
    share = float(is_abnormal.mean())
    lines = [
        Line("chance", axes.line([(0, share), (1, share)])),
        Line("curve", axes.line(steps)),
    ]
    mark = None
    if flagged.any():
        mark = axes.x(flagged[is_abnormal].mean()), axes.y(is_abnormal[flagged].mean())
    name = "Precision and recall"
    return Chart(name, "PR curve", "recall", "precision", *axes.ticks(), lines, mark)
