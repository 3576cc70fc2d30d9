"""Your own photographs: put good ones into PHOTOS/normal and known defects into PHOTOS/abnormal.

    jax-noisy-anogan describe --config folder --config.data.root=PHOTOS
    jax-noisy-anogan train --config folder --config.data.root=PHOTOS --workdir RUN
    jax-noisy-anogan score --workdir RUN --images NEW_PHOTOS --out SCORED

Other arrangements of folders are recognised too (docs/inspection.md). Training looks at the images
and chooses grey or colour, the depth of 16-bit files, whole images or tiles, the pixel scale,
gamma = 1 where no defect is known, and a schedule for `train.minutes`. It prints each choice. A
setting on the command line comes first.

Photographs that show the same part fall to one side of the split. Networks see whole images of
64 x 64 pixels, in local contrast where light differs much between the photographs. Photographs far
from square (half as long again as wide, or more) keep their shape instead: they are worked on in
tiles of 64 x 64, two along their shorter side, of which the search looks at four. Maps show how far
patches are from those of good parts: on validation masks of commutators and magnetic tiles they
were better than the difference to G(z). The threshold is to flag 5 % of good parts
(`score.false_positive_rate`), since a handful of known defects says little about the best one.

Hardware: a laptop CPU.
Time: 10 minutes of training, or what `--config.train.minutes` says; then the search. More is not
always better (docs/surfaces.md).
Expect: it depends on the images; the report compares the run with simple yardsticks.
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
            known_abnormal_fraction=0.5,
            keep_together=0.8,
            fit="auto",
            local_contrast=None,
            paste_defects=0.5,
            pixel_std=0.0,
        ),
        network=NetworkConfig(fmap_base=256, fmap_max=64, latent_size=64),
        growth=GrowthConfig(resolution=64, final_images=0),
        loss=LossConfig(
            gamma=0.5, objective="equation_18", penalty_weight=0.02, abnormal_statistic="real"
        ),
        optim=OptimConfig(learning_rate=0.003, ema_half_life_images=4_000.0),
        search=SearchConfig(
            steps=10, learning_rate=0.05, schedule="cosine", start="encoder", tiles=4
        ),
        score=ScoreConfig(memory=True, map="memory", map_sigma=1.5, threshold_rule="quantile"),
        train=TrainConfig(minutes=10.0, encoder=True, checkpoint_every_images=10_000),
    )
    return variant(config, name)
