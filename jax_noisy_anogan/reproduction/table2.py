"""Table 2: Caltech-256, N normal categories against clutter, eight methods and two more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jax_noisy_anogan.baselines import SUBSPACE, alocc, published
from jax_noisy_anogan.baselines.features import Rows, load_features, pixel_features
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import DataError, Dataset, Split
from jax_noisy_anogan.reproduction import runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.reproduction.results import (
    Result,
    found_in,
    lines_figure,
    mean,
    mean_and_deviation,
    story,
)
from jax_noisy_anogan.reproduction.runs import Run, auroc, f1
from jax_noisy_anogan.settings import ConfigError

CATEGORIES = (1, 3, 5)
PROTOCOLS = {"transductive": False, "held out": True}
EXTRAS = ("Outlier Pursuit", "l1-thresholding")
COLUMNS = (
    "CoP",
    "REAPER",
    "LRR",
    "DPCP",
    "R-graph",
    "ALOCC",
    "AnoGAN",
    "Noisy-AnoGAN",
    *EXTRAS,
    "Noisy-AnoGAN, calibrated",
)
# The solvers' time grows with the cube of the rank.
_QUICK_SUBSPACE = {
    "LRR": {"components": 60, "max_steps": 300},
    "R-graph": {"components": 100, "max_steps": 500},
    "Outlier Pursuit": {"components": 60, "max_steps": 300},
    "l1-thresholding": {"max_steps": 500},
}
_QUICK_ALOCC = dataclasses.replace(alocc.QUICK, epochs=15)


def available(bench: Bench) -> bool:
    """Whether the data are given: nothing can stand in for Caltech-256."""
    return "caltech256" in bench.roots


def cells(bench: Bench) -> list[Cell]:
    """Two runs and one cell of competitors for every N, protocol and repeat.

    Raises:
      ConfigError: the data's folder is not given.
    """
    if not available(bench):
        raise ConfigError("--caltech256_root must name the folder that holds 256_ObjectCategories")
    first = _repeats(bench)[0]
    return [
        dataclasses.replace(cell, late=repeat != first)
        for repeat in _repeats(bench)
        for protocol in PROTOCOLS
        for count in CATEGORIES
        for cell in _cells(bench, count, protocol, repeat)
    ]


def results(bench: Bench) -> list[Result]:
    """For each N and protocol F1 and AUROC, with what is printed elsewhere below."""
    rows: list[list[Any]] = []
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for protocol in PROTOCOLS:
        for count in CATEGORIES:
            for metric, figure in (("F1", f1), ("AUROC", auroc)):
                entries = [_columns(bench, count, protocol, r) for r in _repeats(bench)]
                of_columns = {
                    column: [
                        value
                        for entry in entries
                        for value in found_in(bench, [entry[column][0]], figure(entry[column][1]))
                    ]
                    for column in COLUMNS
                }
                shown = [mean_and_deviation(values) for values in of_columns.values()]
                rows.append(
                    [count, protocol, metric, "here", *shown, _content(bench, count, protocol)]
                )
                if metric == "AUROC" and protocol == "held out":
                    for column, values in of_columns.items():
                        places, heights = curves.setdefault(column, ([], []))
                        places.append(count)
                        heights.append(mean(values))
                if protocol == "transductive":
                    rows += _printed(count, metric)
    config = base_config(bench)
    return [
        Result(
            "table2",
            "Table 2: Caltech-256, outliers from clutter",
            ["N", "protocol", "metric", "from", *COLUMNS, "data"],
            rows,
            story(
                bench,
                cells(bench),
                f"{len(_repeats(bench))} repeats (other categories, known images and outliers); "
                "mean and deviation; F1 is the best over thresholds, which at half outliers is "
                "never below 0.667; AnoGAN and Noisy-AnoGAN by L' (Eq. 24)",
                "transductive: the tested normal images are those trained on, as published; held "
                "out: 70 % of them train, the others are tested",
                f"the first {config.data.images_per_category} images of each category; 50 known "
                "abnormal images of all other categories and clutter, 15 % of them for validation, "
                "none tested; only Noisy-AnoGAN knows them",
                runs.settings_line(config),
                f"subspace methods on {bench.features or 'flattened pixels'}"
                + (f", with {_QUICK_SUBSPACE}" if bench.quick else "")
                + f"; {_alocc(bench)}",
            ),
            lines_figure(curves, x="normal categories", y="AUROC", title="Caltech-256, held out"),
        )
    ]


def base_config(bench: Bench) -> Config:
    """Caltech-256 in colour, with networks that its few hundred images can train."""
    config = bench.config("caltech256")
    if bench.quick:
        config = runs.with_data(runs.shrunk(config), images_per_category=60, max_test_images=0)
        return dataclasses.replace(
            config, growth=dataclasses.replace(config.growth, final_images=6_000)
        )
    mnist = bench.config("mnist")
    return dataclasses.replace(
        config,
        network=mnist.network,
        growth=dataclasses.replace(mnist.growth, resolution=config.growth.resolution),
        optim=mnist.optim,
        search=mnist.search,
    )


def _cells(bench: Bench, count: int, protocol: str, repeat: int) -> list[Cell]:
    columns = _columns(bench, count, protocol, repeat)
    return list({cell.name: cell for cell, _ in columns.values()}.values())


def _columns(bench: Bench, count: int, protocol: str, repeat: int) -> dict[str, tuple[Cell, str]]:
    """Which cell and which of its scores fills every column."""
    plain, noisy = (
        _run(bench, count, protocol, repeat, method) for method in (runs.ANOGAN, runs.NOISY)
    )
    competitors = _competitors(bench, count, protocol, repeat, plain)
    return {column: (competitors, column) for column in COLUMNS} | {
        "AnoGAN": (plain.cell, "score"),
        "Noisy-AnoGAN": (noisy.cell, "score"),
        "Noisy-AnoGAN, calibrated": (noisy.cell, "calibrated"),
    }


def _run(bench: Bench, count: int, protocol: str, repeat: int, method: str) -> Run:
    config = runs.with_data(
        base_config(bench), categories=count, held_out=PROTOCOLS[protocol], repeat=repeat
    )
    name = f"caltech-{_text(count, protocol, repeat)}-{list(runs.METHODS).index(method)}"
    return runs.run(bench, name, runs.with_method(config, method))


def _competitors(bench: Bench, count: int, protocol: str, repeat: int, plain: Run) -> Cell:
    settings: dict[str, Any] = {
        **{name: _QUICK_SUBSPACE.get(name, {}) if bench.quick else {} for name in SUBSPACE},
        "ALOCC": _alocc(bench),
        "features": bench.features,
    }

    def score(dataset: Dataset, split: Split) -> dict[str, Any]:
        rows = _features(bench, dataset, split, plain)
        found: dict[str, Any] = {
            name: method(rows, **settings[name]) for name, method in SUBSPACE.items()
        }
        train = runs.float_images(dataset, split.train_normal, split.validation_normal)
        test = runs.float_images(dataset, split.test)
        found["ALOCC"] = alocc.fit_score(
            train, test, seed=repeat, settings=settings["ALOCC"]
        ).refined
        return found

    return runs.baseline_cell(
        f"caltech-{_text(count, protocol, repeat)}-competitors",
        plain.config.data,
        settings,
        score,
        (plain.cell,) if bench.features == "discriminator" else (),
    )


def _features(bench: Bench, dataset: Dataset, split: Split, plain: Run) -> Rows:
    """What the subspace methods see of the test images.

    Raises:
      DataError: the feature file names no images, or lacks some.
    """
    if not bench.features:
        return pixel_features(dataset.images(split.test, dataset.resolution))
    if bench.features == "discriminator":
        return runs.discriminator_features(plain, split.test)
    file = load_features(Path(bench.features).expanduser())
    row_of = {name: row for row, name in enumerate(file.ids or ())}
    wanted = [dataset.ids[index] for index in split.test]
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise DataError(
            f"{bench.features}: its `ids` lack {missing[0]} and {len(missing) - 1} other tested "
            "images; ids are paths below 256_ObjectCategories"
        )
    return file.features[np.array([row_of[name] for name in wanted])]


def _content(bench: Bench, count: int, protocol: str) -> str:
    """The data of the first repeat, in words."""
    first = _run(bench, count, protocol, _repeats(bench)[0], runs.ANOGAN)
    found = bench.kept(first.cell)
    if found is None:
        return ""
    sizes = found["counts"]
    return (
        f"incomplete copy, {sizes['test'] - sizes['test_abnormal']} normal and "
        f"{sizes['test_abnormal']} clutter images tested; "
        + found["protocol"].split(": ", 1)[1].split(";")[0]
    )


def _printed(count: int, metric: str) -> list[list[Any]]:
    tables = {
        "F1": {
            "paper": published.TABLE_2,
            "elsewhere": (*published.CALTECH_F1, *published.L1_THRESHOLDING),
        },
        "AUROC": {"elsewhere": (*published.CALTECH_AUROC, *published.L1_THRESHOLDING)},
    }
    rows = []
    for source, table in tables[metric].items():
        kept = tuple(row for row in table if row.metric == metric.lower())
        found = [published.find(kept, column, count) for column in COLUMNS]
        figures = [None if row is None else row.value for row in found]
        data = (
            "random ones of 256 categories, up to 150 images each; linear methods on VGG-16 "
            "features of 4,096 dimensions, networks on images of unknown size"
        )
        if source == "elsewhere":
            data = f"the same; {published.SABOKROU}; l1-thresholding: {published.YOU}, unverified"
        rows.append([count, "transductive", metric, source, *figures, data])
    return rows


def _alocc(bench: Bench) -> alocc.Settings:
    return _QUICK_ALOCC if bench.quick else alocc.Settings()


def _repeats(bench: Bench) -> list[int]:
    return bench.option("seeds", full=[0, 1, 2], quick=[0, 1])


def _text(count: int, protocol: str, repeat: int) -> str:
    return f"{count}-{'held' if PROTOCOLS[protocol] else 'trans'}-{repeat}"
