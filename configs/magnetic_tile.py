"""Magnetic tiles: real surface defects with masks, inspected in tiles, trained on a CPU.

10 % of every kind of defect is known. Images are brought to 128 x 128 and looked at in tiles of
32 x 32. Any folder in that layout will do; `describe` prints the pixel scale for it.

Light differs more between the surfaces than defects do: networks see local contrast instead of
brightness. Known defects, which are few, are also shown on other surfaces. Known defects and drawn
images weigh the same (gamma 1/2): at 1/10 too little is left for the drawn ones, and G collapses.

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
            local_contrast=1 / 16,
            pixel_mean=0.5,
            pixel_std=0.08,
            tile_image_resolution=128,
            flip_horizontal=True,
            flip_vertical=True,
            paste_defects=0.5,
            max_validation_images=80,
            max_test_images=200,
        ),
        network=NetworkConfig(fmap_base=256, fmap_max=64, latent_size=64),
        growth=GrowthConfig(
            resolution=32,
            stable_images=3_000,
            fade_images=2_000,
            final_images=100_000,
            minibatch_default=16,
            minibatch={},
        ),
        loss=LossConfig(
            gamma=0.5, objective="equation_18", penalty_weight=0.02, abnormal_statistic="real"
        ),
        optim=OptimConfig(learning_rate=0.003, decay_images=80_000, ema_half_life_images=4_000.0),
        search=SearchConfig(steps=30, batch_size=64),
        score=ScoreConfig(map="evidence", tile_overlap=0.4, map_sigma=1.5),
        train=TrainConfig(checkpoint_every_images=10_000),
    )
    return variant(config, name)
