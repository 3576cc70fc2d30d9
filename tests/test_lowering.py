"""The programs for accelerators lower without one: an update and a latent search, 32 to 1024.

`jax.export` refuses whatever an accelerator's compiler could not be given: a CPU's library calls, a
branch per platform that lacks one. Shapes alone are traced, so that full width costs no more.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jax_noisy_anogan.config import Config, GrowthConfig, NetworkConfig, SearchConfig, TrainConfig
from jax_noisy_anogan.latent_search import search_latents
from jax_noisy_anogan.model import bind
from jax_noisy_anogan.runtime.parallel import make_mesh
from jax_noisy_anogan.training.growth import Phase, make_schedule
from jax_noisy_anogan.training.loop import compile_step
from jax_noisy_anogan.training.state import networks_of, state_template

ACCELERATORS = ("cuda", "tpu")
# Full width is Karras et al. 2018, Table 2; few channels take a path of their own (`convolution`).
WIDTHS = {"full": NetworkConfig(), "narrow": NetworkConfig(fmap_base=512, fmap_max=8)}
SLOW = pytest.mark.slow
CASES = [
    pytest.param(32, "narrow"),
    pytest.param(1024, "full", marks=SLOW),
    *(pytest.param(2**k, "full", marks=SLOW) for k in range(6, 10)),
    pytest.param(32, "full"),
]


def _config(resolution: int, width: str) -> Config:
    """As a user of an accelerator would have it: memory saved at 1024, an encoder trained along."""
    growth = GrowthConfig(
        start_resolution=resolution // 2,
        resolution=resolution,
        microbatch={"1024": 2},
        rematerialize_from=1024,
    )
    search = SearchConfig(steps=500, restarts=2, feature_resolution=16)
    return Config(
        network=WIDTHS[width], growth=growth, search=search, train=TrainConfig(encoder=True)
    )


def _fade(config: Config) -> Phase:
    """The phase that brings in the last resolution: its networks hold both output layers."""
    return make_schedule(config.growth).phases[1]


def _bytes(phase: Phase) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((phase.minibatch, phase.resolution, phase.resolution, 1), jnp.uint8)


@pytest.mark.parametrize(("resolution", "width"), CASES)
def test_an_update_lowers_for_accelerators(resolution, width):
    config, mesh = _config(resolution, width), make_mesh(jax.devices()[:1])
    phase = _fade(config)
    state = state_template(config, phase, mesh)
    arguments = (
        state,
        _bytes(phase),
        _bytes(phase),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1,), bool),
        None,  # masks, for a dense D
    )
    exported = jax.export.export(compile_step(config, phase, mesh), platforms=ACCELERATORS)(
        *arguments
    )
    assert exported.platforms == ACCELERATORS
    new, metrics = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == shapes
    assert {"d_loss", "g_loss", "e_loss", "stopping"} < metrics.keys()


@pytest.mark.parametrize(("resolution", "width"), CASES)
def test_a_latent_search_lowers_for_accelerators(resolution, width):
    config = _config(resolution, width)
    phase = dataclasses.replace(_fade(config), fading=False)
    networks = networks_of(config, phase)
    state = state_template(config, phase, make_mesh(jax.devices()[:1]))

    def search(params, statistics, images):
        return search_latents(
            *bind(networks, params, statistics, config),
            images,
            jax.random.key(0),
            search=config.search,
            gamma=config.loss.gamma,
            prior=config.network.prior,
            latent_size=networks.latent_size,
            initial=lambda x: networks.encode(params.encoder, x[None]),
        )

    images = jax.ShapeDtypeStruct((config.search.batch_size, *networks.image_shape), jnp.float32)
    exported = jax.export.export(jax.jit(search), platforms=ACCELERATORS)(
        state.average, state.statistics, images
    )
    assert exported.platforms == ACCELERATORS
    found = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert found.latent.shape == (config.search.batch_size, networks.latent_size)
    assert found.loss.shape == (config.search.batch_size,)
