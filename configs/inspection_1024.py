"""Whole images of 1024 x 1024 at full width in bfloat16, with the full progressive schedule.

The schedule is that of Karras et al. 2018 (600,000 images per phase). Synthetic surfaces unless
one's own images are named: --config.data.name=image_folder --config.data.root=FOLDER.

Hardware: a GPU. By the compiler's estimate on a CPU a training step takes 4 GiB of its memory, and
a search iteration of 4 images 7.2 GiB (`search.batch_size` is 8).
Time: more than a year on a CPU, as `train` says at its beginning; not measured on a GPU.
Expect: not run at this size.

    python -m jax_noisy_anogan.train --config configs/inspection_1024.py --workdir runs/whole
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    ScoreConfig,
    SearchConfig,
    SyntheticConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="synthetic",
            synthetic=SyntheticConfig(images=2_000, abnormal_images=400),
            flip_horizontal=True,
            flip_vertical=True,
        ),
        network=NetworkConfig(compute_dtype="bfloat16"),
        growth=GrowthConfig(
            resolution=1024,
            # Large cards may take larger parts.
            microbatch={"256": 4, "512": 2, "1024": 1},
        ),
        # A sum over a million pixels would leave the other terms of Eq. 24 without a say.
        search=SearchConfig(steps=200, reduction="mean"),
        score=ScoreConfig(map_sigma=3.0),
    )
    return variant(config, name)
