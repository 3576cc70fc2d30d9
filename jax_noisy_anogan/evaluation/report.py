"""An evaluation as one HTML file: figures, curves, and the images that an engineer looks at first.

The file needs nothing beside it: pictures are embedded, curves are inline SVG, there is no script.
Here it is decided what the page says; `templates/report.html` says where.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jax_noisy_anogan import pictures
from jax_noisy_anogan.evaluation import charts
from jax_noisy_anogan.evaluation.metrics import Interval, image_metrics_by_class
from jax_noisy_anogan.evaluation.operating import HEADS, Found
from jax_noisy_anogan.evaluation.pages import Cell, Row, Table, short, write_page
from jax_noisy_anogan.evaluation.selection import Picture, Report, ReportImage
from jax_noisy_anogan.evaluation.yardsticks import known_figures
from jax_noisy_anogan.scoring.calibration import ANOMALY
from jax_noisy_anogan.scoring.regions import Box, find_regions
from jax_noisy_anogan.scoring.thresholds import decide, rate_interval

_PREVIEW = 360  # longest side of an embedded picture
_LOSSLESS = 128  # up to this size a picture is embedded as PNG, larger ones as JPEG
_DETAIL = 96  # smallest side of the section around a mask
_FAILURES = 100
_MASK_LINE = (255, 64, 64)
_OUTCOMES = {
    (True, False): "missed",
    (False, True): "false alarm",
    (True, True): "found",
    (False, False): "passed",
}
_HEADINGS = {
    "summary": "Summary",
    "scores": "Scores",
    "operating": "Operating points",
    "yardsticks": "Yardsticks",
    "curves": "Distribution and curves",
    "defects": "Kinds of defect",
    "misses": "Misses",
    "most": "Most anomalous",
    "least": "Least anomalous",
    "failures": "Not scored",
    "settings": "Settings",
}


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file.

    Every picture is embedded at no more than 360 pixels, so that the size of the file depends on
    the number of images shown only. Images too large for that get a section around their mask at
    full resolution beside them.

    Raises:
      ValueError: `anomaly` is none of the summaries, lengths differ, or a score is not
        finite.
    """
    if ANOMALY not in {summary.name for summary in report.summaries}:
        raise ValueError(f"{ANOMALY} is not among the summaries")
    if len(report.scores) != len(report.is_abnormal):
        raise ValueError(f"{len(report.scores)} scores for {len(report.is_abnormal)} labels")
    if not len(report.scores) or not np.isfinite(report.scores).all():
        raise ValueError("expected at least one score, and all of them finite")
    content = {
        "summary": True,
        "scores": _scores(report),
        "operating": _operating(report),
        "yardsticks": _yardsticks(report),
        "curves": charts.curves(
            report.scores, report.is_abnormal, threshold=report.threshold, name=ANOMALY
        ),
        "defects": _defects(report),
        "misses": _misses(report),
        "most": _cards(report.most_anomalous),
        "least": _cards(report.least_anomalous),
        "failures": report.failures,
        "settings": [
            (section, [(name, _setting(value)) for name, value in values.items()])
            for section, values in report.settings.items()
        ],
    }
    colours = colormaps[pictures.HEAT](np.linspace(0, 1, 9), bytes=True)
    write_page(
        path,
        "report.html",
        title=report.title,
        subtitle=report.subtitle,
        notice=report.notice,
        images_from="data:",
        sections=[(name, _HEADINGS[name]) for name, values in content.items() if values],
        score_name=ANOMALY,
        set_by=report.set_by,
        threshold=short(report.threshold),
        tiles=_tiles(report),
        decisions=_decisions(report),
        legend=charts.legend(with_truth=True),
        heat_colours=[f"rgb({red},{green},{blue})" for red, green, blue, _ in colours],
        hottest=short(report.hottest),
        failed=_first_failures(report),
        failed_count=len(report.failures),
        **content,
    )


class _Tile(NamedTuple):
    name: str
    text: str
    range: str


def _tiles(report: Report) -> list[_Tile]:
    chosen = next(s for s in report.summaries if s.name == ANOMALY)
    if not math.isfinite(chosen.metrics.auroc):
        return _tiles_of_one_kind(report)
    names = {
        "auroc": "AUROC",
        "average_precision": "Average precision",
        "f1_at_threshold": "F1 at the threshold",
    }
    tiles = [
        _Tile(text, _metric(getattr(chosen.metrics, name)), _range(chosen.intervals, name))
        for name, text in names.items()
    ]
    if report.pixel is not None:
        tiles += [
            _Tile(text, _metric(getattr(report.pixel, name)), _range(report.pixel_intervals, name))
            for name, text in {"auroc": "Pixel AUROC", "aupro": "AUPRO"}.items()
        ]
    return tiles


def _tiles_of_one_kind(report: Report) -> list[_Tile]:
    """What can be known where all test images are normal, or all are abnormal."""
    name = "Defects found" if report.is_abnormal.all() else "False alarms"
    found = Found.above(report.threshold, report.scores)
    low, high = rate_interval(*found)
    return [_Tile(name, str(found), f"{low:.1%} – {high:.1%} of such images")]


def _decisions(report: Report) -> Table:
    """The confusion matrix in words."""
    flagged = decide(report.scores, report.threshold)
    rows = []
    for name, truth in (("abnormal", True), ("normal", False)):
        there = report.is_abnormal == truth
        count, hits = int(np.sum(there)), int(np.sum(flagged & there))
        if not count:
            continue
        wrong = count - hits if truth else hits
        cells = [
            Cell(f"{count:,}"),
            Cell(f"{hits:,}"),
            Cell(f"{count - hits:,}"),
            Cell(f"{hits / count:.1%}"),
            Cell(f"{wrong:,}", alarm=wrong > 0),
        ]
        rows.append(Row(name, cells, dot=name))
    return Table(("truth", "images", "flagged", "passed", "flagged rate", "wrong"), rows)


def _scores(report: Report) -> Table | None:
    rows = []
    for summary in report.summaries:
        if not math.isfinite(summary.metrics.auroc):
            return None
        values = summary.metrics
        cells = [
            Cell(_metric(getattr(values, name)), _range(summary.intervals, name))
            for name in ("auroc", "average_precision", "f1_best", "f1_at_threshold")
        ]
        cells.append(Cell(short(values.threshold)))
        rows.append(Row(summary.name, cells, chosen=summary.name == ANOMALY))
    heads = ("score", "AUROC", "average precision", "best F1", "F1 at threshold", "threshold")
    return Table(heads, rows)


def _operating(report: Report) -> Table:
    rows = [point.cells() for point in report.operating_points]
    return Table(HEADS, [Row(name, [Cell(text) for text in texts]) for name, *texts in rows])


def _yardsticks(report: Report) -> Table | None:
    if not report.yardsticks:
        return None
    heads = known_figures(report.yardsticks)
    rows = [
        Row(name, [Cell(_metric(values[head])) for head in heads])
        for name, values in report.yardsticks.items()
    ]
    return Table(("method", *(head.replace("_", " ") for head in heads)), rows)


def _defects(report: Report) -> Table | None:
    names, flagged = np.asarray(report.class_names, str), decide(report.scores, report.threshold)
    found = image_metrics_by_class(
        report.scores, report.is_abnormal, report.class_names, threshold=report.threshold
    )
    rows = []
    for name, values in found.items():
        of_kind = report.is_abnormal & (names == name)
        count, hits = int(of_kind.sum()), int(np.sum(flagged & of_kind))
        cells = [
            Cell(f"{count:,}"),
            Cell(f"{hits:,}", share=hits / count),
            Cell(_metric(values.auroc)),
            Cell(_metric(values.average_precision)),
        ]
        if report.pixel_by_class:
            pixel = report.pixel_by_class.get(name)
            areas = pixel[:2] if pixel else (math.nan, math.nan)
            cells += [Cell(_metric(area)) for area in areas]
        rows.append(Row(name, cells))
    heads = ["kind", "images", "flagged", "AUROC", "average precision"]
    heads += ["pixel AUROC", "AUPRO"] if report.pixel_by_class else []
    return Table(heads, rows) if rows else None


class _Group(NamedTuple):
    """Misses of one kind."""

    heading: str
    told: str
    images: list[_Card]


def _misses(report: Report) -> list[_Group]:
    flagged = decide(report.scores, report.threshold)
    passed, alarms = report.is_abnormal & ~flagged, ~report.is_abnormal & flagged
    groups = (
        ("Abnormal, but passed", "lowest score first", passed, report.false_negatives),
        ("Normal, but flagged", "highest score first", alarms, report.false_positives),
    )
    return [
        _Group(
            heading,
            f"{len(images)} of {wrong.sum():,} shown, {order}" if wrong.any() else "none",
            _cards(images),
        )
        for heading, order, wrong, images in groups
    ]


class _Embedded(NamedTuple):
    """A picture inside the page.

    Attributes:
      small: shown with its pixels as squares.
    """

    caption: str
    source: str
    width: int
    height: int
    small: bool


class _Card(NamedTuple):
    """One image with everything that is shown about it."""

    path: str
    truth: str
    kind: str
    outcome: str
    badge: str
    score: str
    sign: str
    pictures: list[_Embedded]
    terms: list[tuple[str, str]]


def _cards(images: Sequence[ReportImage]) -> list[_Card]:
    return [
        _Card(
            path=image.path,
            truth="abnormal" if image.is_abnormal else "normal",
            kind=image.class_name,
            outcome=_OUTCOMES[image.is_abnormal, image.is_flagged],
            badge="good" if image.is_abnormal == image.is_flagged else "bad",
            score=short(image.score),
            sign=">" if image.is_flagged else "≤",
            pictures=[_embedded(*shown) for shown in _pictures(image)],
            terms=[(name, short(value)) for name, value in image.terms.items()],
        )
        for image in images
    ]


def _pictures(image: ReportImage) -> Iterator[tuple[str, Picture]]:
    yield "input", image.image
    yield "reconstruction", image.reconstruction
    yield "heatmap", image.heatmap
    if image.mask is None or not image.mask.any():
        return
    yield "true mask", pictures.outlined(image.image, image.mask, line=_MASK_LINE)
    if max(image.image.shape[:2]) > _PREVIEW:
        largest = find_regions(image.mask.astype(np.float32), 0.5).largest[0]
        yield "detail at the mask", _detail(image.image, largest.box)


def _detail(image: Picture, box: Box) -> Picture:
    """A square section around the box, with some surroundings, moved inside the image."""
    side = min(max(_DETAIL, round(1.5 * max(box.width, box.height))), *image.shape[:2])
    top, left = (
        int(np.clip(start + length // 2 - side // 2, 0, size - side))
        for start, length, size in (
            (box.y, box.height, image.shape[0]),
            (box.x, box.width, image.shape[1]),
        )
    )
    return image[top : top + side, left : left + side]


def _embedded(caption: str, picture: Picture) -> _Embedded:
    image = Image.fromarray(pictures.as_rgb(picture))
    image.thumbnail((_PREVIEW, _PREVIEW), Image.Resampling.BOX)
    small = max(image.size) <= _LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f"data:image/{'png' if small else 'jpeg'};base64,{data}"
    return _Embedded(caption, source, image.width, image.height, small)


def _first_failures(report: Report) -> list[Row]:
    return [Row(path, [Cell(why)]) for path, why in islice(report.failures.items(), _FAILURES)]


def _setting(value: Any) -> str:
    if isinstance(value, str | list | tuple | dict) and not value:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _metric(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _range(intervals: Any, name: str) -> str:
    """The interval of one metric; empty where there is none."""
    interval: Interval | None = getattr(intervals, name, None)
    if interval is None or not math.isfinite(interval.low):
        return ""
    return f"{interval.low:.3f} – {interval.high:.3f}"
