"""Pages from the templates beside this file: everything that comes from a user is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from jax_noisy_anogan.runtime.files import written

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Cell(NamedTuple):
    """One figure of a table.

    Attributes:
      range: its interval, below it.
      share: of a bar below it, from 0 to 1; None draws no bar.
      alarm: shown as something to look at.
    """

    text: str
    range: str = ""
    share: float | None = None
    alarm: bool = False


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      chosen: highlighted.
      dot: "normal" or "abnormal" puts a dot of that colour before the name.
    """

    name: str
    cells: Sequence[Cell]
    chosen: bool = False
    dot: str = ""


class Table(NamedTuple):
    """Headings, that of the rows' names included, and rows."""

    heads: Sequence[str]
    rows: Sequence[Row]


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a template with its values, piece by piece, so that a long page needs little memory.

    A file name that is no text is shown escaped.
    """
    with written(path) as file:
        for piece in _TEMPLATES.get_template(template).generate(**values):
            file.write(piece.encode("utf-8", "backslashreplace"))


def short(value: float) -> str:
    """Four digits, and a dash for what does not exist."""
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "–"
