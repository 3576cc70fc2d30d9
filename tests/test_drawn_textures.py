"""A generator learns what drawn textures look like, or training says that it draws one tile."""

import json

import jax
import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    SearchConfig,
    SyntheticConfig,
    TrainConfig,
)
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.runtime.parallel import make_mesh
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training.collapse import LEAST_SHARE

SIDE = 16


def _last_row(folder, loss, **pixels):
    """The last training curves of networks of 16 x 16 on tiles of drawn surfaces."""
    config = config_lib.validate(
        Config(
            data=DataConfig(
                name="synthetic",
                synthetic=SyntheticConfig(images=60, abnormal_images=30, side=128),
                tile_image_resolution=64,
                known_abnormal_fraction=0.25,
                cache_dir=str(folder / "cache"),
                **pixels,
            ),
            network=NetworkConfig(fmap_base=64, fmap_max=16, latent_size=16),
            growth=GrowthConfig(start_resolution=SIDE, resolution=SIDE, final_images=15_000),
            optim=OptimConfig(ema_half_life_images=1_000.0),
            loss=loss,
            search=SearchConfig(steps=0, start="encoder"),
            train=TrainConfig(encoder=True),
        )
    )
    dataset = load_dataset(config.data, resolution=SIDE, progress=False)
    split, mesh = make_split(dataset, config.data), make_mesh(jax.devices()[:1])
    loop.train(config, folder, dataset, split, mesh=mesh, progress=False)
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_at_their_own_contrast_g_draws_textures_and_shows_those_that_it_never_saw(tmp_path):
    row = _last_row(tmp_path, LossConfig(gamma=0.5), pixel_mean=0.5, pixel_std=0.1)
    assert "collapse" not in row
    assert row["g_spread"] > 2.0 * LEAST_SHARE * row["real_spread"]
    assert row["reconstruction_psnr"] > 27.0


@pytest.mark.slow
def test_at_faint_contrast_g_draws_one_tile_and_training_says_so(tmp_path):
    row = _last_row(tmp_path, LossConfig())
    assert "generator_constant" in row["collapse"]
    assert row["reconstruction_psnr"] < 27.0
