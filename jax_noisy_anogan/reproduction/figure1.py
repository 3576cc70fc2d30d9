"""Figure 1: noisy samples inside MNIST itself, found by score among the training images."""

from __future__ import annotations

import numpy as np

from jax_noisy_anogan import pictures
from jax_noisy_anogan.reproduction import mnist_table, runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, story

_SHOWN = 12


def cells(bench: Bench) -> list[Cell]:
    """One per digit, behind its Noisy-AnoGAN."""
    return [_cell(bench, digit) for digit in _digits(bench)]


def results(bench: Bench) -> list[Result]:
    """The images of highest L' of every digit, above some of usual L'."""
    listed = cells(bench)
    strips, labels, rows = [], [], []
    for digit, cell in zip(_digits(bench), listed, strict=True):
        found = bench.kept(cell)
        if found is None:
            continue
        for kind in ("highest", "usual"):
            strips.append(np.array(found[kind]["images"], np.uint8))
            labels.append(f"{digit}: {kind} L'")
            rows += [
                [digit, kind, name, score]
                for name, score in zip(found[kind]["ids"], found[kind]["scores"], strict=True)
            ]
    note = (
        "training images of the digit, searched by the Noisy-AnoGAN that was trained on them "
        f"({_count(bench) or 'all'} of each digit); usual: the middle of the order"
    )
    return [
        Result(
            "figure1",
            "Figure 1: noisy samples inside MNIST, by score",
            ["digit", "kind", "image", "L'"],
            rows,
            story(bench, listed, note, runs.settings_line(runs.mnist_config(bench))),
            pictures.rows_of_images(strips, labels) if strips else None,
        )
    ]


def _cell(bench: Bench, digit: int) -> Cell:
    run, count = mnist_table.first_run(bench, digit), _count(bench)

    def compute() -> Values:
        trained = run.trained()
        indices = trained.split.train_normal[: count or None]
        scores = np.array([r.terms["score"] for r in runs.look(trained, run.config, indices)])
        order = np.argsort(-scores, kind="stable")
        middle = max(0, len(order) // 2 - _SHOWN // 2)
        chosen = {"highest": order[:_SHOWN], "usual": order[middle : middle + _SHOWN]}
        resolution = trained.dataset.resolution
        return {
            kind: {
                "ids": [trained.dataset.ids[indices[k]] for k in places],
                "scores": scores[places].tolist(),
                "images": trained.dataset.images(indices[places], resolution).tolist(),
            }
            for kind, places in chosen.items()
        }

    settings = {"run": run.cell.settings, "count": count}
    return Cell(f"figure1-{digit}", settings, compute, (run.cell,))


def _digits(bench: Bench) -> list[int]:
    return bench.option("digits", bench.sized(quick=[0, 4, 8], night=range(10), full=range(10)))


def _count(bench: Bench) -> int:
    """How many images of each digit are searched; 0 for all."""
    return bench.sized(quick=200, night=1_000, full=0)
