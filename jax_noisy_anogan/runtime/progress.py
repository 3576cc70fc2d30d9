"""One line of progress on the screen.

Rate and time left count from the first piece of work that is done: before it, programs are
compiled.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import Progress, TextColumn

PLAIN_INTERVAL_SECONDS = 15.0
# Pieces of work that come in batches say nothing of the rate within one.
_SHORTEST_SECONDS = 1.0


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
        self._start = self._said = time.monotonic()
        # The first piece of work that this start has done, and when.
        self._first: tuple[int, float] | None = None
        self._began = done
        self._show = show
        console = Console(stderr=True)
        self._live = show and console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            *Progress.get_default_columns()[1:-1],
            TextColumn("{task.fields[text]}"),
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

    def say(self, text: str) -> None:
        """Tell a line of its own, above the bar."""
        if self._live:
            self._bar.console.print(f"{self._what}: {text}", markup=False, highlight=False)
        elif self._show:
            print(f"{self._what}: {text}", file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        """Tell that `count` more are done."""
        self.update(self._done + count)

    def update(self, done: int, text: str = "", *, left: float | None = None) -> None:
        """Tell how much is done.

        Args:
          text: stands behind the rate.
          left: seconds, where more is known than the rate so far.
        """
        self._done = done
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        finished = done >= self._total
        if not self._show or not (
            self._live or finished or now - self._said > PLAIN_INTERVAL_SECONDS
        ):
            return
        self._said = now
        seconds, count = now - self._first[1], done - self._first[0]
        if finished:  # all that was done, from the start on
            seconds, count = now - self._start, done - self._began
        rate = count / seconds if count and seconds >= _SHORTEST_SECONDS else 0.0
        if left is None and rate:
            left = (self._total - done) / rate
        end = f"took {_clock(now - self._start)}" if finished else _left(left)
        line = ", ".join(filter(None, (rate_in_words(rate, self._unit), text, end)))
        self._bar.update(self._task, completed=done, text=line)
        if not self._live:
            place = f"{self._what}: {done:,} of {self._total:,}"
            print(", ".join(filter(None, (place, line))), file=sys.stderr, flush=True)


def rate_in_words(rate: float, unit: str) -> str:
    """A rate per second in the unit that fits, as "27 images/s" or "4.2 s per image".

    Args:
      rate: 0 where it is not known yet, which is told by nothing.
      unit: in the plural.
    """
    if not rate:
        return ""
    if rate >= 10:
        return f"{rate:,.0f} {unit}/s"
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s per {unit.rstrip('s')}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{_clock(seconds)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
