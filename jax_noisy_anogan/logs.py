"""What a run says while it works: training curves in a file, one line of progress on the screen."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from jax_noisy_anogan.config import ConfigError

PLAIN_INTERVAL_SECONDS = 15.0


class MetricWriter:
    """Appends to `metrics.jsonl` and, if asked, to TensorBoard's event files.

    Args:
      from_step: lines of later steps, written before a kill or a rollback, are dropped.

    Raises:
      ConfigError: TensorBoard is asked for and tensorboardX is not installed.
    """

    def __init__(self, workdir: Path, *, from_step: int, tensorboard: bool = False):
        path = workdir / "metrics.jsonl"
        _drop_after(path, from_step)
        self._file: IO[str] = open(path, "a")  # noqa: SIM115
        self._events = _open_events(workdir, from_step) if tensorboard else None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one line: `step`, then the values."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _open_events(workdir: Path, from_step: int) -> Any:
    try:
        import tensorboardX
    except ImportError as error:
        raise ConfigError(
            "config.train.tensorboard needs tensorboardX: pip install 'jax-noisy-anogan[logging]'"
        ) from error
    return tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=from_step)


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the torn last line of a killed run
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


class ProgressLine:
    """Position, rate, and time left: a live bar on a terminal, otherwise a line now and then.

    Use as a context manager.

    Args:
      total: amount of work, in `unit`s.
      done: how much of it earlier starts have done.
      show: False keeps silent.
    """

    def __init__(self, what: str, *, total: int, done: int = 0, unit: str, show: bool = True):
        self._what, self._total, self._done, self._unit = what, total, done, unit
        self._first, self._start = done, time.monotonic()
        self._said = self._start
        self._show = show
        console = Console(stderr=True)
        self._live = show and console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            *Progress.get_default_columns()[1:-1],
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        self._task = self._bar.add_task(
            self._what, total=self._total, completed=self._done, text=""
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """Tell how much is done; `text` stands behind the rate."""
        self._done = done
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        line = f"{rate:,.0f} {self._unit}/s {text}".rstrip()
        self._bar.update(self._task, completed=done, text=line)
        finished = done >= self._total
        if (
            self._show
            and not self._live
            and (finished or now - self._said > PLAIN_INTERVAL_SECONDS)
        ):
            self._said = now
            left = (self._total - done) / rate if rate > 0 else np.inf
            print(
                f"{self._what}: {done:,} of {self._total:,}, {line}, {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )


def _clock(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
