"""Synthetic surfaces with defects of less than 1 % of the pixels, whole; needs no files.

Full width, with the schedule of Karras et al. 2018. `configs/inspection_tiles.py` is for a CPU.

Hardware: a GPU.
Time: months on a CPU, as `train` says at its beginning; not measured on a GPU.
Expect: not run at this size.

    python -m jax_noisy_anogan.train --config configs/synthetic.py --workdir runs/synthetic
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="synthetic",
        ),
        growth=GrowthConfig(resolution=256),
    )
    return variant(config, name)
