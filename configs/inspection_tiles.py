"""Inspection of 1024 x 1024 surfaces in tiles: synthetic ones, or one's own images.

Surfaces are brought to 256 x 256 and looked at in tiles of 32 x 32, so that a tile covers 128 x 128
pixels of the surface. For one's own images set --config.data.name=image_folder
--config.data.root=FOLDER.

Hardware: a CPU.
Time: 12 minutes on one x86-64 core, of which training takes 6.
Expect: AUROC of `anomaly` 0.985 to 1.000, pixel AUROC 0.99.

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
    SyntheticConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="synthetic",
            synthetic=SyntheticConfig(images=200, abnormal_images=120, side=1024),
            known_abnormal_fraction=0.25,
            tile_image_resolution=256,
            flip_horizontal=True,
            flip_vertical=True,
            max_test_images=100,
        ),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            stable_images=4_000,
            fade_images=4_000,
            final_images=24_000,
        ),
        optim=OptimConfig(ema_half_life_images=4_000.0),
        search=SearchConfig(
            steps=10, learning_rate=0.05, schedule="cosine", start="encoder", tiles=16
        ),
        score=ScoreConfig(map="attribution", tile_overlap=0.4, map_sigma=1.5),
        train=TrainConfig(encoder=True, checkpoint_every_images=10_000),
    )
    return variant(config, name)
