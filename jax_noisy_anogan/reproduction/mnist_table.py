"""MNIST, each digit as normal: the paper's protocol, Noisy-AnoGAN beside AnoGAN (gamma = 1)."""

from __future__ import annotations

import math
from typing import Any

from jax_noisy_anogan.baselines import published
from jax_noisy_anogan.reproduction import deep_sad_sweeps, runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.reproduction.results import (
    Result,
    found_in,
    lines_figure,
    mean,
    mean_and_deviation,
    story,
)
from jax_noisy_anogan.reproduction.runs import SCORES, Run, auroc

QUOTED = ("AnoGAN", "Deep SVDD")


def cells(bench: Bench) -> list[Cell]:
    """One per digit, seed and method, and one of the supervised methods per digit and seed."""
    supervised, listed = _supervised(bench), []
    for (digit, seed, method), run in _runs(bench).items():
        listed.append(run.cell)
        if supervised and method == runs.NOISY:
            listed.append(supervised[digit, seed])
    return listed


def results(bench: Bench) -> list[Result]:
    """One row per digit and method, then the means over digits."""
    listed, digits, seeds = _runs(bench), _digits(bench), _seeds(bench)
    supervised = _supervised(bench)
    competitors = deep_sad_sweeps.COMPETITORS if supervised else ()
    rows: list[list[Any]] = []
    curves = {}
    for digit in digits:
        quoted = [_quoted(name, digit) for name in QUOTED]
        beside = [supervised[digit, seed] for seed in seeds] if supervised else []
        others = [mean_and_deviation(found_in(bench, beside, auroc(c))) for c in competitors]
        for method in _methods(bench):
            of_seeds = [listed[digit, seed, method].cell for seed in seeds]
            figures = [mean_and_deviation(found_in(bench, of_seeds, auroc(s))) for s in SCORES]
            rows.append([digit, method, *figures, *others, *quoted])
    for method in _methods(bench):
        means = {
            name: [
                mean(found_in(bench, [listed[d, s, method].cell for s in seeds], auroc(name)))
                for d in digits
            ]
            for name in SCORES
        }
        quoted_means = [mean([_quoted(name, digit) for digit in digits]) for name in QUOTED]
        of_scores = [mean(values) for values in means.values()]
        others_means = [mean(found_in(bench, supervised.values(), auroc(c))) for c in competitors]
        rows.append(["mean", method, *of_scores, *others_means, *quoted_means])
        curves[f"{method}: L'"] = (digits, means["score"])
        curves[f"{method}: calibrated"] = (digits, means["calibrated"])
    config = runs.mnist_config(bench)
    return [
        Result(
            "mnist",
            "MNIST: AUROC on held-out digits",
            ["normal", "method", *SCORES, *competitors, *(f"{name} (quoted)" for name in QUOTED)],
            rows,
            story(
                bench,
                cells(bench),
                f"{config.data.name}; 70 % of the digit is for training, 10 % of every other digit "
                "is known abnormal, 15 % of both validate; tested on at most "
                f"{config.data.max_test_images} images of the rest, half of them normal; seeds "
                f"{seeds}",
                runs.settings_line(config),
                "AnoGAN trains without the known abnormal images; its calibrated score is fitted "
                "with those of validation, as that of the others",
                *(
                    f"{name}: the same in both rows of a digit; it knows the same abnormal images, "
                    f"and trains on those of validation too; {settings}"
                    for name, settings in deep_sad_sweeps.competitor_settings(bench).items()
                    if supervised
                ),
                f"quoted: {published.RUFF_2018}, from memory of it and unverified; one digit "
                "trains, no abnormal image is known, all of MNIST's test part is tested",
            ),
            lines_figure(curves, x="normal digit", y="AUROC", title="MNIST, held-out digits"),
        )
    ]


def run(bench: Bench, digit: int, seed: int, method: str) -> Run:
    """One run of the table, which the figures use too."""
    config = runs.with_seed(runs.with_data(runs.mnist_config(bench), digit=digit), seed)
    name = f"mnist-{digit}-{list(runs.METHODS).index(method)}-{seed}"
    return runs.run(bench, name, runs.with_method(config, method))


def first_run(bench: Bench, digit: int) -> Run:
    """Noisy-AnoGAN of a digit: what Figures 1, 4 and 5 look at."""
    return run(bench, digit, _seeds(bench)[0], runs.NOISY)


def _runs(bench: Bench) -> dict[tuple[int, int, str], Run]:
    return {
        (digit, seed, method): run(bench, digit, seed, method)
        for seed in _seeds(bench)
        for digit in _digits(bench)
        for method in _methods(bench)
    }


def _supervised(bench: Bench) -> dict[tuple[int, int], Cell]:
    """Methods that the labels of this protocol suit, on the same split; none at the quick size."""
    if bench.sized(quick=True, night=False, full=False):
        return {}
    found = {}
    for seed in _seeds(bench):
        for digit in _digits(bench):
            data = run(bench, digit, seed, runs.NOISY).config.data
            name = f"mnist-{digit}-{seed}-competitors"
            found[digit, seed] = deep_sad_sweeps.competitors(bench, name, data, seed)
    return found


def _digits(bench: Bench) -> list[int]:
    return bench.option("digits", range(10))


def _seeds(bench: Bench) -> list[int]:
    return bench.option("seeds", bench.sized(quick=[0], night=[0, 1, 2], full=[0, 1, 2]))


def _methods(bench: Bench) -> list[str]:
    return [runs.ANOGAN, runs.NOISY, *bench.sized(quick=[], night=[], full=[runs.BALANCED])]


def _quoted(method: str, digit: int) -> float:
    return published.MNIST_ONE_CLASS[method].get(digit, math.nan)
