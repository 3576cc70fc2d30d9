"""Caltech-256 in colour: N normal categories (--config.data.categories), outliers from clutter.

50 known abnormal images from all other categories; --config.data.repeat=0, 1, 2 are the three
random choices of categories. The paper names no image size; 64 pixels are used here.

    python -m jax_noisy_anogan.describe --config configs/caltech256.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            name="caltech256",
            channels=3,
            known_abnormal_count=50,
        ),
        growth=GrowthConfig(resolution=64),
    )
