"""Eight virtual CPU devices, strict shapes, parsed flags, and one finished run for every test."""

import os

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
# A silent broadcast between ranks is nearly always a bug in the networks or the losses.
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain and TFDS read flags; outside `absl.app.run` they must be told that nothing is to parse.
flags.FLAGS.mark_as_parsed()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Config and folder of a run on digits: one update of 8 x 8 networks, then evaluated.

    Tests that write into the folder copy it first.
    """
    from jax_noisy_anogan import config as config_lib
    from jax_noisy_anogan import experiment

    root = tmp_path_factory.mktemp("finished")
    config = config_lib.Config(
        data=config_lib.DataConfig(cache_dir=str(root / "cache"), max_test_images=40),
        network=config_lib.NetworkConfig(fmap_base=64, fmap_max=8, latent_size=8),
        growth=config_lib.GrowthConfig(
            start_resolution=8, resolution=8, final_images=32, minibatch_default=32, minibatch={}
        ),
        search=config_lib.SearchConfig(steps=4, batch_size=64),
        train=config_lib.TrainConfig(sample_images=4),
    )
    experiment.run(config_lib.validate(config), root / "run", progress=False)
    return config, root / "run"
