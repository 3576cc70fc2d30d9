"""Figure 4: MNIST with 0 normal and 1 abnormal; input above, generated below."""

from __future__ import annotations

import numpy as np

from jax_noisy_anogan import pictures
from jax_noisy_anogan.reproduction import mnist_table, runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, mean, story

KINDS = {"normal": 0, "abnormal": 1}
_SHOWN = 10


def cells(bench: Bench) -> list[Cell]:
    """Held-out images of both digits, behind the Noisy-AnoGAN of 0."""
    run = mnist_table.first_run(bench, KINDS["normal"])

    def compute() -> Values:
        trained = run.trained()
        values: Values = {}
        for kind, digit in KINDS.items():
            chosen = runs.unseen(trained.split, trained.dataset.labels == digit, _SHOWN)
            found = runs.look(trained, run.config, chosen)
            resolution = trained.dataset.resolution
            values[kind] = {
                "input": trained.dataset.images(chosen, resolution).tolist(),
                "generated": [result.reconstruction.tolist() for result in found],
                "scores": [result.terms["score"] for result in found],
            }
        return values

    return [Cell("figure4", {"run": run.cell.settings, "shown": _SHOWN}, compute, (run.cell,))]


def results(bench: Bench) -> list[Result]:
    """The picture, and the mean L' of both kinds."""
    listed = cells(bench)
    found = bench.kept(listed[0])
    strips, labels, rows = [], [], []
    for kind, digit in KINDS.items() if found else ():
        assert found is not None
        for row in ("input", "generated"):
            strips.append(np.array(found[kind][row], np.uint8))
            labels.append(f"{kind} ({digit}): {row}")
        rows.append([digit, kind, len(found[kind]["scores"]), mean(found[kind]["scores"])])
    return [
        Result(
            "figure4",
            "Figure 4: MNIST, 0 normal and 1 abnormal",
            ["digit", "kind", "images", "mean L'"],
            rows,
            story(
                bench,
                listed,
                "held-out images; the networks of Table `mnist`: 10 % of every other digit is "
                "known abnormal",
                runs.settings_line(runs.mnist_config(bench)),
            ),
            pictures.rows_of_images(strips, labels) if strips else None,
        )
    ]
