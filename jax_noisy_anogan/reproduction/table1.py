"""Table 1: the data sets, as printed and as they are here."""

from __future__ import annotations

import numpy as np

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.summary import PAPER_TABLE_1
from jax_noisy_anogan.reproduction import figure6, runs, table2
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values, identity
from jax_noisy_anogan.reproduction.results import Result, story


def cells(bench: Bench) -> list[Cell]:
    """One per data set."""
    configs = [runs.mnist_config(bench), figure6.puzzle_config(bench)]
    if table2.available(bench):
        configs.insert(1, table2.base_config(bench))
    return [_cell(config) for config in configs]


def results(bench: Bench) -> list[Result]:
    """The paper's row beside the copy that is used here."""
    listed = cells(bench)
    rows = []
    for cell in listed:
        found = bench.kept(cell)
        name, images, classes = PAPER_TABLE_1[cell.name.removeprefix("table1-")]
        here = (
            [None] * 4
            if found is None
            else [found[k] for k in ("name", "images", "classes", "left_out")]
        )
        rows.append([name, images, classes, *here])
    columns = [
        "data set",
        "images, paper",
        "classes, paper",
        "here",
        "images",
        "classes",
        "left out",
    ]
    note = (
        "IR-MNIST's classes are those of its digits in the paper, normal and abnormal puzzles here"
    )
    return [Result("table1", "Table 1: data sets", columns, rows, story(bench, listed, note))]


def _cell(config: Config) -> Cell:
    def compute() -> Values:
        dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
        return {
            "name": dataset.name,
            "images": len(dataset),
            "classes": len(np.unique(dataset.labels)),
            "left_out": len(dataset.left_out),
        }

    return Cell(f"table1-{config.data.name}", identity(config), compute)
