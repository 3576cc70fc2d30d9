"""The mapping over devices, held equal to `jax.pmap` and to one device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import lax

from jax_noisy_anogan.config import ConfigError, GrowthConfig, LossConfig, NetworkConfig
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.parallel import (
    AXIS,
    REPLICATED,
    SHARDED,
    data_parallel,
    make_mesh,
    replicate,
    require_divisible,
    shard,
)
from jax_noisy_anogan.runtime.processes import LostProcessError
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import init_state
from jax_noisy_anogan.training.step import TrainStep


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_training_step_is_bit_for_bit_that_of_pmap():
    networks = build_networks(
        resolution=4,
        fading=False,
        channels=1,
        fmap_base=32,
        fmap_max=8,
        latent_size=8,
        stddev_group=2,
    )
    optimizer, key = optax.sgd(0.5), jax.random.key(0)
    step = TrainStep(
        networks, optimizer, loss=LossConfig(), prior="normal", ema_decay=0.9, axis_name=AXIS
    )
    state = jax.jit(lambda key: init_state(networks, optimizer, key))(key)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 4, 4, 1), np.uint8)
    alpha, mesh = jnp.float32(1.0), make_mesh()

    specs = (REPLICATED, SHARDED, SHARDED, REPLICATED, REPLICATED)
    ours = data_parallel(step, mesh, specs, (REPLICATED, REPLICATED))
    got = ours(replicate(state, mesh), *(shard(part, mesh) for part in images), alpha, key)

    per_device = images.reshape(2, 8, 2, 4, 4, 1)
    theirs = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, 0, None, None), out_axes=None)
    _equal(got, theirs(state, *per_device, alpha, key))


def test_averaged_gradients_are_those_of_the_whole_batch_and_not_a_multiple():
    rng = np.random.default_rng(0)
    x, y, w = (np.float32(rng.standard_normal(shape)) for shape in ((16, 3), (16,), (3,)))

    def gradient(w, x, y):
        return lax.pmean(jax.grad(lambda w: jnp.square(x @ w - y).mean())(w), AXIS)

    want = 2.0 * x.T @ (x @ w - y) / 16
    for count in (1, 2, 8):
        mesh = make_mesh(jax.devices()[:count])
        mapped = data_parallel(gradient, mesh, (REPLICATED, SHARDED, SHARDED), REPLICATED)
        got = mapped(replicate(w, mesh), shard(x, mesh), shard(y, mesh))
        # Sums of sixteen float32 numbers in another order.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert got.sharding.is_fully_replicated


def test_shards_are_runs_of_the_batch_and_outputs_come_back_in_order():
    mesh = make_mesh()
    batch = shard({"x": np.arange(16)}, mesh)["x"]
    parts = [np.asarray(part.data) for part in batch.addressable_shards]
    np.testing.assert_array_equal(np.stack(parts), np.arange(16).reshape(8, 2))
    numbered = data_parallel(lambda x: x + 100 * lax.axis_index(AXIS), mesh, SHARDED, SHARDED)
    np.testing.assert_array_equal(numbered(batch), np.arange(16) + 100 * (np.arange(16) // 2))


def test_donated_arguments_are_given_away_and_others_kept():
    mesh = make_mesh()
    a, b = (replicate(jnp.ones(4), mesh) for _ in range(2))
    add = data_parallel(lambda a, b: a + b, mesh, (REPLICATED, REPLICATED), REPLICATED, (0,))
    np.testing.assert_array_equal(add(a, b), 2.0 * np.ones(4))
    assert a.is_deleted()
    assert not b.is_deleted()


def test_own_code_calls_no_library_and_an_xla_without_the_option_is_left_alone(monkeypatch):
    mesh, images = make_mesh(jax.devices()[:1]), jnp.ones((8, 64, 64))

    def program(**given):
        def function(x):
            return jnp.tanh(x @ x).sum(0)

        mapped = data_parallel(function, mesh, REPLICATED, REPLICATED, **given)
        return mapped.lower(images).compile().as_text()

    assert "ynn" in program()
    assert "ynn" not in program(own_code=True)
    uncached = parallel.own_code_options.__wrapped__
    assert uncached("cpu")
    assert uncached("gpu") is None
    monkeypatch.setattr(parallel, "OWN_CODE", {"xla_cpu_no_such_option": ""})
    assert uncached("cpu") is None


@pytest.mark.parametrize(("fmap_base", "own"), [(32, True), (64, False)])
def test_training_calls_no_library_where_the_last_layers_have_few_channels(
    monkeypatch, fmap_base, own
):
    network = NetworkConfig(fmap_base=fmap_base, fmap_max=64, latent_size=8)
    config = tiny.config(network=network)
    chosen = []
    monkeypatch.setattr(
        parallel, "data_parallel", lambda *_, own_code, **given: chosen.append(own_code)
    )
    monkeypatch.setattr(loop, "_compiled_step", loop._compiled_step.__wrapped__)
    for phase in make_schedule(config.growth).phases:
        loop.compile_step(config, phase, make_mesh())
    assert chosen == [own]


def test_a_batch_that_devices_cannot_share_is_refused_by_name():
    require_divisible(24, make_mesh(), "growth.minibatch_default")
    with pytest.raises(ValueError, match=r"growth.minibatch_default is 12, which 8 devices"):
        require_divisible(12, make_mesh(), "growth.minibatch_default")


def test_groups_that_a_later_phase_would_tear_are_refused_before_the_first_one(tmp_path):
    growth = GrowthConfig(start_resolution=4, resolution=8, minibatch={"4": 32, "8": 16})
    with pytest.raises(ConfigError, match=r"each of 8 devices 2 images.*use fewer devices"):
        loop.train(tiny.config(growth=growth), tmp_path, None, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "kind"),
    [("RESOURCE_EXHAUSTED: 3 GiB", jax.errors.JaxRuntimeError), ("closed", LostProcessError)],
)
def test_no_memory_is_no_lost_process(tmp_path, monkeypatch, text, kind):
    def fail(run):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(loop, "Checkpoints", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(loop._Run, "finish", fail)
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    growth = GrowthConfig(start_resolution=8, resolution=8, minibatch_default=32)
    with pytest.raises(kind):
        loop.train(tiny.config(growth=growth), tmp_path, None, None)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), jax.errors.JaxRuntimeError("full")]
)
def test_a_phase_is_not_lost_for_want_of_a_picture(monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop._Run, "_draw", fail)
    (phase,) = make_schedule(tiny.config().growth).phases
    run = loop._Run.__new__(loop._Run)
    run._draw_samples(phase, None, None, 1)
    (told,) = caplog.messages
    assert told.startswith(f"no samples of {phase.name} (")
    assert str(error) in told
