"""Magnetic tiles: real surface defects with masks, or any folder in that layout.

python -m jax_noisy_anogan.describe --config configs/magnetic_tile.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            name="image_folder",
            layout="magnetic_tile",
        ),
        growth=GrowthConfig(resolution=256, minibatch={"256": 16}),
    )
