"""All of MNIST as in the paper, from the four IDX files (`config.data.root`), with a narrow network.

`config.data.digit` is normal: 70 % of it trains, 10 % of every other digit is known abnormal. The
official training and test files are joined. `:smoke` shrinks everything to about a minute.

    python -m jax_noisy_anogan.train --config configs/mnist.py --config.data.root=FOLDER \
      --workdir runs/mnist
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    SearchConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(name="mnist", max_test_images=2000),
        network=NetworkConfig(fmap_base=256, fmap_max=64, latent_size=64),
        growth=GrowthConfig(
            resolution=32,
            stable_images=10_000,
            fade_images=10_000,
            final_images=50_000,
            minibatch_default=16,
            minibatch={},
        ),
        search=SearchConfig(steps=150, batch_size=100),
        train=TrainConfig(checkpoint_every_images=20_000),
    )
    return variant(config, name)
