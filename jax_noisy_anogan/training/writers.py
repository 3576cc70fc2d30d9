"""Where training curves and sample pictures go beside `metrics.jsonl`: each by its own library."""

from __future__ import annotations

import importlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.pictures import Picture
from jax_noisy_anogan.runtime.files import write_text

PROJECT = "jax-noisy-anogan"


class Writer(Protocol):
    """One place that takes what training tells of itself."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take the values of a step."""

    def picture(self, step: int, picture: Picture) -> None:
        """Take a grid of generated images."""

    def close(self) -> None:
        """Wait until all of it is written."""


class TensorBoard:
    """Event files in `workdir/tensorboard`; values after `from_step` of an earlier start go.

    Every phase opens its own. What is at `from_step` itself stays: the end of the phase before.
    """

    def __init__(self, workdir: Path, *, from_step: int):
        library = _library("tensorboardX", "logging")
        self._events = library.SummaryWriter(str(workdir / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, picture: Picture) -> None:
        self._events.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


class WandB:
    """A run of Weights & Biases that goes on with the folder; its own variables say where to."""

    def __init__(self, workdir: Path, *, from_step: int):
        self._library = _library("wandb", "wandb")
        self._run = self._library.init(
            project=PROJECT,
            name=workdir.name,
            id=_kept(workdir / "wandb_run", lambda: secrets.token_hex(8)),
            dir=str(workdir),
            resume="allow",
            # Standard output and error stay the program's own.
            settings=self._library.Settings(silent=True, console="off"),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, picture: Picture) -> None:
        self._run.log({"samples": self._library.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow that goes on with the folder; `MLFLOW_TRACKING_URI` says where to."""

    def __init__(self, workdir: Path, *, from_step: int):
        library = _library("mlflow", "mlflow")
        self._client = library.MlflowClient()
        self._entities = library.entities

        def create() -> str:
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
            return self._client.create_run(experiment, run_name=workdir.name).info.run_id

        self._run = _kept(workdir / "mlflow_run", create)

    def write(self, step: int, values: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(name, v, now, step) for name, v in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def picture(self, step: int, picture: Picture) -> None:
        grey = picture[..., 0] if picture.shape[-1] == 1 else picture
        self._client.log_image(self._run, grey, key="samples", step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


WRITERS: dict[str, Callable[..., Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Writers:
    """All writers of these names; one that fails is told and left out, and training goes on.

    Args:
      from_step: where training goes on.
      required: whether one that cannot be opened ends training, as at its beginning.

    Raises:
      ConfigError: one cannot be opened, or its library is not installed.
    """

    def __init__(
        self, names: Sequence[str], workdir: Path, *, from_step: int, required: bool = True
    ):
        self._open: dict[str, Writer] = {}
        for name in names:
            try:
                self._open[name] = WRITERS[name](workdir, from_step=from_step)
            except ConfigError:
                raise
            except Exception as error:  # of its library's own kinds
                if required:
                    raise ConfigError(
                        f"config.train.writers: {name} cannot be opened ({_line(error)})"
                    ) from error
                logging.warning("%s gets nothing of this phase (%s)", name, _line(error))

    def write(self, step: int, values: dict[str, float]) -> None:
        self._tell(lambda writer: writer.write(step, values))

    def picture(self, step: int, picture: Picture) -> None:
        self._tell(lambda writer: writer.picture(step, picture))

    def close(self) -> None:
        self._tell(lambda writer: writer.close())

    def _tell(self, action: Callable[[Writer], None]) -> None:
        for name, writer in list(self._open.items()):
            try:
                action(writer)
            except Exception as error:  # of its library's own kinds
                logging.warning("%s gets nothing more of this phase (%s)", name, _line(error))
                del self._open[name]


def _kept(path: Path, create: Callable[[], str]) -> str:
    """What a file of the run holds; where there is none yet, something new."""
    if path.exists():
        return path.read_text().strip()
    name = create()
    write_text(path, name + "\n")
    return name


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"config.train.writers needs {module}: pip install 'jax-noisy-anogan[{extra}]'"
        ) from error
