"""Magnetic tiles: real surface defects with masks. 10 % of every kind is known.

Light differs more between the surfaces than defects do: networks see local contrast instead of
brightness. Known defects, which are few, are also shown on other surfaces. Known defects and
generated images weigh the same (gamma 1/2): at 1/10 too little is left for the generated ones, and
G collapses.

Whole images of 32 x 32 tell best which tiles are defective. `configs/magnetic_tile.py:tiles`
looks at 128 x 128 in tiles of 32 x 32 instead, and shows better where. `:dense` judges every pixel
of 64 x 64, with simulated defects beside the known ones. Any folder in that layout will do;
`describe` prints the pixel scale for it.

Every magnetic tile of this data set was photographed about six times. A random split tests tiles
that training has seen in another photograph; `--config.data.keep_together=0.8` does not.

Hardware: a CPU.
Time: 30 minutes on one x86-64 core.
Expect: calibrated AUROC 0.918 and pixel AUROC 0.624 of tiles that training has seen in another
photograph (seed 0); 0.750 and 0.600 of those that it has not. `:dense` was not run to its end.

    python -m jax_noisy_anogan.train --config configs/magnetic_tile.py --config.data.root=FOLDER \
      --workdir runs/magnetic_tile
"""

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    ScoreConfig,
    SearchConfig,
    TrainConfig,
    variant,
)


def get_config(name: str = "") -> Config:
    config = Config(
        data=DataConfig(
            name="image_folder",
            layout="magnetic_tile",
            local_contrast=1 / 16,
            pixel_std=0.08,
            flip_horizontal=True,
            flip_vertical=True,
            paste_defects=0.5,
            max_validation_images=80,
            max_test_images=200,
        ),
        network=NetworkConfig(fmap_base=512, fmap_max=64, latent_size=64),
        growth=GrowthConfig(
            stable_images=5_000,
            fade_images=5_000,
            final_images=100_000,
        ),
        loss=LossConfig(
            gamma=0.5, objective="equation_18", penalty_weight=0.02, abnormal_statistic="real"
        ),
        optim=OptimConfig(learning_rate=0.003, decay_images=80_000, ema_half_life_images=4_000.0),
        search=SearchConfig(steps=100),
        score=ScoreConfig(map="attribution", map_sigma=1.5, average_flips=True),
        train=TrainConfig(checkpoint_every_images=10_000),
    )
    if name == "dense":
        return _dense(config)
    if name != "tiles":
        return variant(config, name)
    config.data.tile_image_resolution = 128
    config.network.fmap_base = 256
    config.growth.stable_images, config.growth.fade_images = 3_000, 2_000
    config.search.steps = 30
    config.score.tile_overlap, config.score.average_flips = 0.4, False
    return config


def _dense(config: Config) -> Config:
    """D judges every pixel of whole images of 64 x 64; half of the shown defects are simulated."""
    config.data.local_contrast = 1 / 4
    config.data.simulated_defects = 0.5
    config.network.fmap_base, config.network.dense = 256, True
    config.growth.resolution = 64
    config.score.map, config.score.map_sigma = "dense", 1.0
    return config
