"""Deep SAD's two sweeps on MNIST: labelled ratio, and pollution of the unlabelled images.

Ruff et al. 2020: gamma_l is the known abnormal share of all training images, from one class;
gamma_p the abnormal share of the unlabelled ones, from all classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jax_noisy_anogan.baselines import SEMI_SUPERVISED, deep_sad, published, supervised_cnn
from jax_noisy_anogan.config import Config, DataConfig
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.reproduction import runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.reproduction.results import (
    Result,
    found_in,
    lines_figure,
    mean,
    mean_and_deviation,
    paired,
    story,
)
from jax_noisy_anogan.reproduction.runs import Run, auroc
from jax_noisy_anogan.settings import replaced

SHARES = (0.0, 0.01, 0.05, 0.1, 0.2)
RATIO_OF_POLLUTION = 0.05
COMPETITORS = tuple(SEMI_SUPERVISED)
_COLUMNS = (
    *COMPETITORS,
    "AnoGAN: L'",
    "AnoGAN: calibrated",
    "Noisy-AnoGAN: L'",
    "Noisy-AnoGAN: discriminator",
    "Noisy-AnoGAN: calibrated",
)
ADVANTAGE = "calibrated - Deep SAD"
_QUOTED = ("Deep SAD", "Supervised")
_QUICK = {
    "Deep SAD": deep_sad.QUICK,
    "Supervised CNN": dataclasses.replace(supervised_cnn.QUICK, epochs=10),
}
_NIGHT = _QUICK | {
    "Deep SAD": dataclasses.replace(deep_sad.QUICK, epochs=20, milestone=14, autoencoder_epochs=8)
}
_FULL = {"Deep SAD": deep_sad.Settings(), "Supervised CNN": supervised_cnn.Settings()}


class Point(NamedTuple):
    """One setting of a sweep."""

    ratio: float
    pollution: float


class Pair(NamedTuple):
    """Which digit is normal, of which one some anomalies are known, and the seed."""

    normal: int
    known: int
    seed: int


RATIOS = tuple(Point(ratio, 0.0) for ratio in SHARES)
POLLUTIONS = tuple(Point(RATIO_OF_POLLUTION, pollution) for pollution in SHARES)


def cells(bench: Bench) -> list[Cell]:
    """Runs and competitors of every pair and setting, each once."""
    listed = [
        dataclasses.replace(cell, late=point not in POLLUTIONS)
        for point in dict.fromkeys([*POLLUTIONS[::-1], *RATIOS])
        for pair in _pairs(bench)
        for cell, _ in _columns(bench, pair, point).values()
    ]
    return list({cell.name: cell for cell in reversed(listed)}.values())[::-1]


def results(bench: Bench) -> list[Result]:
    """A table for each of the two sweeps."""
    return [
        _table(
            bench,
            "deep-sad-ratio",
            "Deep SAD's sweep: known abnormal share, no pollution",
            RATIOS,
            [point.ratio for point in RATIOS],
            published.DEEP_SAD_LABELLED,
            "AnoGAN knows no labels: one training serves the whole sweep, and at 0 Noisy-AnoGAN is "
            "AnoGAN, as Deep SAD is Deep SVDD",
        ),
        _table(
            bench,
            "deep-sad-pollution",
            f"Deep SAD's sweep: pollution, known abnormal share {RATIO_OF_POLLUTION:g}",
            POLLUTIONS,
            [point.pollution for point in POLLUTIONS],
            published.DEEP_SAD_POLLUTION,
            "AnoGAN trains without the known abnormal images; its calibrated score is fitted with "
            "those of validation, except at pollution 0, which is the run of the other sweep and "
            "knows none",
        ),
    ]


def _table(
    bench: Bench,
    name: str,
    title: str,
    points: tuple[Point, ...],
    places: list[float],
    quoted: published.Table,
    note: str,
) -> Result:
    pairs = _pairs(bench)
    listed: list[Cell] = []
    rows: list[list[Any]] = []
    means: dict[str, list[float]] = {column: [] for column in _COLUMNS}
    for point, place in zip(points, places, strict=True):
        columns = [_columns(bench, pair, point) for pair in pairs]
        row: list[Any] = [place]
        for column in _COLUMNS:
            figures = [
                figure
                for entry in columns
                if column in entry
                for figure in found_in(bench, [entry[column][0]], auroc(entry[column][1]))
            ]
            listed += [entry[column][0] for entry in columns if column in entry]
            row.append(mean_and_deviation(figures))
            means[column].append(mean(figures))
        row.append(_advantage(bench, columns))
        for method in _QUOTED:
            row.append(published.find(quoted, method, place))
        rows.append(row)
    config = _config(bench, pairs[0], points[-1])
    listed = list({cell.name: cell for cell in listed}.values())
    return Result(
        name,
        title,
        [
            "pollution" if name.endswith("pollution") else "ratio",
            *_COLUMNS,
            ADVANTAGE,
            *(f"{method} (quoted)" for method in _QUOTED),
        ],
        rows,
        story(
            bench,
            listed,
            f"{config.data.name}; AUROC, mean and deviation over (normal, known, seed): "
            + ", ".join(f"({p.normal}, {p.known}, {p.seed})" for p in pairs),
            *(
                f"AnoGAN on polluted images: only of seeds {seeds}"
                for seeds in [_anogan_seeds(bench)]
                if name.endswith("pollution") and len(seeds) < len(_seeds(bench))
            ),
            f"tested on at most {config.data.max_test_images} held-out images, half of them normal;"
            " at most half of "
            f"{config.data.max_validation_images} validation images are normal, and not polluted: "
            "thresholds and the calibrated score rest on them. The competitors need no validation "
            "and train on those images too",
            runs.settings_line(config),
            *(f"{method}: {value}" for method, value in competitor_settings(bench).items()),
            note,
            f"`{ADVANTAGE}`: calibrated Noisy-AnoGAN minus Deep SAD on the same splits, mean with "
            "its 95 % interval (Student's t) and the two-sided p of Wilcoxon's signed-rank test, "
            "over pairs and seeds; seeds of one pair are no independent draws",
            f"quoted: {published.RUFF}, from memory of the paper and unverified; all of MNIST",
        ),
        lines_figure(
            {column: (places, values) for column, values in means.items()},
            x="pollution" if name.endswith("pollution") else "known abnormal share",
            y="mean AUROC",
            title=title,
        ),
    )


def _columns(bench: Bench, pair: Pair, point: Point) -> dict[str, tuple[Cell, str]]:
    """Which cell and which of its scores fills every column."""
    competitors = _competitors(bench, pair, point)
    # Without labels there is nothing to subtract: gamma must be 1.
    unlabelled = point._replace(ratio=0.0) if point.pollution == 0.0 else point
    plain = _run(bench, pair, unlabelled, runs.ANOGAN)
    noisy = plain if point.ratio == 0.0 else _run(bench, pair, point, runs.NOISY)
    columns = {
        **{method: (competitors, method) for method in COMPETITORS},
        "AnoGAN: L'": (plain.cell, "score"),
        "AnoGAN: calibrated": (plain.cell, "calibrated"),
        "Noisy-AnoGAN: L'": (noisy.cell, "score"),
        "Noisy-AnoGAN: discriminator": (noisy.cell, "discriminator"),
        "Noisy-AnoGAN: calibrated": (noisy.cell, "calibrated"),
    }
    if point.ratio == 0.0:
        del columns["Supervised CNN"]
    if point.pollution and pair.seed not in _anogan_seeds(bench):
        columns = {name: entry for name, entry in columns.items() if entry[0] is not plain.cell}
    return columns


def _advantage(bench: Bench, columns: list[dict[str, tuple[Cell, str]]]) -> str | None:
    """By how much calibrated Noisy-AnoGAN leads Deep SAD; None where fewer than two can tell."""
    differences = []
    for entry in columns:
        both = [entry["Noisy-AnoGAN: calibrated"], entry["Deep SAD"]]
        found = [v for cell, score in both for v in found_in(bench, [cell], auroc(score))]
        if len(found) == len(both):
            differences.append(found[0] - found[1])
    return paired(differences)


def _config(bench: Bench, pair: Pair, point: Point) -> Config:
    # So many networks are half as wide at night as those of the MNIST table, and test fewer images.
    narrow = {"network.fmap_base": 64, "data.max_test_images": 1_000}
    config = replaced(runs.mnist_config(bench), bench.sized(quick={}, night=narrow, full={}))
    return runs.with_seed(
        runs.with_data(
            config,
            digit=pair.normal,
            known_abnormal_fraction=0.0,
            known_abnormal_ratio=point.ratio,
            known_abnormal_classes=(str(pair.known),),
            contamination=point.pollution,
            max_validation_images=config.data.max_validation_images or 400,
        ),
        pair.seed,
    )


def _run(bench: Bench, pair: Pair, point: Point, method: str) -> Run:
    config = runs.with_method(_config(bench, pair, point), method)
    name = f"sad-{_text(pair, point)}-{list(runs.METHODS).index(method)}"
    return runs.run(bench, name, config)


def _competitors(bench: Bench, pair: Pair, point: Point) -> Cell:
    data = _config(bench, pair, point).data
    return competitors(bench, f"sad-{_text(pair, point)}-competitors", data, pair.seed)


def competitors(bench: Bench, name: str, data: DataConfig, seed: int) -> Cell:
    """The methods that learn from labels, on the split of `data`."""
    settings = competitor_settings(bench)

    def score(dataset: Dataset, split: Split) -> runs.Competed:
        unlabelled = runs.float_images(dataset, split.train_normal, split.validation_normal)
        known = runs.float_images(
            dataset, split.train_known_abnormal, split.validation_known_abnormal
        )
        test = runs.float_images(dataset, split.test)
        return runs.Competed(
            {
                method: SEMI_SUPERVISED[method](
                    unlabelled, known, test, seed=seed, settings=settings[method]
                )
                for method in COMPETITORS
                if method != "Supervised CNN" or len(known)
            },
            {},
        )

    return runs.baseline_cell(name, data, settings, score)


def competitor_settings(bench: Bench) -> dict[str, Any]:
    """Of each method at this size."""
    return bench.sized(quick=_QUICK, night=_NIGHT, full=_FULL)


def _pairs(bench: Bench) -> list[Pair]:
    digits = bench.option("digits", bench.sized(quick=[0, 8], night=range(0, 6), full=range(10)))
    return [Pair(digit, (digit + 1) % 10, seed) for seed in _seeds(bench) for digit in digits]


def _seeds(bench: Bench) -> list[int]:
    return bench.option("seeds", bench.sized(quick=[0], night=[0, 1, 2], full=[0]))


def _anogan_seeds(bench: Bench) -> list[int]:
    """Where AnoGAN trains on polluted images: in all seeds they would be a third of a night."""
    seeds = _seeds(bench)
    return bench.sized(quick=seeds, night=seeds[:1], full=seeds)


def _text(pair: Pair, point: Point) -> str:
    return f"{pair.normal}-{pair.known}-{pair.seed}-{point.ratio:g}-{point.pollution:g}"
