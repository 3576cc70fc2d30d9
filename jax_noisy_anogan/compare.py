"""Cross-validate settings: `python -m jax_noisy_anogan.compare --config FILE.py --workdir DIR`.

Candidates are the settings as given, and one for every --try "section.field=value ...". Without
--try it is photographs whole against photographs in tiles. Every candidate trains on parts of the
training images and judges the part left out; no test image is looked at. Beside them stand simple
yardsticks on the same images. Run again, the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Column, Table

from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, ConfigError, validate
from jax_noisy_anogan.data import survey
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import Dataset, image_resolution, load_dataset
from jax_noisy_anogan.data.folds import folds
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation import yardsticks
from jax_noisy_anogan.evaluation.comparison import Judged, Row, best, rows, simple
from jax_noisy_anogan.evaluation.held_out import Measured
from jax_noisy_anogan.reproduction.cells import identity
from jax_noisy_anogan.runtime.files import digest, user_path, write_text
from jax_noisy_anogan.scoring.calibration import ANOMALY
from jax_noisy_anogan.training.estimate import in_words

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the comparison and of the runs that it trains")
_TRY = flags.DEFINE_multi_string(
    "try", [], 'A candidate: settings as in --try "growth.resolution=128 data.flip_vertical=true"'
)
_FOLDS = flags.DEFINE_integer("folds", 3, "Parts of the training images", lower_bound=2)
_MINUTES = flags.DEFINE_float(
    "minutes",
    30.0,
    "Of training, shared alike by all; 0 trains each as long as its settings say",
    lower_bound=0.0,
)

# Settings of `data` that candidates may differ in: others say which images there are, and how they
# are divided.
_SHOWN = (
    "fit",
    "scale",
    "channels",
    "black_level",
    "white_level",
    "local_contrast",
    "pixel_mean",
    "pixel_std",
    "tile_image_resolution",
    "flip_horizontal",
    "flip_vertical",
    "quarter_turns",
    "max_shift",
    "brightness",
    "paste_defects",
    "simulated_defects",
)


# Chosen for `--minutes`.
_LENGTHS = (
    "growth.stable_images",
    "growth.fade_images",
    "growth.final_images",
    "train.minutes",
)


class Candidate(NamedTuple):
    """Settings to compare.

    Attributes:
      config: validated.
      changes: what they change of those as given, as `section.field=value`.
    """

    config: Config
    changes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return shlex.join(self.changes) or "as given"


def candidates(config: Config, tries: Sequence[str], minutes: float, parts: int) -> list[Candidate]:
    """The settings as given, then those of every try, or else whole images against tiles.

    Args:
      config: as given, not validated: settings that follow others follow those of a try too.
      minutes: of all trainings together; 0 leaves each as long as its settings say.
      parts: trainings of each candidate.

    Raises:
      ConfigError: a try changes no setting, or one that divides the images or that `minutes` sets.
    """
    listed = [Candidate(validate(config))]
    asked = [_words(text) for text in tries] or [_other_view(config)]
    for given in asked:
        changes = [change.removeprefix("config.") for change in given]
        if not changes:
            raise ConfigError('--try is empty: expected settings, as --try "growth.resolution=128"')
        for changed in (change.partition("=")[0] for change in changes):
            section, _, name = changed.partition(".")
            if section == "data" and name not in _SHOWN:
                raise ConfigError(
                    f"--try changes data.{name}, and all candidates judge the same images: give "
                    f"--config.data.{name} for all of them"
                )
            if minutes and changed in _LENGTHS:
                raise ConfigError(
                    f"--try changes {changed}, and all candidates train for a share of --minutes: "
                    "give --minutes=0"
                )
        candidate = Candidate(config_lib.changed(config, changes, flag="--try"), changes)
        if any(candidate.config == other.config for other in listed):
            raise ConfigError(
                f"--try {candidate.name} changes nothing: another candidate has the same settings"
            )
        listed.append(candidate)
    if minutes:
        each = minutes / (len(listed) * parts)
        listed = [item._replace(config=_lasting(item.config, each)) for item in listed]
    return listed


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--try {' '.join(text.split())}: {error}") from error


def _other_view(config: Config) -> list[str]:
    """Whole where the settings as given work in tiles, and the other way round."""
    if config.data.tile_image_resolution:
        return ["data.tile_image_resolution=0"]
    if config.data.name != "image_folder":
        raise ConfigError(
            f"--try is missing: images of {config.data.name} are not compared in tiles, so name "
            'other settings, as --try "loss.gamma=0.5"'
        )
    resolution = image_resolution(config.data, config.growth.resolution)
    source = open_source(config.data, resolution=resolution)
    fit = survey.measured(config.data, source, resolution=resolution).config.fit
    if fit != "scale":
        return ["data.fit=scale"]
    return ["data.fit=stretch", "data.scale=0"] if config.data.scale else ["data.fit=stretch"]


def _lasting(config: Config, minutes: float) -> Config:
    growth = dataclasses.replace(config.growth, final_images=0)
    train = dataclasses.replace(config.train, minutes=minutes)
    return validate(dataclasses.replace(config, growth=growth, train=train))


def judge(listed: Sequence[Candidate], parts: int, folder: Path) -> list[Judged]:
    """Train and measure every candidate in every fold; what is kept in `folder` is not made again.

    Raises:
      DataError: see `folds`; or a candidate's settings leave out other images.
    """
    first = listed[0].config
    dataset = load_dataset(first.data, resolution=first.growth.resolution)
    divided = folds(dataset, make_split(dataset, first.data), parts)
    judged = []
    for number, split in enumerate(divided, 1):
        scores = []
        for place, candidate in enumerate(listed, 1):
            said = f"candidate {place} of {len(listed)} ({candidate.name}), fold {number}"
            print(f"{said} of {parts}", file=sys.stderr, flush=True)
            scores.append(_scores(candidate.config, split, dataset.path.name, folder))
        measured = yardsticks.measure(first.data, dataset, split, show=True)
        abnormal = [False] * len(split.validation_normal)
        abnormal += [True] * len(split.validation_known_abnormal)
        known = {name: found.validation_auroc for name, found in measured.items()}
        judged.append(Judged(scores, abnormal, known))
    return judged


def _scores(config: Config, split: Split, images: str, folder: Path) -> dict[str, list[float]]:
    """Of normal and then known abnormal images: the score that decides, and terms.

    A run's folder is named by its settings and images, so that others never take its place.

    Args:
      images: tells them from others of the same names.
    """
    if not config.train.compilation_cache_dir:
        # Trainings of a candidate are the same programs.
        train = dataclasses.replace(config.train, compilation_cache_dir=str(folder / "compiled"))
        config = dataclasses.replace(config, train=train)
    run = folder / "runs" / digest(identity(config), images, split.to_json()["parts"])
    kept = run / "judged.json"
    if not kept.exists():
        run.mkdir(parents=True, exist_ok=True)
        _, measured = experiment.measure(config, run, divide=lambda dataset: _of(dataset, split))
        write_text(kept, json.dumps(_columns(measured)) + "\n")
    found: dict[str, list[float]] = json.loads(kept.read_text())
    return found


def _of(dataset: Dataset, split: Split) -> Split:
    """The split, for another way to prepare the same images.

    Raises:
      DataError: they are not the same.
    """
    if dataset.ids != split.ids:
        others = sorted(set(dataset.ids) ^ set(split.ids))
        raise DataError(
            f"settings of --try leave out other images than those as given, as {others[0]}: remove "
            "such images first"
        )
    return split


def _columns(measured: Measured) -> dict[str, list[float]]:
    parts = ("validation_normal", "validation_known_abnormal")
    found = {ANOMALY: np.concatenate([measured.calibrated[part] for part in parts])}
    for name in measured.scored[parts[0]].terms:
        found[name] = np.concatenate([measured.scored[part].terms[name] for part in parts])
    return {name: values.tolist() for name, values in found.items()}


def _show(table: Sequence[Row], judged: Sequence[Judged], chosen: int) -> None:
    # Settings are to be copied: wrapped, and never cut off.
    first = Column("candidate", overflow="fold")
    shown = Table(first, ANOMALY, "by fold", "gain", "best term")
    for place, row in enumerate(table):
        gain = f"{row.gain:+.3f} ± {row.error:.3f}" if place else "–"
        term = max(row.terms, key=lambda name: row.terms[name])
        style = "bold" if place == chosen else None
        cells = (row.name, f"{row.mean:.3f}", _by_fold(row.auroc), gain)
        shown.add_row(*cells, f"{term} {row.terms[term]:.3f}", style=style)
    shown.add_section()
    for name, values in simple(judged).items():
        shown.add_row(f"(simple) {name}", f"{np.mean(values):.3f}", _by_fold(values))
    console = Console()
    console.print(shown)
    abnormal = sum(sum(fold.is_abnormal) for fold in judged)
    images = sum(len(fold.is_abnormal) for fold in judged)
    console.print(
        f"AUROC of {images - abnormal:,} normal and {abnormal:,} known abnormal images of the "
        "training part, each judged by a run that has not seen it; gain is that beyond the first "
        "candidate, ± one standard error by the images; another training can differ as much again",
        soft_wrap=True,
        highlight=False,
    )


def _by_fold(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _written(table: Sequence[Row], judged: Sequence[Judged], chosen: int) -> dict[str, Any]:
    return {
        "score": ANOMALY,
        "candidates": [row._asdict() | {"mean": row.mean} for row in table],
        "yardsticks": simple(judged),
        "chosen": table[chosen].name,
    }


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = user_path(_WORKDIR.value, "--workdir")
    parts, minutes = _FOLDS.value, _MINUTES.value
    listed = candidates(_CONFIG.value, _TRY.value, minutes, parts)
    told = f", {in_words(60.0 * minutes)} together" if minutes else ""
    print(
        f"{len(listed) * parts} trainings{told}; after each the images of its fold are searched",
        file=sys.stderr,
    )
    judged = judge(listed, parts, folder)
    table = rows([candidate.name for candidate in listed], judged)
    chosen = best(table)
    _show(table, judged, chosen)
    path = folder / "comparison.json"
    write_text(path, json.dumps(_written(table, judged, chosen), indent=1) + "\n")
    added = shlex.join(f"--config.{change}" for change in listed[chosen].changes)
    take = f"train with {added} besides" if chosen else "train with the settings as given"
    print(f"results: {path}\nnext: {take}")


if __name__ == "__main__":
    cli.run(main)
