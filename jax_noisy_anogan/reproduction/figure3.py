"""Figure 3: how the known anomalies deform the distribution, on 2-D data."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from jax_noisy_anogan import toy2d
from jax_noisy_anogan.config import OptimConfig
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values
from jax_noisy_anogan.reproduction.results import Result, story
from jax_noisy_anogan.toy2d import ToyConfig


def cells(bench: Bench) -> list[Cell]:
    """All trainings together: they share their steps."""
    config = _config(bench)

    def compute() -> Values:
        rows = toy2d.run(config, bench.out / "runs" / "figure3")
        return {"rows": [row._asdict() for row in rows]}

    return [Cell("figure3", dataclasses.asdict(config), compute)]


def results(bench: Bench) -> list[Result]:
    """Generated mass on the abnormal mode, by objective and gamma."""
    listed = cells(bench)
    found = bench.kept(listed[0])
    rows = [] if found is None else found["rows"]
    picture = bench.out / "runs" / "figure3" / "figure3.png"
    config = _config(bench)
    return [
        Result(
            "figure3",
            "Figure 3: the distribution deformed, on a ring of Gaussians",
            ["objective", "gamma", "abnormal mass", "deviation", "optimum", "normal modes drawn"],
            [
                [
                    row["objective"],
                    f"{row['gamma']:g}",
                    *(float(row[name]) for name in ("abnormal", "abnormal_std", "optimum")),
                    f"{row['covered']} of {config.modes - 1}",
                ]
                for row in rows
            ],
            story(
                bench,
                listed,
                f"{config.contamination:.0%} of the training data are on the abnormal mode; "
                f"{config.seeds} seeds from {config.seed}; {config.steps:,} steps",
            ),
            np.asarray(Image.open(picture).convert("RGB")) if found and picture.exists() else None,
        )
    ]


def _config(bench: Bench) -> ToyConfig:
    if not bench.quick:
        return ToyConfig()
    return ToyConfig(
        seeds=1,
        steps=1000,
        batch_size=128,
        samples=4000,
        optim=OptimConfig(learning_rate=0.005, ema_half_life_images=10_000.0),
    )
