"""Magnetic tiles: real surface defects with masks, inspected in tiles, trained on a CPU.

10 % of every kind of defect is known. Images are brought to 256 x 256 and looked at in tiles of
32 x 32. Any folder in that layout will do.

    python -m jax_noisy_anogan.train --config configs/magnetic_tile.py --config.data.root=FOLDER \
      --workdir runs/magnetic_tile
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
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
            tile_image_resolution=256,
            flip_horizontal=True,
            flip_vertical=True,
            max_validation_images=80,
            max_test_images=200,
        ),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            resolution=32,
            stable_images=4_000,
            fade_images=4_000,
            final_images=24_000,
            minibatch_default=16,
            minibatch={},
        ),
        optim=OptimConfig(ema_half_life_images=4_000.0),
        search=SearchConfig(steps=30, batch_size=64),
        score=ScoreConfig(tile_overlap=0.125, map_sigma=1.5),
        train=TrainConfig(checkpoint_every_images=10_000),
    )
    return variant(config, name)
