"""A whole run, from records to results, as one call; what exists already is not made again.

 1. Hold the folder and its settings                       `opened`, `runtime.workdir`
 2. Prepare the images as records, once for all runs       `data.dataset.load_dataset`
 3. Divide them, once: train, known, validation, test      `data.splits`, `data.split_file`
 4. Plan the phases of growth, from 4 x 4 up               `training.growth.make_schedule`
 5. In every phase read, augment and prefetch batches      `data.streams.TrainingStreams`
 6. update D, an encoder if asked for, then G              `training.step.TrainStep`
 7. keep checkpoints, curves, samples, signs of collapse   `training.loop`, `training.journal`
 8. Bind the averaged networks as functions                `model.Model`, `model.bind`
 9. Search the latent of every held-out image              `latent_search.search_latents`
10. Fit calibration and thresholds on validation images    `scoring.calibration`
11. Judge the test images: terms, maps, decisions          `scoring.scorer`, `scoring.maps`
12. Write metrics, scores, pictures and the report         `evaluation.results.evaluate`
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import split_file
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.gathering import Images, gather
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.data.summary import left_out_by_kind, pixel_statistics
from jax_noisy_anogan.evaluation import held_out
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.evaluation.held_out import Measured
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime import files, parallel, processes
from jax_noisy_anogan.runtime import workdir as workdir_lib
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring import detector
from jax_noisy_anogan.scoring.detector import Detector
from jax_noisy_anogan.scoring.scorer import searched_tiles
from jax_noisy_anogan.scoring.tiles import tile_positions
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training import state as state_lib
from jax_noisy_anogan.training.choices import choose, foretold
from jax_noisy_anogan.training.estimate import in_words
from jax_noisy_anogan.training.growth import make_schedule

# Of the standard deviation that networks are told to expect: MNIST has 0.62 of it, drawn brushed
# steel 0.11.
_FAINT = 0.25


@contextlib.contextmanager
def opened(config: Config, folder: Path) -> Iterator[Config]:
    """Hold the folder of a run with these settings; one process does so for all.

    What the settings leave to the data is chosen from it at the first start, and kept.

    Yields:
      The settings of the run.

    Raises:
      DataError: the data set is missing or not as expected.
      WorkdirError: the folder is in use, or cannot be written.
      ConfigError: it was started with other settings.
    """
    if workdir_lib.has_trained(folder):
        choices = workdir_lib.read_choices(folder)
    else:
        choices, remarks = choose(config)
        for remark in remarks if jax.process_index() == 0 else ():
            print(remark, file=sys.stderr)
    asked, config = config, workdir_lib.with_choices(config, choices)
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(files.locked(folder))
            if workdir_lib.has_trained(folder):
                # Kept by `split_of`, once the images turn out to be those of the run.
                workdir_lib.changes_of(folder, config)
                return
            workdir_lib.settle_config(folder, config)
            workdir_lib.write_choices(folder, choices)

        processes.on_first_process(hold)
        # Lengths come from a stopwatch, and no two processes see the same time.
        yield workdir_lib.with_choices(asked, workdir_lib.read_choices(folder))


Divide = Callable[[Dataset], Split]


def split_of(config: Config, folder: Path, dataset: Dataset, divide: Divide | None = None) -> Split:
    """The division that a run trained with, or a new one, which is kept with the run.

    Changed settings of a run that has trained are kept only now: a folder with other images leaves
    it as it was.

    Args:
      divide: makes the new one; `make_split` where it is None.

    Raises:
      DataError: an image of the run's split is missing, or a part would be empty.
    """
    path = folder / "split.json"
    if workdir_lib.has_trained(folder):
        split = split_file.read(path, dataset)
        processes.on_first_process(lambda: workdir_lib.settle_config(folder, config))
        return split
    split = make_split(dataset, config.data) if divide is None else divide(dataset)
    processes.on_first_process(lambda: split_file.write(path, split, dataset))
    return split


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
    with opened(config, folder) as config:
        trained = _trained(config, folder, progress)
        return results_lib.evaluate(config, folder, *trained, progress=progress)


def fit(
    normal: Images,
    abnormal: Images = (),
    *,
    masks: Images | None = None,
    workdir: str | Path,
    minutes: float = 10.0,
    changes: Sequence[str] = (),
    progress: bool = True,
) -> Detector:
    """Train a detector on images, as `configs/folder.py` does; called again, it goes on.

    Args:
      normal: a folder of photographs of good parts, or a list of images: paths, arrays, images of
        Pillow.
      abnormal: the same of known defects; some of them train, some set the threshold, some test.
      masks: where the defects are: of a folder, a folder of files with the same names; of a list,
        one image for each. Files are white there, and arrays and images of Pillow above 0.
      workdir: folder of the run; holds the report, and is what `load` opens later.
      minutes: of training, on this machine.
      changes: settings that differ from the config's, as in `["growth.resolution=128"]`.

    Raises:
      DataError: an image or folder is missing, too few are given, or the run was trained on others.
      ConfigError: a change is no setting, or the run was started with other settings.
      TrainingStoppedError: on SIGTERM or SIGINT, after a checkpoint.
    """
    folder = user_path(workdir, "workdir")
    root = gather(
        folder / "images",
        normal=normal,
        abnormal=abnormal,
        masks=masks,
        complete=workdir_lib.has_trained(folder),
    )
    config = config_lib.read_file(str(config_lib.packaged("folder")))
    config.data.root, config.train.minutes = str(root), minutes
    run(config_lib.changed(config, changes, flag="changes"), folder, progress=progress)
    return detector.load(folder)


def train(config: Config, folder: Path, *, progress: bool = True) -> Trained:
    """The first half of `run`."""
    with opened(config, folder) as config:
        return _trained(config, folder, progress)


def measure(
    config: Config, folder: Path, *, divide: Divide | None = None, progress: bool = True
) -> tuple[Trained, Measured]:
    """`run` without its files of results: for tables over many runs. In one process only.

    Args:
      divide: another way to divide the images than the settings'.
    """
    with opened(config, folder) as config:
        trained = _trained(config, folder, progress, divide)
        return trained, held_out.measure(config, folder, *trained, progress=progress)


def _trained(config: Config, folder: Path, progress: bool, divide: Divide | None = None) -> Trained:
    parallel.keep_compiled(config.train.compilation_cache_dir)
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=progress)
    _say_left_out(dataset)
    split = split_of(config, folder, dataset, divide)
    calibration_lib.require_normals(len(split.validation_normal))
    _warn_of_faint_images(config, dataset, split)
    if progress and jax.process_index() == 0:
        print(*_opening(config, folder, dataset, split), sep="\n", file=sys.stderr, flush=True)
    state = loop.train(config, folder, dataset, split, progress=progress)
    return Trained(dataset, split, state_lib.model_of(config, state))


def _opening(config: Config, folder: Path, dataset: Dataset, split: Split) -> list[str]:
    """Five lines about what is going to happen."""
    schedule = make_schedule(config.growth)
    step = min(workdir_lib.newest_step(folder), schedule.total_steps)
    tile = config.growth.resolution
    overlap = round(tile * config.score.tile_overlap)
    shapes = Counter(dataset.shape(int(i)) for name in held_out.PARTS for i in split.part(name))
    tiles = {shape: len(tile_positions(*shape, tile, overlap)) for shape in shapes}
    some = searched_tiles(config)
    searched = sum(
        count * (min(some, tiles[shape]) if some else tiles[shape])
        for shape, count in shapes.items()
    )
    training, search = foretold(config, schedule, step, searched)
    devices, known = jax.devices(), len(split.train_known_abnormal)
    abnormal = int(split.is_abnormal[split.test].sum())
    phases = ", ".join(phase.name for phase in schedule.phases if phase.end_step > step)
    return [
        f"device: {devices[0].device_kind}" + (f", {len(devices)} of them" * (len(devices) > 1)),
        f"images: training {len(split.train_normal):,} normal and {known:,} known abnormal; "
        f"validation {len(split.validation_normal):,} and "
        f"{len(split.validation_known_abnormal):,}; test {len(split.test) - abnormal:,} and "
        f"{abnormal:,}",
        f"networks: up to {config.growth.resolution} x {config.growth.resolution} pixels; "
        + (f"phases {phases}" if phases else "training has ended"),
        f"time, roughly: {in_words(training)} of training, then {in_words(search)} of search; "
        "programs are compiled first",
        f"folder: {folder}"
        + (f", goes on from step {step:,} of {schedule.total_steps:,}" * (step > 0)),
    ]


def _say_left_out(dataset: Dataset) -> None:
    if dataset.left_out and jax.process_index() == 0:
        logging.warning(
            "left out %s (listed in %s)", left_out_by_kind(dataset), dataset.write_report()
        )


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
