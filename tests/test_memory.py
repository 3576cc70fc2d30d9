"""Rematerialisation and accumulated gradients change what is kept, never what is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan.config import Config, ConfigError, GrowthConfig, LossConfig, validate
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.runtime.parallel import (
    AXIS,
    REPLICATED,
    SHARDED,
    data_parallel,
    make_mesh,
    replicate,
    shard,
)
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import init_state, networks_of
from jax_noisy_anogan.training.step import TrainStep

BATCH, GROUP, RESOLUTION = 8, 4, 8
SGD = optax.sgd(0.5)
LOSSES = {
    "r1": LossConfig(gamma=0.3),
    "lazy gp": LossConfig(gamma=0.4, objective="wgan_gp", penalty="gp", penalty_interval=2),
}
# Decides how long the compiler takes, not what it computes.
QUICKLY = {"xla_backend_optimization_level": "0"}


def _networks(**how):
    return build_networks(
        resolution=RESOLUTION,
        fading=True,
        channels=1,
        fmap_base=64,
        fmap_max=8,
        latent_size=16,
        stddev_group=GROUP,
        **how,
    )


@functools.cache
def _start():
    """Parameters away from the kinks of leaky ReLU, where rounding would decide."""
    state = init_state(_networks(), SGD, jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape, np.float32), state.params)
    return jax.tree.map(np.asarray, state.replace(params=moved))


def _bytes(seed, batch=BATCH):
    shape = (batch, RESOLUTION, RESOLUTION, 1)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _step(loss, axis_name=None, **how):
    return TrainStep(
        _networks(**how), SGD, loss=loss, prior="uniform", ema_decay=0.9, axis_name=axis_name
    )


def _run(function, *args):
    return jax.jit(function).lower(*args).compile(QUICKLY)(*args)


ARGUMENTS = (_bytes(2), _bytes(3) // 3, jnp.float32(0.3), jax.random.key(4))


@functools.cache
def _plain(case):
    state, metrics = _run(_step(LOSSES[case]), _start(), *ARGUMENTS)
    return jax.tree.map(np.asarray, (state.params, metrics))


def _assert_same(got, want, case):
    """To 1e-4 of the largest change of every parameter array: the order of sums is another."""
    params, metrics = jax.tree.map(np.asarray, got)

    def compare(path, start, a, b):
        change = np.abs(b - start).max()
        assert change > 0, f"{jax.tree_util.keystr(path)} did not move: nothing is compared"
        allowed = 1e-4 * change + 1e-7 * np.abs(b).max()
        assert np.abs(a - b).max() <= allowed, (case, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, _start().params, params, want[0])
    assert metrics.keys() == want[1].keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, want[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("case", "how"),
    [
        # Parts of one image cut every group of the minibatch standard deviation.
        ("r1", {"rematerialize": True, "microbatch": 1}),
        # 3 divides neither the 8 images nor the 4 that are penalised: parts of 2.
        ("lazy gp", {"microbatch": 3}),
    ],
    ids=str,
)
def test_an_update_in_parts_or_recomputed_is_the_plain_update(case, how):
    state, metrics = _run(_step(LOSSES[case], **how), _start(), *ARGUMENTS)
    _assert_same((state.params, metrics), _plain(case), how)


def test_accumulated_gradients_equal_the_plain_ones_in_float64():
    with jax.enable_x64(True):
        widen = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
        params = widen(_start().params)
        z = np.random.default_rng(5).standard_normal((BATCH, 16))

        def objective(params, **how):
            networks = _networks(compute_dtype="float64", **how)
            drawn = networks.generate(params.generator, z, 0.3)

            def critic(x):
                return networks.discriminate(params.discriminator, x, 0.3).logits

            slope = jax.grad(lambda x: critic(x).sum())(drawn)
            return critic(drawn).mean() + jnp.square(slope).sum()

        want, got = (
            _run(jax.grad(functools.partial(objective, **how)), params)
            for how in ({}, {"rematerialize": True, "microbatch": 1})
        )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(b).max())


def test_devices_accumulate_to_the_plain_update_with_donated_buffers():
    mesh = make_mesh(jax.devices()[:2])
    step = _step(LOSSES["r1"], AXIS, rematerialize=True, microbatch=2)
    specs = (REPLICATED, SHARDED, SHARDED, REPLICATED, REPLICATED)
    mapped = data_parallel(step, mesh, specs, (REPLICATED, REPLICATED), (0,))
    given = replicate(jax.tree.map(jnp.asarray, _start()), mesh)
    real, abnormal, alpha, key = ARGUMENTS
    state, metrics = mapped(given, shard(real, mesh), shard(abnormal, mesh), alpha, key)
    _assert_same((state.params, metrics), _plain("r1"), "two devices")
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def _temporaries(batch, **how):
    """Bytes beside arguments and results of D's gradient by its parameters."""
    networks = build_networks(
        resolution=32, fading=False, channels=1, fmap_base=128, fmap_max=8, latent_size=8, **how
    )
    params = jax.eval_shape(networks.init, jax.random.key(0)).discriminator
    images = jax.ShapeDtypeStruct((batch, 32, 32, 1), jnp.float32)
    gradient = jax.grad(lambda params, x: networks.discriminate(params, x).logits.mean())
    program = jax.jit(gradient).lower(params, images).compile(QUICKLY)
    return program.memory_analysis().temp_size_in_bytes


def test_the_memory_of_accumulation_hardly_grows_with_the_minibatch():
    small, large = (_temporaries(batch, microbatch=4) for batch in (8, 32))
    assert large < 0.5 * _temporaries(32)
    # Of every further image the features at 4 x 4 remain, and what the last layers make of them:
    # less than one of the 8 x 32 x 32 activations that it passes through.
    assert large - small < 24 * 4 * 8 * 32 * 32


def test_the_settings_reach_the_networks_of_their_resolutions():
    config = Config(growth=GrowthConfig(resolution=16, rematerialize_from=8, microbatch={"16": 2}))
    found = {}
    for phase in make_schedule(validate(config).growth).phases:
        generator = networks_of(config, phase).generator
        found[phase.resolution] = (generator.rematerialize, generator.microbatch)
    assert found == {4: (False, 0), 8: (True, 0), 16: (True, 2)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"microbatch": {"20": 1}}, r"growth\.microbatch is '20': expected resolutions"),
        ({"microbatch": {"16": 0}}, r"growth\.microbatch\[16\] is 0: expected from 1"),
        (
            {"rematerialize_from": 20},
            r"growth\.rematerialize_from is 20: expected 0, or a power of two",
        ),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config(growth=GrowthConfig(**settings)))
