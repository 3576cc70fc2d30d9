"""Eq. 15 as printed against the objective of its derivation (Eq. 18), on validation images.

Which of them is the default is decided here, and no test image has a say. R1 is as strong beside
the real term in one as in the other.
"""

from __future__ import annotations

from typing import Any

from jax_noisy_anogan.reproduction import mnist_table, runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.reproduction.results import (
    Result,
    found_in,
    mean,
    mean_and_deviation,
    paired,
    story,
)
from jax_noisy_anogan.reproduction.runs import SCORES, validation_auroc

METHODS = (runs.NOISY, runs.BALANCED)


def cells(bench: Bench) -> list[Cell]:
    """One per digit, seed and objective; those of Eq. 15 are cells of the MNIST table."""
    return [
        _cell(bench, digit, seed, method)
        for digit in _digits(bench)
        for seed in _seeds(bench)
        for method in METHODS
    ]


def results(bench: Bench) -> list[Result]:
    """One row per digit and objective, then the means, and the difference of the objectives."""
    digits, seeds = _digits(bench), _seeds(bench)
    rows: list[list[Any]] = []
    for digit in digits:
        for method in METHODS:
            of_seeds = [_cell(bench, digit, seed, method) for seed in seeds]
            figures = (found_in(bench, of_seeds, validation_auroc(score)) for score in SCORES)
            rows.append([digit, method, *map(mean_and_deviation, figures)])
    for method in METHODS:
        of_all = [_cell(bench, d, s, method) for d in digits for s in seeds]
        means = [mean(found_in(bench, of_all, validation_auroc(score))) for score in SCORES]
        rows.append(["mean", method, *means])
    both = [[_cell(bench, d, s, m) for m in METHODS] for d in digits for s in seeds]
    rows.append(
        ["difference", "Eq. 18 minus Eq. 15", *(_difference(bench, both, s) for s in SCORES)]
    )
    config = runs.mnist_config(bench)
    return [
        Result(
            "objective",
            "Eq. 15 or 18: AUROC on validation digits",
            ["normal", "method", *SCORES],
            rows,
            story(
                bench,
                cells(bench),
                f"{config.data.name}, as in the MNIST table; validation images only; seeds {seeds}",
                runs.settings_line(config),
                "calibrated scores come from fits without the image",
                "difference: over digits and seeds, mean with its 95 % interval (Student's t) and "
                "the two-sided p of Wilcoxon's signed-rank test; seeds of one digit are no "
                "independent draws",
                "R1 is weighed by gamma: with Eq. 18, whose real term is not, its weight is "
                f"{runs.METHODS[runs.BALANCED]['penalty_weight']:g} instead of 1",
            ),
        )
    ]


def _cell(bench: Bench, digit: int, seed: int, method: str) -> Cell:
    return mnist_table.run(bench, digit, seed, method).cell


def _difference(bench: Bench, pairs: list[list[Cell]], score: str) -> str | None:
    found = [found_in(bench, pair, validation_auroc(score)) for pair in pairs]
    return paired([two[1] - two[0] for two in found if len(two) == len(METHODS)])


def _digits(bench: Bench) -> list[int]:
    return bench.option("digits", [0, 2, 5, 8])


def _seeds(bench: Bench) -> list[int]:
    return bench.option("seeds", [0, 1, 2])
