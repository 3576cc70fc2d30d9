"""Table 2: Caltech-256, N normal categories against clutter, eight methods and two more."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_noisy_anogan.baselines import SUBSPACE, alocc, published
from jax_noisy_anogan.baselines.features import Rows, load_features, pixel_features
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.reproduction import runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import (
    Result,
    found_in,
    lines_figure,
    mean,
    mean_and_deviation,
    story,
)
from jax_noisy_anogan.reproduction.runs import Run, auroc, f1
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.settings import replaced

CATEGORIES = (1, 3, 5)
PROTOCOLS = {"transductive": False, "held out": True}
EXTRAS = ("Outlier Pursuit", "l1-thresholding", "ALOCC D(x)")
ON_FEATURES = "here, D's features"
COLUMNS = (
    "CoP",
    "REAPER",
    "LRR",
    "DPCP",
    "R-graph",
    "ALOCC",  # D(R(x)), as in the paper
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
            content = _content(bench, count, protocol)
            for metric, figure in (("F1", f1), ("AUROC", auroc)):
                for source, columns in (("here", _columns), (ON_FEATURES, _columns_on_features)):
                    entries = [columns(bench, count, protocol, r) for r in _repeats(bench)]
                    values = {c: _values(bench, entries, c, figure) for c in COLUMNS}
                    shown = [mean_and_deviation(found) for found in values.values()]
                    rows.append([count, protocol, metric, source, *shown, content])
                    if (source, metric, protocol) == ("here", "AUROC", "held out"):
                        for column, found in values.items():
                            places, heights = curves.setdefault(column, ([], []))
                            places.append(count)
                            heights.append(mean(found))
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
                "out: 70 % of them train, the others are tested; subspace methods are fitted to "
                "the tested images in both",
                f"the first {config.data.caltech256.images_per_category} images of each category; "
                "50 known abnormal images of all other categories and clutter, 15 % of them for "
                "validation, none tested; only Noisy-AnoGAN knows them",
                runs.settings_line(config),
                f"subspace methods on {bench.features or 'flattened pixels'}, and in the rows "
                f"`{ON_FEATURES}` on f(x) of Eq. 3 by the trained AnoGAN"
                + bench.sized(quick=f"; their settings: {_QUICK_SUBSPACE}", night="", full=""),
                f"ALOCC: D(R(x)); {_alocc(bench)}; {_alocc_updates(bench)}",
            ),
            lines_figure(curves, x="normal categories", y="AUROC", title="Caltech-256, held out"),
        )
    ]


def base_config(bench: Bench) -> Config:
    """Caltech-256 in colour, at one of its sizes."""
    return bench.config("caltech256")


def _cells(bench: Bench, count: int, protocol: str, repeat: int) -> list[Cell]:
    columns = [
        *_columns(bench, count, protocol, repeat).values(),
        *_columns_on_features(bench, count, protocol, repeat).values(),
    ]
    return list({cell.name: cell for cell, _ in columns}.values())


def _columns(bench: Bench, count: int, protocol: str, repeat: int) -> dict[str, tuple[Cell, str]]:
    """Which cell and which of its scores fills every column."""
    plain, noisy = (
        _run(bench, count, protocol, repeat, method) for method in (runs.ANOGAN, runs.NOISY)
    )
    competitors = _competitors(bench, count, protocol, repeat)
    return {column: (competitors, column) for column in COLUMNS} | {
        "AnoGAN": (plain.cell, "score"),
        "Noisy-AnoGAN": (noisy.cell, "score"),
        "Noisy-AnoGAN, calibrated": (noisy.cell, "calibrated"),
    }


def _columns_on_features(
    bench: Bench, count: int, protocol: str, repeat: int
) -> dict[str, tuple[Cell, str]]:
    """The same for the subspace methods on features of D."""
    cell = _on_features(bench, count, protocol, repeat)
    return {column: (cell, column) for column in SUBSPACE}


def _values(
    bench: Bench,
    entries: list[dict[str, tuple[Cell, str]]],
    column: str,
    figure: Callable[[str], Callable[[Values], float]],
) -> list[float]:
    """The figure of a column in all repeats; nothing where the column is not filled."""
    filled = [entry[column] for entry in entries if column in entry]
    return [v for cell, score in filled for v in found_in(bench, [cell], figure(score))]


def _run(bench: Bench, count: int, protocol: str, repeat: int, method: str) -> Run:
    config = replaced(
        base_config(bench),
        {
            "data.caltech256.categories": count,
            "data.caltech256.held_out": PROTOCOLS[protocol],
            "data.caltech256.repeat": repeat,
        },
    )
    name = f"caltech-{_text(count, protocol, repeat)}-{list(runs.METHODS).index(method)}"
    return runs.run(bench, name, runs.with_method(config, method))


def _competitors(bench: Bench, count: int, protocol: str, repeat: int) -> Cell:
    """ALOCC, and the subspace methods on pixels or on the features of a file."""
    settings = {**_subspace_settings(bench), "ALOCC": _alocc(bench), **_feature_file(bench)}

    def score(dataset: Dataset, split: Split) -> runs.Competed:
        scores = _subspace_scores(bench, _features(bench, dataset, split))
        train = runs.float_images(dataset, split.train_normal, split.validation_normal)
        test = runs.float_images(dataset, split.test)
        found = alocc.fit_score(train, test, seed=repeat, settings=_alocc(bench))
        scores |= {"ALOCC": found.refined, "ALOCC D(x)": found.direct}
        return runs.Competed(scores, {"alocc": [found.updates, found.stopped]})

    name = f"caltech-{_text(count, protocol, repeat)}-competitors"
    data = _run(bench, count, protocol, repeat, runs.ANOGAN).config.data
    return runs.baseline_cell(name, data, settings, score)


def _on_features(bench: Bench, count: int, protocol: str, repeat: int) -> Cell:
    """The subspace methods on f(x) of Eq. 3, by the D of plain AnoGAN on the same split."""
    plain = _run(bench, count, protocol, repeat, runs.ANOGAN)

    def score(dataset: Dataset, split: Split) -> runs.Competed:
        rows = runs.discriminator_features(plain, split.test)
        return runs.Competed(_subspace_scores(bench, rows), {})

    name = f"caltech-{_text(count, protocol, repeat)}-features"
    settings = {**_subspace_settings(bench), "run": plain.cell.settings}
    return runs.baseline_cell(name, plain.config.data, settings, score, (plain.cell,))


def _subspace_settings(bench: Bench) -> dict[str, dict[str, Any]]:
    settings = bench.sized(quick=_QUICK_SUBSPACE, night={}, full={})
    return {name: settings.get(name, {}) for name in SUBSPACE}


def _subspace_scores(bench: Bench, rows: Rows) -> dict[str, Any]:
    settings = _subspace_settings(bench)
    return {name: method(rows, **settings[name]) for name, method in SUBSPACE.items()}


def _feature_file(bench: Bench) -> dict[str, Any]:
    """What makes other cells of another feature file; nothing for pixels.

    Raises:
      DataError: there is no such file.
    """
    if not bench.features:
        return {}
    path = user_path(bench.features, "--features")
    if not path.is_file():
        raise DataError(f"--features {path}: no such feature file")
    return {"features": (path.name, zlib.crc32(path.read_bytes()))}


def _features(bench: Bench, dataset: Dataset, split: Split) -> Rows:
    """What the subspace methods see of the test images.

    Raises:
      DataError: the feature file names no images, or lacks some.
    """
    if not bench.features:
        return pixel_features(dataset.images(split.test, dataset.resolution))
    file = load_features(user_path(bench.features, "--features"))
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
        "F1": {"paper": published.TABLE_2, "elsewhere": published.CALTECH_F1},
        "AUROC": {"elsewhere": published.CALTECH_AUROC},
    }
    rows = []
    for source, table in tables[metric].items():
        figures = [published.find(table, column, count) for column in COLUMNS]
        data = (
            "random ones of 256 categories, up to 150 images each; linear methods on VGG-16 "
            "features of 4,096 dimensions, networks on images of unknown size"
        )
        if source == "elsewhere":
            data = f"the same; {published.SABOKROU}; l1-thresholding: {published.YOU}, unverified"
        rows.append([count, "transductive", metric, source, *figures, data])
    return rows


def _alocc(bench: Bench) -> alocc.Settings:
    return bench.sized(quick=alocc.QUICK, night=alocc.Settings(), full=alocc.Settings())


def _alocc_updates(bench: Bench) -> str:
    """How far its trainings went."""
    listed = [
        _competitors(bench, count, protocol, repeat)
        for protocol in PROTOCOLS
        for count in CATEGORIES
        for repeat in _repeats(bench)
    ]
    found = found_in(bench, listed, lambda values: values["alocc"])
    if not found:
        return "no training done yet"
    updates = [number for number, _ in found]
    return (
        f"{min(updates):,} to {max(updates):,} updates, ended by its own rule in "
        f"{sum(stopped for _, stopped in found)} of {len(found)} trainings"
    )


def _repeats(bench: Bench) -> list[int]:
    return bench.option("seeds", bench.sized(quick=[0, 1], night=[0, 1, 2], full=[0, 1, 2]))


def _text(count: int, protocol: str, repeat: int) -> str:
    return f"{count}-{'held' if PROTOCOLS[protocol] else 'trans'}-{repeat}"
