"""A finished run on labelled images that it has never divided: a later batch, another camera.

The run is only read. Its thresholds judge the images, unless half of them are to set new ones.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data import splits
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.summary import left_out_by_kind
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.evaluation.held_out import PARTS, Scored, Validated
from jax_noisy_anogan.runtime.files import WorkdirError, locked, write_text
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import (
    CALIBRATED,
    FEWEST_NORMALS,
    Calibration,
    CalibrationError,
    Fitted,
    stamp,
)
from jax_noisy_anogan.scoring.maps import load_maps
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.training import state as state_lib

# What says how a folder is laid out and which of its files are read; everything else is the run's.
_CHANGEABLE = (
    "data.layout",
    "data.normal_dirs",
    "data.abnormal_dirs",
    "data.table",
    "data.group_pattern",
    "data.keep_together",
    "data.split_seed",
    "data.on_bad_image",
    "data.max_image_pixels",
    "data.cache_dir",
)


def settings_for(config: Config, data: str, changes: Sequence[str]) -> Config:
    """The settings of a run, for the images of another folder.

    Raises:
      ConfigError: the run was not trained on a folder of images, or a change is about something
        else than the folder.
    """
    if config.data.name != "image_folder":
        raise ConfigError(
            f"the run was trained on {config.data.name}: test takes runs on folders of images "
            "(data.name = image_folder)"
        )
    for change in changes:
        if change.removeprefix("config.").partition("=")[0] not in _CHANGEABLE:
            raise ConfigError(f"--set {change}: test takes {', '.join(_CHANGEABLE)}")
    changed = config_lib.changed(config, changes)
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, root=data))


def judge(
    run: Path, config: Config, out: Path, *, recalibrate: bool, progress: bool = True
) -> dict[str, Any]:
    """Test a run and write `metrics.json`, `scores.csv`, `report.html` and pictures into `out`.

    With `recalibrate` also `calibration.json`, `map_calibration.npz`, `memory.npz` where the run
    has one, and `split.json`, which says which images calibrate and which are tested.

    Args:
      config: what `settings_for` returns.

    Returns:
      What `metrics.json` holds.

    Raises:
      ConfigError, CheckpointError, CalibrationError: `run` is not a finished run; says why.
      WorkdirError: `out` is the folder of a run or lies in one, or is in use.
      DataError: the folder is not as expected, or holds too few images to calibrate.
    """
    calibration = Calibration.load(run / "calibration.json")
    memory = memory_lib.of_run(run, config.score)
    validated = None if recalibrate else _of_the_run(run, calibration, memory)
    _require_apart(run, out)
    model = state_lib.load_model(run, config)
    with locked(out, flag="--out", user="command"):
        dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=progress)
        if dataset.left_out:
            logging.warning(
                "left out %s (listed in %s)", left_out_by_kind(dataset), dataset.write_report()
            )
        split = splits.for_testing(dataset, config.data, calibrate=recalibrate)
        if recalibrate:
            _require_enough(len(split.validation_normal), config.data.root)
            division = {"model": stamp(model, config), **split.to_json()}
            write_text(out / "split.json", json.dumps(division, indent=1) + "\n")
        elif (out / "calibration.json").exists():
            raise WorkdirError(
                f"--out {out} holds a calibration: use another folder, or --recalibrate again"
            )
        return results_lib.evaluate(
            config,
            out,
            dataset,
            split,
            model,
            validated=validated,
            memory=memory,
            run=run,
            progress=progress,
        )


def _require_apart(run: Path, out: Path) -> None:
    if (out / "config.json").exists():
        raise WorkdirError(f"--out {out} is the folder of a run: use another")
    if out.resolve().is_relative_to(run.resolve()):
        raise WorkdirError(f"--out {out} lies in the folder of the run, which stays as it is")


def _require_enough(normals: int, root: str) -> None:
    if normals < FEWEST_NORMALS:
        raise DataError(
            f"{normals} normal images of {root}, which are half of them, are to set thresholds: at "
            f"least {2 * FEWEST_NORMALS} normal images are needed"
        )


def _of_the_run(run: Path, calibration: Calibration, memory: Memory | None) -> Validated:
    """What the run knows of its validation images, none of which is in the new folder.

    Raises:
      CalibrationError: a file of the run is missing or damaged.
    """
    path = run / "scores.csv"
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        found = {
            part: {
                name: np.array([float(row[name]) for row in rows if row["part"] == part])
                for name in (*calibration.terms, CALIBRATED)
            }
            for part in PARTS[:2]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): run `python -m jax_noisy_anogan.evaluate --workdir "
            f"{run}` first"
        ) from error
    scores = [found[part].pop(CALIBRATED) for part in PARTS[:2]]
    scored = {part: Scored(np.zeros(0, np.int64), terms) for part, terms in found.items()}
    maps = load_maps(run / "map_calibration.npz")
    return Validated(maps, memory, scored, Fitted(calibration, *scores))
