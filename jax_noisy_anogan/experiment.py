"""A whole run, from records to results, as one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import Dataset, Split, load_dataset, make_split
from jax_noisy_anogan.data.summary import pixel_statistics
from jax_noisy_anogan.evaluation import held_out, results
from jax_noisy_anogan.evaluation.held_out import Measured
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime import files, parallel, processes, workdir
from jax_noisy_anogan.scoring import calibration
from jax_noisy_anogan.training import encoder, loop
from jax_noisy_anogan.training import state as state_lib

# Of the standard deviation that networks are told to expect: MNIST has 0.62 of it, drawn brushed
# steel 0.11.
_FAINT = 0.25


@contextlib.contextmanager
def opened(config: Config, folder: Path) -> Iterator[None]:
    """Hold the folder of a run with these settings; one process does so for all.

    Raises:
      WorkdirError: it is in use, or cannot be written.
      ConfigError: it was started with other settings.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(files.locked(folder))
            workdir.settle_config(folder, config)

        processes.on_first_process(hold)
        yield


class Trained(NamedTuple):
    """A run after training."""

    dataset: Dataset
    split: Split
    model: Model


def run(config: Config, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Everything that a config describes, from records to results; what exists is not made again.

    Returns:
      What `metrics.json` holds.
    """
    with opened(config, folder):
        trained = _trained(config, folder, progress)
        return results.evaluate(config, folder, *trained, progress=progress)


def train(config: Config, folder: Path, *, progress: bool = True) -> Trained:
    """The first half of `run`."""
    with opened(config, folder):
        return _trained(config, folder, progress)


def measure(config: Config, folder: Path, *, progress: bool = True) -> tuple[Trained, Measured]:
    """`run` without its files of results: for tables over many runs. In one process only."""
    with opened(config, folder):
        trained = _trained(config, folder, progress)
        return trained, held_out.measure(config, folder, *trained, progress=progress)


def _trained(config: Config, folder: Path, progress: bool) -> Trained:
    parallel.keep_compiled(config.train.compilation_cache_dir)
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=progress)
    split = make_split(dataset, config.data)
    calibration.require_normals(len(split.validation_normal))
    _warn_of_faint_images(config, dataset, split)
    processes.on_first_process(lambda: split.write(folder / "split.json"))
    state = loop.train(config, folder, dataset, split, progress=progress)
    trained = state_lib.model_of(config, state)
    trained = encoder.fit(config, folder, dataset, split, trained, progress=progress)
    return Trained(dataset, split, trained)


def _warn_of_faint_images(config: Config, dataset: Dataset, split: Split) -> None:
    mean, std = pixel_statistics(dataset, split.train_normal)
    if std < _FAINT * config.data.pixel_std and jax.process_index() == 0:
        logging.warning(
            "normal training images are faint: their pixels deviate by %.3f of the full range, and "
            "the networks expect about %.3f; G may settle on a single image. Set "
            "--config.data.pixel_mean=%.3f --config.data.pixel_std=%.3f",
            std,
            config.data.pixel_std,
            mean,
            std,
        )
