"""Screws of 1024 x 1024 pixels in the MVTec AD layout, brought to 128 x 128.

A quarter of the defects of the test part is known. Networks see local contrast: in some selections
of these images brightness alone tells flawless from defective ones. A memory of patches shows where
screws differ from flawless ones. `--config configs/screw_1024.py:whole` grows a full-width network
to the whole 1024 x 1024 instead.

Hardware: a CPU; `:whole` a GPU (more than a year on a CPU, as `train` says at its beginning).
Time: 15 minutes on one x86-64 core.
Expect: AUROC 0.43 to 0.52, which is not better than chance; pixel AUROC 0.87 to 0.92.

    python -m jax_noisy_anogan.train --config configs/screw_1024.py --config.data.root=FOLDER \
      --workdir runs/screw
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
    data = DataConfig(name="image_folder", layout="mvtec", known_abnormal_fraction=0.25)
    if name == "whole":
        growth = GrowthConfig(resolution=1024)
        return Config(data=data, growth=growth)
    data.local_contrast = 1 / 16
    data.pixel_std = 0.08
    data.flip_horizontal = data.flip_vertical = data.quarter_turns = True
    data.paste_defects = 0.5
    config = Config(
        data=data,
        network=NetworkConfig(fmap_base=256, fmap_max=64, latent_size=64),
        growth=GrowthConfig(
            resolution=128, stable_images=1_000, fade_images=1_000, final_images=8_000
        ),
        loss=LossConfig(
            gamma=0.5, objective="equation_18", penalty_weight=0.02, abnormal_statistic="real"
        ),
        optim=OptimConfig(learning_rate=0.003, ema_half_life_images=4_000.0),
        search=SearchConfig(steps=10, learning_rate=0.05, schedule="cosine", start="encoder"),
        score=ScoreConfig(memory=True, map="memory", map_sigma=1.5, threshold_rule="quantile"),
        train=TrainConfig(encoder=True, checkpoint_every_images=10_000),
    )
    return variant(config, name)
