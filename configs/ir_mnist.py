"""IR-MNIST: puzzles of 11 x 11 digits; the digit 3 is irregular.

50 puzzles with a 3 are known abnormal, as in the paper. Without the published files, puzzles are
drawn from MNIST: --config.data.generated_images=5000 --config.data.generated_abnormal_images=1050.

    python -m jax_noisy_anogan.describe --config configs/ir_mnist.py --config.data.root=FOLDER
"""

from jax_noisy_anogan.config import Config, DataConfig, GrowthConfig, variant


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="ir_mnist",
            train_fraction=0.9,
            known_abnormal_count=50,
        ),
        growth=GrowthConfig(resolution=256, minibatch={"256": 16}),
    )
    return variant(config, name)
