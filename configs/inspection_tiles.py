"""Inspection of 1024 x 1024 surfaces in tiles, trained on a CPU; drawn ones, or one's own images.

Surfaces are brought to 256 x 256 and looked at in tiles of 32 x 32, so that a tile covers 128 x 128
pixels of the surface. For one's own images set --config.data.name=image_folder
--config.data.root=FOLDER.

    python -m jax_noisy_anogan.train --config configs/inspection_tiles.py --workdir runs/tiles
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
            name="synthetic",
            synthetic_side=1024,
            synthetic_images=200,
            synthetic_abnormal_images=120,
            known_abnormal_fraction=0.25,
            tile_image_resolution=256,
            flip_horizontal=True,
            flip_vertical=True,
            max_test_images=100,
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
        score=ScoreConfig(map="evidence", tile_overlap=0.4, map_sigma=1.5),
        train=TrainConfig(checkpoint_every_images=10_000),
    )
    return variant(config, name)
