"""Figure 5: distribution of the pixel difference, label 0 against label 6, 100 images of each."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from jax_noisy_anogan import pictures
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.reproduction import mnist_table, runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, story

DIGITS = (0, 6)
_IMAGES = 100
_DECIMALS = 4


def cells(bench: Bench) -> list[Cell]:
    """Held-out images of both digits, behind the Noisy-AnoGAN of 0."""
    run = mnist_table.first_run(bench, DIGITS[0])

    def compute() -> Values:
        trained = run.trained()
        values: Values = {}
        for digit in DIGITS:
            chosen = runs.unseen(trained.split, trained.dataset.labels == digit, _IMAGES)
            maps = [r.difference for r in runs.look(trained, run.config, chosen)]
            values[str(digit)] = np.round(np.array(maps, np.float64), _DECIMALS).tolist()
        return values

    return [Cell("figure5", {"run": run.cell.settings, "images": _IMAGES}, compute, (run.cell,))]


def results(bench: Bench) -> list[Result]:
    """Mean pixel difference of both digits, and how well its sum tells them apart."""
    listed = cells(bench)
    found = bench.kept(listed[0])
    rows: list[list] = []
    picture: Figure | None = None
    if found is not None:
        maps = [np.array(found[str(digit)]) for digit in DIGITS]
        sums = np.concatenate([part.sum(axis=(1, 2)) for part in maps])
        is_abnormal = np.repeat([False, True], [len(part) for part in maps])
        auroc = image_metrics(sums, is_abnormal, threshold=0.0).auroc
        rows = [
            [digit, len(part), float(part.mean()), float(np.quantile(part, 0.99)), figure]
            for digit, part, figure in zip(DIGITS, maps, (None, auroc), strict=True)
        ]
        picture = pictures.difference_histogram_figure(*maps)
    return [
        Result(
            "figure5",
            "Figure 5: pixel difference of 0 (normal) and 6 (abnormal)",
            ["digit", "images", "mean difference", "99 % quantile", "AUROC of the image sums"],
            rows,
            story(
                bench,
                listed,
                "held-out images; the networks of Table `mnist`",
                runs.settings_line(runs.mnist_config(bench)),
            ),
            picture,
        )
    ]
