"""Histogram, ROC and precision-recall curves in SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import ticker
from sklearn import metrics as sklearn_metrics

from jax_noisy_anogan.evaluation.selection import Report
from jax_noisy_anogan.scoring.calibration import decide

_BINS = 40  # at most, in the histogram; fewer for few images


def _score(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "–"


# Charts: SVG written by hand, so that the page's colours apply in light and dark.

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 46


class _Axes(NamedTuple):
    """Data coordinates to those of the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        """Path data; points that fall on the one before are left out, which bounds its length."""
        drawn = [(self.x(x), self.y(y)) for x, y in points]
        kept = [p for place, p in enumerate(drawn) if place == 0 or p != drawn[place - 1]]
        return "M" + " L".join(f"{x} {y}" for x, y in kept)


def _chart(name: str, content: str, description: str) -> str:
    return (
        f"<figure><figcaption>{name}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">'
        f"{content}</svg></figure>"
    )


def _frame(axes: _Axes, x_label: str, y_label: str, *, percent: bool = False) -> str:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in _ticks(axes.x_low, axes.x_high):
        x = axes.x(value)
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 18}">{_score(value)}</text>')
        parts.append(f'<path class="grid" d="M{x} {_TOP} V{bottom}"/>')
    for value in _ticks(axes.y_low, axes.y_high):
        y = axes.y(value)
        text = f"{value:.0%}" if percent else _score(value)
        parts.append(f'<text class="tick y" x="{_LEFT - 8}" y="{y + 4}">{text}</text>')
        parts.append(f'<path class="grid" d="M{_LEFT} {y} H{right}"/>')
    middle = (_LEFT + right) / 2, (_TOP + bottom) / 2
    return (
        f'{"".join(parts)}<path class="axis" d="M{_LEFT} {_TOP} V{bottom} H{right}"/>'
        f'<text class="label" x="{middle[0]}" y="{_HEIGHT - 6}">{x_label}</text>'
        f'<text class="label" transform="translate(13 {middle[1]}) rotate(-90)">{y_label}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    values = ticker.MaxNLocator(5).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(v) for v in values if low - slack <= v <= high + slack]


def _histogram(report: Report) -> str:
    scores, threshold = report.scores, report.threshold
    low, high = float(min(scores.min(), threshold)), float(max(scores.max(), threshold))
    usual = float(max(np.quantile(scores, 0.98), threshold))
    # A few far outliers must not squeeze everything else into one bar: they go into the last one.
    cut = high - low > 2 * (usual - low) > 0
    high = usual + 0.05 * (usual - low) if cut else high
    high = high if high > low else low + 1.0
    bins = int(np.clip(2 * np.sqrt(len(scores)), _BINS // 4, _BINS))
    edges = np.linspace(low, high, bins + 1)
    shares = [
        np.histogram(np.clip(chosen, low, high), edges)[0] / max(len(chosen), 1)
        for chosen in (scores[~report.is_abnormal], scores[report.is_abnormal])
    ]
    axes = _Axes(low, high, 0.0, 1.05 * max(float(share.max()) for share in shares))
    more = " (last bar: and above)" if cut else ""
    parts = [_frame(axes, f"{html.escape(report.score_name)}{more}", "share", percent=True)]
    for name, share in zip(("normal", "abnormal"), shares, strict=True):
        if share.any():
            corners = [(low, 0.0)]
            for place, value in enumerate(share):
                corners += [(edges[place], value), (edges[place + 1], value)]
            parts.append(f'<path class="area {name}" d="{axes.line([*corners, (high, 0.0)])}"/>')
    x = axes.x(threshold)
    parts.append(f'<path class="threshold" d="M{x} {_TOP} V{_HEIGHT - _BOTTOM}"/>')
    return "".join(parts)


def _roc(report: Report) -> str:
    axes = _Axes(0.0, 1.0, 0.0, 1.0)
    false, true, _ = sklearn_metrics.roc_curve(report.is_abnormal, report.scores)
    flagged = decide(report.scores, report.threshold)
    at = float(flagged[~report.is_abnormal].mean()), float(flagged[report.is_abnormal].mean())
    return (
        _frame(axes, "false-positive rate", "true-positive rate")
        + f'<path class="chance" d="{axes.line([(0, 0), (1, 1)])}"/>'
        + f'<path class="curve" d="{axes.line(list(zip(false, true, strict=True)))}"/>'
        + f'<circle class="operating" cx="{axes.x(at[0])}" cy="{axes.y(at[1])}" r="5"/>'
    )


def _precision_recall(report: Report) -> str:
    axes = _Axes(0.0, 1.0, 0.0, 1.0)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(report.is_abnormal, report.scores)
    # From recall 0 up; each step keeps the precision of its end, as average precision sums it.
    steps = [(0.0, float(precision[-2]))]
    for p, r in zip(precision[-2::-1], recall[-2::-1], strict=True):
        steps += [(steps[-1][0], p), (r, p)]
    flagged, share = decide(report.scores, report.threshold), float(report.is_abnormal.mean())
    content = (
        _frame(axes, "recall", "precision")
        + f'<path class="chance" d="{axes.line([(0, share), (1, share)])}"/>'
        + f'<path class="curve" d="{axes.line(steps)}"/>'
    )
    if flagged.any():
        at = float(flagged[report.is_abnormal].mean()), float(report.is_abnormal[flagged].mean())
        content += f'<circle class="operating" cx="{axes.x(at[0])}" cy="{axes.y(at[1])}" r="5"/>'
    return content
