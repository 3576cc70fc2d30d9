"""All of MNIST as in the paper, with a network that a CPU can train.

`config.data.digit` is normal: 70 % of it trains, 10 % of every other digit is known abnormal. The
official training and test files are joined; they are downloaded where --config.data.root names no
folder that holds the four IDX files. `:smoke` shrinks everything to about a minute; `:quick` and
`:night` are the sizes of `reproduce`.

f of Eq. 3, which the paper leaves open, is the layer that D's logit is made of, in a unit that
makes L_D count beside L_R. Both were chosen on validation images of digit 8
(docs/reproduction.md); lambda, gamma and what else the paper states are as it states them. `:quick`
has the package's default.

Hardware: a CPU.
Time: 10 minutes on one x86-64 core.
Expect: digit 0, AUROC of L' 0.998, of `anomaly` 1.000 (seed 0).

    python -m jax_noisy_anogan.train --config configs/mnist.py --config.data.root=FOLDER \
      --workdir runs/mnist
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    OptimConfig,
    SearchConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(name="mnist", max_validation_images=400, max_test_images=1000),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            stable_images=5_000,
            fade_images=5_000,
            final_images=35_000,
        ),
        optim=OptimConfig(ema_half_life_images=5_000.0),
        search=SearchConfig(steps=100, feature_resolution=1, feature_scale=100.0),
        train=TrainConfig(checkpoint_every_images=20_000),
    )
    if name == "quick":  # its tables were made before f was chosen
        config.search.feature_resolution, config.search.feature_scale = 4, 1.0
    return variant(config, name)
