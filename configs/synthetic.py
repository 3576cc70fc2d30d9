"""Drawn surfaces with defects of less than 1 % of the pixels; needs no files.

python -m jax_noisy_anogan.describe --config configs/synthetic.py
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            name="synthetic",
        ),
        growth=GrowthConfig(resolution=256, minibatch={"256": 16}),
    )
