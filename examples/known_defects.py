"""What known defects are worth: one set of synthetic surfaces, trained without and with them.

    python examples/known_defects.py --workdir runs/known_defects

Prints the held-out AUROC of both runs. At this size (a minute each on two cores) the figures are no
result: they show how to change one thing and keep all others.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    SearchConfig,
    SyntheticConfig,
    validate,
)


def surfaces(images: int, cache_dir: str) -> Config:
    """Networks of 8 x 8 pixels that see this many training images."""
    return Config(
        data=DataConfig(
            name="synthetic",
            cache_dir=cache_dir,
            known_abnormal_fraction=0.25,
            synthetic=SyntheticConfig(images=100, abnormal_images=40),
        ),
        network=NetworkConfig(fmap_base=64, fmap_max=16, latent_size=16),
        growth=GrowthConfig(
            start_resolution=8, resolution=8, final_images=images, minibatch_default=32
        ),
        search=SearchConfig(steps=10, batch_size=32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder of both runs")
    parser.add_argument("--images", type=int, default=2_000, help="training images per run")
    arguments = parser.parse_args()
    base = surfaces(arguments.images, str(arguments.workdir / "cache"))
    for gamma in (1.0, 0.5):
        config = dataclasses.replace(base, loss=LossConfig(gamma=gamma))
        results = experiment.run(validate(config), arguments.workdir / f"gamma-{gamma}")
        print(f"gamma = {gamma}: AUROC of L' {results['score']['auroc']:.3f}")


if __name__ == "__main__":
    main()
