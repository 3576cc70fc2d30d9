"""Drawn surfaces with defects of less than 1 % of the pixels; needs no files.

python -m jax_noisy_anogan.describe --config configs/synthetic.py
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="synthetic",
        ),
        growth=GrowthConfig(resolution=256, minibatch={"256": 16}),
    )
    return variant(config, name)
