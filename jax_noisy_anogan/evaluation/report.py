"""An evaluation as one HTML file: figures, curves, and the images that an engineer looks at first.

The file needs nothing beside it: pictures are embedded, curves are inline SVG, there is no script.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jax_noisy_anogan import pictures
from jax_noisy_anogan.evaluation.charts import _chart, _histogram, _precision_recall, _roc, _score
from jax_noisy_anogan.evaluation.metrics import (
    Interval,
    image_metrics_by_class,
)
from jax_noisy_anogan.evaluation.selection import Picture, Report, ReportImage
from jax_noisy_anogan.scoring.calibration import decide
from jax_noisy_anogan.scoring.maps import Box, largest_region

_PREVIEW = 360  # longest side of an embedded picture
_LOSSLESS = 128  # up to this size a picture is embedded as PNG, larger ones as JPEG
_DETAIL = 96  # smallest side of the section around a region
_FAILURES = 100


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file.

    Every picture is embedded at no more than 360 pixels, so that the size of the file depends on
    the number of images shown only. Images too large for that get a section around the region at
    full resolution beside them.

    Raises:
      ValueError: `score_name` is none of the summaries, lengths differ, or a score is not finite.
    """
    # A file name may hold bytes that are no text; they are shown escaped.
    path.write_text(_page(report), encoding="utf-8", errors="backslashreplace")


def _page(report: Report) -> str:
    if report.score_name not in {summary.name for summary in report.summaries}:
        raise ValueError(f"score_name {report.score_name!r} is not among the summaries")
    if len(report.scores) != len(report.is_abnormal):
        raise ValueError(f"{len(report.scores)} scores for {len(report.is_abnormal)} labels")
    if not len(report.scores) or not np.isfinite(report.scores).all():
        raise ValueError("expected at least one score, and all of them finite")
    sections = [
        ("summary", "Summary", _summary(report)),
        ("scores", "Scores", _scores_table(report)),
        ("curves", "Distribution and curves", _curves(report)),
        ("defects", "Kinds of defect", _defects_table(report)),
        ("misses", "Misses", _misses(report)),
        ("most", "Most anomalous", _cards(report.most_anomalous, report)),
        ("least", "Least anomalous", _cards(report.least_anomalous, report)),
        ("failures", "Not scored", _failures(report)),
        ("settings", "Settings", _settings(report)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown)
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
        for name, heading, content in shown
    )
    title, subtitle = html.escape(report.title), html.escape(report.subtitle)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # The browser itself makes sure that nothing is loaded and nothing runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{title}</h1><p>{subtitle}</p><nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _summary(report: Report) -> str:
    chosen = next(s for s in report.summaries if s.name == report.score_name)
    intervals = chosen.intervals
    tiles = [
        _tile("AUROC", chosen.metrics.auroc, intervals and intervals.auroc),
        _tile(
            "Average precision",
            chosen.metrics.average_precision,
            intervals and intervals.average_precision,
        ),
        _tile(
            "F1 at the threshold",
            chosen.metrics.f1_at_threshold,
            intervals and intervals.f1_at_threshold,
        ),
    ]
    if report.pixel is not None:
        pixel = report.pixel_intervals
        tiles += [
            _tile("Pixel AUROC", report.pixel.auroc, pixel and pixel.auroc),
            _tile("AUPRO", report.pixel.aupro, pixel and pixel.aupro),
        ]
    note = (
        f"Decisions are made by <b>{html.escape(report.score_name)}</b>: an image is flagged when "
        f"its score is above <b>{_score(report.threshold)}</b>. Ranges are {report.level:.0%} "
        "bootstrap intervals."
    )
    return f'<div class="tiles">{"".join(tiles)}</div>{_decisions(report)}<p>{note}</p>'


def _tile(name: str, value: float, interval: Interval | None) -> str:
    return (
        f'<div class="tile"><span class="name">{name}</span>'
        f'<span class="value">{_metric(value)}</span>{_range(interval)}</div>'
    )


def _decisions(report: Report) -> str:
    """The confusion matrix in words."""
    flagged = decide(report.scores, report.threshold)
    rows = []
    for name, truth in (("abnormal", True), ("normal", False)):
        there = report.is_abnormal == truth
        count, hits = int(np.sum(there)), int(np.sum(flagged & there))
        wrong = count - hits if truth else hits
        cells = [
            f"{count:,}",
            f"{hits:,}",
            f"{count - hits:,}",
            f"{hits / count:.1%}" if count else "–",
            f'<b class="wrong">{wrong:,}</b>' if wrong else "0",
        ]
        rows.append(_Row(f'<i class="dot {name}"></i>{name}', cells))
    return _table(("truth", "images", "flagged", "passed", "flagged rate", "wrong"), rows)


def _scores_table(report: Report) -> str:
    rows = []
    for summary in report.summaries:
        values, intervals = summary.metrics, summary.intervals
        cells = [
            f"{_metric(value)}{_range(intervals and intervals[place])}"
            for place, value in enumerate(values[:4])
        ]
        cells.append(_score(values.threshold))
        rows.append(_Row(html.escape(summary.name), cells, summary.name == report.score_name))
    heads = ("score", "AUROC", "average precision", "best F1", "F1 at threshold", "threshold")
    return _table(heads, rows)


def _defects_table(report: Report) -> str:
    if not len(report.class_names):
        return ""
    names, flagged = np.asarray(report.class_names, str), decide(report.scores, report.threshold)
    found = image_metrics_by_class(
        report.scores, report.is_abnormal, report.class_names, threshold=report.threshold
    )
    rows = []
    for name, values in found.items():
        of_kind = report.is_abnormal & (names == name)
        count, hits = int(of_kind.sum()), int(np.sum(flagged & of_kind))
        cells = [
            f"{count:,}",
            f'{hits:,}<span class="bar"><i style="width:{hits / count:.0%}"></i></span>',
            _metric(values.auroc),
            _metric(values.average_precision),
        ]
        if report.pixel_by_class:
            pixel = report.pixel_by_class.get(name)
            cells += [_metric(area) for area in (pixel[:2] if pixel else (math.nan, math.nan))]
        rows.append(_Row(html.escape(name), cells))
    heads = ["kind", "images", "flagged", "AUROC", "average precision"]
    heads += ["pixel AUROC", "AUPRO"] if report.pixel_by_class else []
    return _table(heads, rows) if rows else ""


def _misses(report: Report) -> str:
    flagged = decide(report.scores, report.threshold)
    groups = (
        (
            "Abnormal, but passed",
            "lowest score first",
            int(np.sum(report.is_abnormal & ~flagged)),
            report.false_negatives,
        ),
        (
            "Normal, but flagged",
            "highest score first",
            int(np.sum(~report.is_abnormal & flagged)),
            report.false_positives,
        ),
    )
    parts = [_heat_legend(report)]
    for heading, order, count, images in groups:
        told = f"{len(images)} of {count:,} shown, {order}" if count else "none"
        parts.append(f"<h3>{heading} <small>{told}</small></h3>{_cards(images, report)}")
    return "".join(parts)


def _heat_legend(report: Report) -> str:
    if report.heat_range is None:
        return ""
    low, high = report.heat_range
    samples = colormaps[pictures.HEAT](np.linspace(0, 1, 9), bytes=True)
    stops = ", ".join(f"rgb({red},{green},{blue})" for red, green, blue, _ in samples)
    return (
        f'<p class="legend"><span>heatmaps from {_score(low)}<i class="ramp" '
        f'style="background:linear-gradient(90deg, {stops})"></i>to {_score(high)}</span></p>'
    )


def _cards(images: Sequence[ReportImage], report: Report) -> str:
    return "".join(_card(image, report.threshold) for image in images)


def _card(image: ReportImage, threshold: float) -> str:
    truth = "abnormal" if image.is_abnormal else "normal"
    verdict = {
        (True, False): "missed",
        (False, True): "false alarm",
        (True, True): "found",
        (False, False): "passed",
    }[image.is_abnormal, image.is_flagged]
    wrong = image.is_abnormal != image.is_flagged
    kind = f": {html.escape(image.class_name)}" if image.class_name else ""
    sign = "&gt;" if image.is_flagged else "≤"
    terms = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{_score(value)}</dd></div>"
        for name, value in image.terms.items()
    )
    figures = "".join(
        f"<figure>{_embedded(picture, f'{caption} of {image.path}')}"
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, picture in _pictures(image)
    )
    return (
        f'<article class="card"><h4>{html.escape(image.path)}</h4>'
        f'<p class="facts"><span class="badge {"bad" if wrong else "good"}">{verdict}</span>'
        f'<span><i class="dot {truth}"></i>{truth}{kind}</span>'
        f"<span>score <b>{_score(image.score)}</b> {sign} {_score(threshold)}</span></p>"
        f'<div class="pictures">{figures}</div>{f"<dl>{terms}</dl>" if terms else ""}</article>'
    )


def _pictures(image: ReportImage) -> Iterator[tuple[str, Picture]]:
    yield "input", image.image
    if image.reconstruction is not None:
        yield "reconstruction", image.reconstruction
    if image.heatmap is not None:
        yield "heatmap", image.heatmap
    masked = image.mask is not None and bool(image.mask.any())
    if image.mask is not None and masked:
        yield "true mask", pictures.outlined(image.image, image.mask, line=_MASK_LINE)
    if max(image.image.shape[:2]) > _PREVIEW:
        where, box = "the largest region", image.box
        if image.mask is not None and masked:
            where, box = "the mask", largest_region(image.mask.astype(np.float32), 0.5)
        if box is not None:
            yield f"detail at {where}", _detail(image.image, box)


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


def _embedded(picture: Picture, description: str) -> str:
    image = Image.fromarray(pictures.as_rgb(picture))
    image.thumbnail((_PREVIEW, _PREVIEW), Image.Resampling.BOX)
    small = max(image.size) <= _LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/{"png" if small else "jpeg"};base64,{data}" '
        f'width="{image.width}" height="{image.height}" alt="{html.escape(description)}"'
        f"{' class=pixels' if small else ''}>"
    )


def _failures(report: Report) -> str:
    if not report.failures:
        return ""
    rows = [
        _Row(html.escape(path), [html.escape(error)])
        for path, error in list(report.failures.items())[:_FAILURES]
    ]
    told = f"<p>{len(report.failures):,} images, {len(rows)} of them listed.</p>"
    return told + _table(("file", "error"), rows)


def _settings(report: Report) -> str:
    groups: dict[str, dict[str, Any]] = {}
    for name, value in report.settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            groups[name] = dict(value)
        else:
            groups.setdefault("", {})[name] = value
    tables = []
    for group, values in groups.items():
        rows = "".join(
            f'<tr><th scope="row">{html.escape(str(name))}</th>'
            f"<td>{html.escape(_setting(value))}</td></tr>"
            for name, value in values.items()
        )
        heading = f"<h3>{html.escape(group)}</h3>" if group else ""
        tables.append(f"<div>{heading}<table>{rows}</table></div>")
    return f'<div class="settings">{"".join(tables)}</div>' if tables else ""


def _setting(value: Any) -> str:
    if isinstance(value, str | list | tuple | dict) and not value:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class _Row(NamedTuple):
    """Of a table; `name` and `cells` are HTML."""

    name: str
    cells: Sequence[str]
    chosen: bool = False


def _table(heads: Sequence[str], rows: Sequence[_Row]) -> str:
    """A table that narrow screens show as one block per row, each cell under its heading."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = ""
    for name, cells, chosen in rows:
        data = "".join(
            f'<td data-head="{head}">{cell}</td>'
            for head, cell in zip(heads[1:], cells, strict=True)
        )
        body += f'<tr{" class=chosen" if chosen else ""}><th scope="row">{name}</th>{data}</tr>'
    return f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _metric(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _range(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.low):
        return ""
    return f'<span class="range">{interval.low:.3f} – {interval.high:.3f}</span>'


def _curves(report: Report) -> str:
    charts = [_chart("Scores", _histogram(report), "Share of each class per score")]
    both = report.is_abnormal.any() and not report.is_abnormal.all()
    if both:
        charts.append(_chart("ROC", _roc(report), "ROC curve"))
        charts.append(_chart("Precision and recall", _precision_recall(report), "PR curve"))
    legend = "".join(
        f'<span><i class="{style}"></i>{name}</span>'
        for style, name in (
            ("dot normal", "normal"),
            ("dot abnormal", "abnormal"),
            ("rule", "threshold"),
            ("dot operating", "at the threshold"),
        )
    )
    note = "" if both else "<p>Curves need normal and abnormal images.</p>"
    return f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>{note}'


_MASK_LINE = (255, 64, 64)
_STYLE = """
:root { --page: #f5f6f8; --sheet: #fff; --ink: #1c2330; --soft: #5c6675; --line: #dfe3e9;
  --normal: #2f6fb5; --abnormal: #c8374d; --good: #23794b; --accent: #14509a; --tint: #eef3fa; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --sheet: #1b2029; --ink: #e6e9ef;
  --soft: #9aa5b5; --line: #303845; --normal: #6ea8e8; --abnormal: #f0788a; --good: #63c08d;
  --accent: #8fbdf2; --tint: #222b38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 1200px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
header p { margin: 4px 0 14px; color: var(--soft); overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding-bottom: 14px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-bottom: 18px; }
h2 { font-size: 18px; margin: 0 0 14px; }
h3 { font-size: 15px; margin: 20px 0 10px; }
h3:first-child { margin-top: 0; }
small { font-weight: normal; font-size: 13px; color: var(--soft); margin-left: 6px; }
section > p:last-child { margin-bottom: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-bottom: 16px; }
.tile { background: var(--tint); border-radius: 8px; padding: 12px 14px; }
.tile span { display: block; }
.tile .name { font-size: 13px; color: var(--soft); }
.tile .value { font-size: 28px; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.range { display: block; font-size: 12px; color: var(--soft); white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: 12.5px; font-weight: 600; color: var(--soft); white-space: nowrap; }
th:first-child { text-align: left; }
th[scope=row] { font-weight: 500; min-width: 8em; overflow-wrap: anywhere; }
#failures th, #failures td { text-align: left; overflow-wrap: anywhere; }
tr.chosen { background: var(--tint); }
tr.chosen > * { font-weight: 600; }
tr.chosen .range { font-weight: 400; }
.wrong { color: var(--abnormal); font-weight: 600; }
.bar { display: block; height: 4px; margin-top: 4px; border-radius: 2px; background: var(--line); }
.bar i { display: block; height: 4px; border-radius: 2px; background: var(--normal); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.dot.normal { background: var(--normal); }
.dot.abnormal { background: var(--abnormal); }
.dot.operating { border: 2px solid var(--ink); background: var(--sheet); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 10px; font-size: 13px;
  color: var(--soft); }
.legend span { display: flex; align-items: center; }
.legend .ramp { width: 120px; height: 10px; border-radius: 3px; margin: 0 8px; }
.legend .rule { width: 16px; border-top: 2px dashed var(--ink); margin-right: 6px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 18px; }
figure { margin: 0; min-width: 0; }
.charts figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
svg { display: block; width: 100%; max-width: 560px; height: auto; }
svg text { fill: var(--soft); font-size: 12.5px; text-anchor: middle; }
svg .y { text-anchor: end; }
svg path { fill: none; stroke-width: 1; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
svg .curve { stroke: var(--accent); stroke-width: 2.2; stroke-linejoin: round; }
svg .chance { stroke: var(--soft); stroke-dasharray: 3 4; }
svg .threshold { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 5 4; }
svg .area { stroke-width: 1.6; fill-opacity: 0.22; }
svg .area.normal { fill: var(--normal); stroke: var(--normal); }
svg .area.abnormal { fill: var(--abnormal); stroke: var(--abnormal); }
svg .operating { fill: var(--sheet); stroke: var(--ink); stroke-width: 2; }
.card { border-top: 1px solid var(--line); padding: 14px 0; }
.card:last-child { padding-bottom: 0; }
h4 { margin: 0; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 16px; margin: 4px 0 10px;
  font-size: 14px; }
.badge { border-radius: 999px; padding: 1px 10px; font-size: 12.5px; font-weight: 600;
  border: 1px solid currentColor; }
.badge.bad { color: var(--abnormal); }
.badge.good { color: var(--good); }
.pictures { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px;
  background: var(--line); }
.pictures .pixels { image-rendering: pixelated; }
.pictures figcaption { font-size: 12.5px; color: var(--soft); margin-top: 4px; }
dl { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 10px 0 0; font-size: 13px; }
dl div { display: flex; gap: 6px; }
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.settings { columns: 3 300px; column-gap: 32px; font-size: 13.5px; }
.settings > div { break-inside: avoid; margin-bottom: 18px; }
.settings h3 { margin: 0 0 2px; }
.settings th, .settings td { padding: 3px 0; overflow-wrap: anywhere; }
.settings th { font-weight: 400; min-width: 0; color: var(--soft); padding-right: 12px;
  white-space: nowrap; }
@media (max-width: 640px) {
  header, main { padding: 0 10px; }
  header { padding-top: 18px; }
  h1 { font-size: 21px; }
  section { padding: 16px 14px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wide thead { display: none; }
  .wide tr { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 14px; padding: 10px 0;
    border-bottom: 1px solid var(--line); }
  .wide tr.chosen { padding: 10px; border-radius: 6px; }
  .wide tr:last-child { border: 0; }
  .wide th, .wide td { padding: 0; border: 0; text-align: left; overflow-wrap: anywhere; }
  .wide th { grid-column: 1 / -1; font-weight: 600; }
  .wide td::before { content: attr(data-head); display: block; font-size: 12px; font-weight: 400;
    color: var(--soft); }
  .bar { max-width: 120px; }
}
@media print { section { break-inside: auto; border: 0; } .card { break-inside: avoid; } }
"""
