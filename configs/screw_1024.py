"""Screws of 1024 x 1024 pixels in the MVTec AD layout.

python -m jax_noisy_anogan.describe --config configs/screw_1024.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="image_folder",
            layout="mvtec",
            known_abnormal_fraction=0.25,
        ),
        growth=GrowthConfig(resolution=1024, minibatch={"256": 16, "512": 8, "1024": 4}),
    )
    return variant(config, name)
