"""A finished table with its story: printed, and written as Markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy import stats

from jax_noisy_anogan import pictures
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.runtime.files import write_text

MISSING = "–"


@dataclass(frozen=True)
class Result:
    """One table, or the figures behind one picture.

    Attributes:
      name: of the files that it is written to.
      rows: of text and numbers, as many as `columns` each; None is a gap.
      notes: settings, seeds, time: lines below the table.
      picture: the PNG, as a figure or an image; None draws the table itself.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    picture: Figure | pictures.Picture | None = None

    def write(self, out: Path) -> None:
        """Write `<name>.md`, `<name>.csv` and `<name>.png`, and print the first."""
        out.mkdir(parents=True, exist_ok=True)
        text = self.markdown()
        write_text(out / f"{self.name}.md", text)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        write_text(out / f"{self.name}.csv", table.getvalue())
        picture = self._drawn() if self.picture is None else self.picture
        if isinstance(picture, Figure):
            pictures.save_figure(out / f"{self.name}.png", picture)
        else:
            pictures.save_png(out / f"{self.name}.png", picture)
        print(text, flush=True)

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"## {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line([_shown(value) for value in row]) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def _drawn(self) -> Figure:
        cells = [[textwrap.fill(_shown(value), 30) for value in row] for row in self.rows]
        figure = Figure(figsize=(1.5 + 1.4 * len(self.columns), 1.0 + 0.36 * len(cells)))
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.86))
        axes.set_axis_off()
        axes.set_title(self.title, fontsize=11)
        if cells:
            table = axes.table(cells, colLabels=list(self.columns), bbox=Bbox.unit())
            table.auto_set_font_size(False)
            table.set_fontsize(8)
            table.auto_set_column_width(range(len(self.columns)))
        return figure


def story(bench: Bench, cells: Sequence[Cell], *settings: str) -> list[str]:
    """Notes below a table: settings, size, time, code and hardware, and what is missing of it."""
    found = [values for cell in cells if (values := bench.kept(cell)) is not None]
    size = bench.sized(
        quick="shrunk by --quick: figures of the full size would differ",
        night="size night: figures of the full size would differ",
        full="",
    )
    made = [values["made"] for values in found if "made" in values]
    # Cells that are kept for long may be of several commits and machines: all are named.
    by = "; ".join(sorted({f"{m['code']} on {m['hardware']}" for m in made}))
    gaps = len(cells) - len(found)
    missing = f"{gaps} of {len(cells)} cells are not computed yet: their places are empty or means"
    return [
        *settings,
        *([size] if size else []),
        *([f"{missing} over fewer; the same command goes on"] if gaps else []),
        f"{_total(found, 'seconds')} s in {len(found)} cells; {_total(found, 'cpu_seconds')} s of "
        "CPU time",
        *([f"computed by version {by}; the last at {max(m['at'] for m in made)}"] if made else []),
    ]


def found_in(bench: Bench, cells: Iterable[Cell], figure: Callable[[Values], Any]) -> list[Any]:
    """`figure` of those of the cells that are computed."""
    values = (bench.kept(cell) for cell in cells)
    return [figure(value) for value in values if value is not None]


def mean(values: Sequence[float]) -> float:
    """Nan for no value."""
    return sum(values) / len(values) if values else math.nan


def mean_and_deviation(values: Sequence[float]) -> str | None:
    """`0.981 ± 0.004`; the deviation is that of the population and absent for one value."""
    if not values:
        return None
    middle = mean(values)
    if len(values) == 1:
        return f"{middle:.3f}"
    deviation = mean([(value - middle) ** 2 for value in values]) ** 0.5
    return f"{middle:.3f} ± {deviation:.3f}"


def paired(differences: Sequence[float]) -> str | None:
    """Their mean with its 95 % interval (Student's t), and the two-sided p of Wilcoxon's
    signed-rank test; None where fewer than two can tell."""
    if len(differences) < 2 or not np.ptp(differences):
        return None
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    p = stats.wilcoxon(differences).pvalue
    return f"{mean(differences):+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2g}"


def lines_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str
) -> Figure:
    """One line per name through its points; every position on the x axis gets the same room."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = sorted({value for values, _ in curves.values() for value in values})
    for number, (name, (values, heights)) in enumerate(curves.items()):
        # The colours come round after ten.
        style = "o-" if number < 10 else "s--"
        axes.plot([places.index(value) for value in values], heights, style, label=name)
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _total(found: Sequence[Values], name: str) -> str:
    return f"{sum(values[name] for values in found):,.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
