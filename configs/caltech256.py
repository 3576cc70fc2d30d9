"""Caltech-256 in colour: N normal categories, outliers from clutter.

--config.data.categories is N; --config.data.repeat=0, 1, 2 are the three random choices of
categories. 50 images of all other categories are known abnormal. The paper names no image size;
64 pixels are used here. The published folders hold some pictures twice, also in two categories:
they are left out and listed (--config.data.on_bad_image=raise stops at the first one instead).

    python -m jax_noisy_anogan.describe --config configs/caltech256.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="caltech256",
            channels=3,
            on_bad_image="skip",
            known_abnormal_count=50,
        ),
        growth=GrowthConfig(resolution=64),
    )
    return variant(config, name)
