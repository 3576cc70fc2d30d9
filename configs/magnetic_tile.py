"""Magnetic tiles: real surface defects with masks, or any folder in that layout.

python -m jax_noisy_anogan.describe --config configs/magnetic_tile.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="image_folder",
            layout="magnetic_tile",
        ),
        growth=GrowthConfig(resolution=256, minibatch={"256": 16}),
    )
    return variant(config, name)
