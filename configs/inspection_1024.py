"""Whole images of 1024 x 1024 at full width in bfloat16, with the full progressive schedule.

For accelerators: the schedule of Karras et al. 2018 (600,000 images per phase). Drawn surfaces
unless one's own images are named: --config.data.name=image_folder --config.data.root=FOLDER.

    python -m jax_noisy_anogan.train --config configs/inspection_1024.py --workdir runs/whole
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    ScoreConfig,
    SearchConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="synthetic",
            synthetic_images=2_000,
            synthetic_abnormal_images=400,
            flip_horizontal=True,
            flip_vertical=True,
        ),
        network=NetworkConfig(compute_dtype="bfloat16"),
        growth=GrowthConfig(
            resolution=1024,
            minibatch_default=16,
            minibatch={"512": 8, "1024": 4},
            # 4 GiB at 1024, by the compiler's estimate on a CPU; large cards may take larger parts.
            microbatch={"256": 4, "512": 2, "1024": 1},
        ),
        # A sum over a million pixels would leave the other terms of Eq. 24 without a say.
        search=SearchConfig(steps=200, reduction="mean", batch_size=8),
        score=ScoreConfig(map_sigma=3.0),
    )
    return variant(config, name)
