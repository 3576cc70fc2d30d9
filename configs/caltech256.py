"""Table 2: Caltech-256 in colour, N normal categories, outliers from clutter.

--config.data.caltech256.categories is N; --config.data.caltech256.repeat=0, 1, 2 are the three
random choices of categories. 50 images of all other categories are known abnormal. The paper names
no image size; 64 pixels are used here, with networks that a few hundred images can train. The
published folders hold some pictures twice, also in two categories: they are left out and listed
(--config.data.on_bad_image=raise stops at the first one instead). `:quick`, 16 x 16 pixels of the
first 60 images of each category, is the size of `reproduce table2 --quick`, and `:night`, 32 x 32
pixels, that of `--size night`.

Hardware: a CPU.
Time: about 5 minutes of training on two x86-64 cores, by the estimate of `train`.
Expect: not run at this size; docs/reproduction.md has the figures of `:quick`.

    python -m jax_noisy_anogan.train --config configs/caltech256.py --config.data.root=FOLDER \
      --workdir runs/caltech256
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    OptimConfig,
    SearchConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="caltech256",
            channels=3,
            on_bad_image="skip",
            known_abnormal_count=50,
        ),
        network=NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64),
        growth=GrowthConfig(
            resolution=64,
            stable_images=5_000,
            fade_images=5_000,
            final_images=35_000,
        ),
        optim=OptimConfig(ema_half_life_images=5_000.0),
        search=SearchConfig(steps=100),
    )
    config = variant(config, name)
    if name in ("quick", "night"):
        config.data.max_test_images = 0
    if name == "quick":
        config.data.caltech256.images_per_category = 60
        config.growth.final_images = 6_000
    return config
