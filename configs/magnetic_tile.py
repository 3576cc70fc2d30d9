"""Magnetic tiles: real surface defects with masks. 10 % of every kind is known.

Every tile of this data set was photographed about six times. Photographs of one tile lie on one
side of the split (`data.keep_together`): a random split would test tiles that training has seen.

The settings are those of `folder`, as it chooses them for these images: whole tiles of 64 x 64 in
local contrast, because light differs more between the surfaces than defects do. Training is short
and its rates fall, since longer training was no better. `:dense` judges every pixel, with simulated
defects beside the known ones. Any folder in that layout will do; `describe` prints the pixel scale
for it.

Hardware: a CPU.
Time: 10 minutes on one x86-64 core.
Expect: AUROC 0.79 to 0.84 of tiles that training has not seen, pixel 0.73 (docs/surfaces.md).

    python -m jax_noisy_anogan.train --config configs/magnetic_tile.py --config.data.root=FOLDER \
      --workdir runs/magnetic_tile
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    ScoreConfig,
    SearchConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="image_folder",
            layout="magnetic_tile",
            keep_together=0.8,
            local_contrast=1 / 16,
            pixel_std=0.073,
            flip_horizontal=True,
            flip_vertical=True,
            paste_defects=0.5,
        ),
        network=NetworkConfig(fmap_base=256, fmap_max=64, latent_size=64),
        growth=GrowthConfig(resolution=64, stable_images=500, fade_images=500, final_images=10_000),
        loss=LossConfig(
            gamma=0.5, objective="equation_18", penalty_weight=0.02, abnormal_statistic="real"
        ),
        optim=OptimConfig(learning_rate=0.003, decay_images=8_000, ema_half_life_images=4_000.0),
        search=SearchConfig(steps=10, learning_rate=0.05, schedule="cosine", start="encoder"),
        score=ScoreConfig(memory=True, map="memory", map_sigma=1.5, threshold_rule="quantile"),
        train=TrainConfig(encoder=True, checkpoint_every_images=10_000),
    )
    if name == "dense":
        config.data.simulated_defects = 0.5
        config.network.dense = True
        config.score.map, config.score.map_sigma = "dense", 1.0
        return config
    return variant(config, name)
