"""The trained networks as functions: which parameters score, and which layer is f of Eq. 3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jax_noisy_anogan import model as model_lib
from jax_noisy_anogan.config import GrowthConfig
from jax_noisy_anogan.training import state as state_lib
from jax_noisy_anogan.training.growth import make_schedule

CONFIG = tiny.config(growth=GrowthConfig(resolution=16))


@pytest.fixture(scope="module")
def state():
    phase = make_schedule(CONFIG.growth).phases[-1]
    networks = state_lib.networks_of(CONFIG, phase)
    optimizer = state_lib.optimizer_of(CONFIG, phase)
    return state_lib.init_state(networks, optimizer, jax.random.key(0))


def test_the_averaged_networks_are_those_that_score(state):
    averaged = jax.tree.map(lambda leaf: leaf + 1.0, state.params)
    found = state_lib.model_of(CONFIG, state.replace(average=averaged)).params
    jax.tree.map(np.testing.assert_array_equal, found, averaged)


@pytest.mark.parametrize(("resolution", "scale"), [(1, 100.0), (4, 1.0), (8, 1.0), (16, 3.0)])
def test_f_of_equation_3_is_the_stated_layer_in_the_stated_unit(state, resolution, scale):
    search = dataclasses.replace(CONFIG.search, feature_resolution=resolution, feature_scale=scale)
    config = dataclasses.replace(CONFIG, search=search)
    networks, params, statistics, _ = state_lib.model_of(config, state)
    x = jax.random.normal(jax.random.key(1), networks.image_shape)
    _, judge = model_lib.bind(networks, params, statistics, config)
    found = judge(x).features
    out = networks.discriminate(params.discriminator, x[None], stddev=jnp.zeros(()))
    assert found.shape[:2] == (resolution, resolution)
    np.testing.assert_allclose(found, scale * out.features[resolution][0], rtol=1e-6)
