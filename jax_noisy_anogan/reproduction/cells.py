"""Cells of a table: computed once, kept as JSON, so that a long table goes on where it stopped."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data.source import digest
from jax_noisy_anogan.workdir import write_text

Values = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where an experiment takes its settings and data from, and where it writes.

    Attributes:
      out: results; cells lie in `out/cells`, runs in `out/runs`.
      configs: folder of the config files.
      roots: source folders by data set name; a data set without one is replaced by what needs none.
      cache_dir: of prepared records; empty takes the configs' own.
      quick: shrink everything, so that the whole reproduction ends within an hour on two cores.
      options: of the experiment.
    """

    out: Path
    configs: Path
    roots: Mapping[str, str]
    cache_dir: str
    quick: bool
    options: Mapping[str, Sequence[int]]

    def config(self, name: str) -> Config:
        """`get_config()` of a config file, with source folder and cache set.

        Raises:
          ConfigError: there is no such file.
        """
        path = self.configs / f"{name}.py"
        if not path.is_file():
            raise ConfigError(f"--configs {self.configs} holds no {name}.py: name the project's")
        scope: dict[str, Any] = {}
        exec(compile(path.read_text(), str(path), "exec"), scope)
        config = scope["get_config"]()
        assert isinstance(config, Config)
        config.data.root = self.roots.get(name, "")
        config.data.cache_dir = self.cache_dir or config.data.cache_dir
        return config

    def option(self, name: str, default: Sequence[int]) -> list[int]:
        """A list of numbers given on the command line, or the default."""
        return list(self.options.get(name) or default)

    def cell(self, name: str, settings: Any, compute: Callable[[], Values]) -> Values:
        """The result of `compute`, or what an earlier start kept of it.

        Args:
          name: of the cell, readable; its file is named after it.
          settings: everything that the result depends on; other settings make another cell.
        """
        path = self.out / "cells" / f"{name}-{digest(settings)}.json"
        if path.exists():
            return json.loads(path.read_text())
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        values = {**compute(), "seconds": round(time.monotonic() - start, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(values) + "\n")
        print(f"{name}: {values['seconds']} s", file=sys.stderr, flush=True)
        return values


@dataclass(frozen=True)
class Result:
    """A table with its story.

    Attributes:
      name: of the files that it is written to.
      rows: of text and numbers, as many as `columns` each.
      notes: settings, seeds, time: lines below the table.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    def write(self, out: Path) -> None:
        """Write `<name>.md` and `<name>.csv`, and print the former."""
        out.mkdir(parents=True, exist_ok=True)
        text = self.markdown()
        write_text(out / f"{self.name}.md", text)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        write_text(out / f"{self.name}.csv", table.getvalue())
        print(text)

    def markdown(self) -> str:
        """The table as Markdown, with hardware in the last note."""
        lines = [f"## {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line([_shown(value) for value in row]) for row in self.rows]
        notes = [*self.notes, hardware()]
        return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def hardware() -> str:
    """One line: what the figures were computed on."""
    devices = jax.devices()
    kind = devices[0].device_kind
    name = f"{os.cpu_count()} cores, {platform.machine()}" if kind == "cpu" else kind
    return f"{len(devices)} x {kind} ({name}), jax {jax.__version__}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """`0.981 ± 0.004`; the deviation is that of the population and absent for one value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
