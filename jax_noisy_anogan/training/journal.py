"""What training says while it works: curves in a file, the line of progress, signs of collapse."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from absl import logging

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.pictures import Picture
from jax_noisy_anogan.runtime.checkpoint import Position
from jax_noisy_anogan.runtime.files import write_text
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.training import collapse
from jax_noisy_anogan.training.estimate import Forecast
from jax_noisy_anogan.training.growth import Phase
from jax_noisy_anogan.training.writers import Writers


class MetricWriter:
    """Appends to `metrics.jsonl`, and to the `writers` that are asked for.

    Args:
      from_step: lines of later steps, written before a kill or a rollback, are dropped.
      writers: names of `writers.WRITERS`.
      required: whether all of them must open.

    Raises:
      ConfigError: a writer cannot be opened, or its library is not installed.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        from_step: int,
        writers: Sequence[str] = (),
        required: bool = True,
    ):
        self._writers = Writers(writers, workdir, from_step=from_step, required=required)
        path = workdir / "metrics.jsonl"
        _drop_after(path, from_step)
        self._file: IO[str] = open(path, "a")  # noqa: SIM115

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one line: `step`, then the values."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
        self._writers.write(step, numbers)

    def picture(self, step: int, picture: Picture) -> None:
        """Add a grid of generated images, which `metrics.jsonl` cannot hold."""
        self._writers.picture(step, picture)

    def close(self) -> None:
        self._file.close()
        self._writers.close()


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
    write_text(path, "".join(line + "\n" for line in kept))


class Log:
    """Fetches metrics one step late: the device is never idle, and never far behind.

    On CPU with several virtual devices, JAX before 0.12 also deadlocks when too many steps are in
    flight.

    Attributes:
      stopping: whether a process was asked to stop, by the newest metrics that were fetched.
      monitor: of collapse, after those.
    """

    def __init__(
        self,
        phase: Phase,
        writer: Any,
        line: ProgressLine,
        config: Config,
        monitor: collapse.Monitor,
        forecast: Forecast,
    ):
        self._phase, self._writer, self._line = phase, writer, line
        self._forecast = forecast
        self._every = config.train.log_every_steps
        self._critic = config.loss.objective == "wgan_gp"
        self.stopping, self.monitor = False, monitor
        self._pending: tuple[Position, float, Any] | None = None
        self._since: list[dict[str, float]] = []
        self._noted: dict[str, float] = {}
        self._start = time.monotonic()

    def add(self, position: Position, alpha: float, metrics: Any) -> None:
        """Note a step's metrics, which may not be computed yet, and fetch those of the one before.

        Raises:
          FloatingPointError: a loss or gradient of the step before is not finite.
        """
        pending, self._pending = self._pending, (position, alpha, metrics)
        if pending is not None:
            self._take(*pending)

    def note(self, values: dict[str, float]) -> None:
        """Figures of the state after the newest step, for the next line of the curves."""
        self._noted |= values

    def fetch_all(self) -> None:
        """Wait for the newest step's metrics; raises as `add`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._take(*pending)

    def _take(self, position: Position, alpha: float, metrics: Any) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.stopping = values.pop("stopping") > 0
        bad = sorted(name for name, value in values.items() if not np.isfinite(value))
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite at step {position.step} ({self._phase.name})"
            )
        self._forecast.updated(position)
        self._watch(position, values)
        self._since.append(values)
        self._line.update(
            position.images,
            f"{self._phase.name} D {values['d_loss']:.3f} G {values['g_loss']:.3f}",
            left=self._forecast.left(),
        )
        if position.step % self._every == 0 or position.step == self._phase.end_step:
            self._write(position, alpha)

    def _watch(self, position: Position, values: dict[str, float]) -> None:
        before = self.monitor.ongoing
        self.monitor = self.monitor.update(values, self._phase.minibatch, critic=self._critic)
        for sign in self.monitor.ongoing:
            if sign not in before and jax.process_index() == 0:
                logging.warning(
                    "collapse at step %d (%s): %s, for %s images already",
                    position.step,
                    self._phase.name,
                    collapse.SIGNS[sign],
                    f"{collapse.WINDOW_IMAGES:,}",
                )

    def _write(self, position: Position, alpha: float) -> None:
        seconds = time.monotonic() - self._start
        means = {
            name: float(np.mean([values[name] for values in self._since]))
            for name in self._since[-1]
        }
        self._writer.write(
            position.step,
            {
                "images": position.images,
                "resolution": self._phase.resolution,
                "alpha": alpha,
                "images_per_second": len(self._since) * self._phase.minibatch / seconds,
                "rollbacks": position.rollbacks,
                **means,
                **self._noted,
                **({"collapse": self.monitor.ongoing} if self.monitor.ongoing else {}),
            },
        )
        self._since, self._noted, self._start = [], {}, time.monotonic()


class Silent:
    """Stands in for the metric writer in every process but the first."""

    def write(self, step: int, values: dict[str, Any]) -> None: ...

    def picture(self, step: int, picture: Picture) -> None: ...

    def close(self) -> None: ...
