"""Scored files as pages: the most anomalous first, the histogram, and what could not be scored.

The pages lie beside the table that they are made of and show the pictures beside it; browsers load
only those in view.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from jax_noisy_anogan.evaluation import charts
from jax_noisy_anogan.evaluation.pages import Cell, Row, short, write_page
from jax_noisy_anogan.scoring.calibration import ANOMALY, CALIBRATED
from jax_noisy_anogan.scoring.files import safe_name

_PER_PAGE = 500
_FAILURES = 200
_SCORE = ANOMALY
_COLUMNS = ("path", CALIBRATED, _SCORE, "decision", "error")


class _Card(NamedTuple):
    """One file; pictures that do not exist are empty."""

    path: str
    score: str
    decision: str
    thumbnail: str
    overlay: str


def write_gallery(out: Path, *, threshold: float) -> Path:
    """Write `gallery.html` and, behind 500 files each, `gallery-2.html` and so on.

    Reads `scores.parquet` of `out` and needs the memory of five of its columns.

    Args:
      threshold: the anomaly above which a file is abnormal.

    Returns:
      The first page.
    """
    table = pyarrow.parquet.read_table(out / "scores.parquet", columns=list(_COLUMNS))
    failed = table.filter(pc.is_valid(table["error"]))
    scored = table.filter(pc.is_null(table["error"]))
    # The anomaly rises with it, and ends at 1 where float64 does.
    order = [(CALIBRATED, "descending"), ("path", "ascending")]
    scored = scored.take(pc.sort_indices(scored, sort_keys=order))
    starts = range(0, max(len(scored), 1), _PER_PAGE)
    pages = [f"gallery-{k}.html" if k > 1 else "gallery.html" for k in range(1, len(starts) + 1)]
    abnormal = pc.sum(pc.equal(scored["decision"], "abnormal")).as_py() or 0
    scores = scored[_SCORE].to_numpy()
    # Here and not for each page: it reads every score.
    histogram = _histogram(scores, threshold) if len(scores) else None
    for number, (name, start) in enumerate(zip(pages, starts, strict=True), start=1):
        shown = scored.slice(start, _PER_PAGE)
        write_page(
            out / name,
            "gallery.html",
            title="Scored files",
            subtitle=f"{len(table):,} files, the most anomalous first",
            images_from="'self' file:",
            links=_links(pages, number),
            number=number,
            tiles=[
                ("files", f"{len(table):,}"),
                ("abnormal", f"{abnormal:,}"),
                ("normal", f"{len(scored) - abnormal:,}"),
                ("not scored", f"{len(failed):,}"),
            ],
            histogram=histogram,
            legend=charts.legend(with_truth=False),
            score_name=_SCORE,
            threshold=short(threshold),
            heading=f"Files {start + 1:,} to {start + len(shown):,}" if len(shown) else "No file",
            cards=_cards(out, shown),
            failed=[
                Row(path, [Cell(error)])
                for path, error in zip(
                    *(failed[name].slice(0, _FAILURES).to_pylist() for name in ("path", "error")),
                    strict=True,
                )
            ],
            failed_count=len(failed),
        )
    _remove_later_pages(out, len(pages))
    return out / pages[0]


def _links(pages: Sequence[str], number: int) -> list[tuple[int, str]]:
    """The first page, the last one, this one and its neighbours, as numbers and names."""
    last = len(pages)
    shown = sorted({1, max(number - 1, 1), number, min(number + 1, last), last})
    return [(k, pages[k - 1]) for k in shown]


def _histogram(scores: np.ndarray, threshold: float) -> charts.Chart:
    drawn = charts.histogram({"normal": scores}, threshold=threshold, name=_SCORE)
    return drawn._replace(description="Share of all files per score", y_label="share of files")


def _cards(out: Path, rows: pa.Table) -> Iterator[_Card]:
    for row in rows.to_pylist():
        name = safe_name(row["path"])
        thumbnail, overlay = f"thumbnails/{name}.jpg", f"heatmaps/{name}.png"
        yield _Card(
            row["path"],
            short(row[_SCORE]),
            row["decision"],
            thumbnail if os.path.exists(out / thumbnail) else "",
            overlay if os.path.exists(out / overlay) else "",
        )


def _remove_later_pages(out: Path, count: int) -> None:
    """Of an earlier start with more files."""
    for page in out.glob("gallery-*.html"):
        number = page.stem.removeprefix("gallery-")
        if number.isdigit() and int(number) > count:
            page.unlink()
