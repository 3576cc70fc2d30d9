"""What a run says while it works: training curves in a file, one line of progress on the screen."""

from __future__ import annotations

import sys
import time

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_SECONDS = 15.0


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
