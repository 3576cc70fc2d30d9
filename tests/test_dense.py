"""A discriminator that judges pixels: its network, its loss, its update and its map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan import losses
from jax_noisy_anogan.config import (
    Config,
    ConfigError,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    ScoreConfig,
    SearchConfig,
    validate,
)
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.networks import build_networks, grow_params
from jax_noisy_anogan.networks.layers import downsample_average
from jax_noisy_anogan.runtime.parallel import (
    AXIS,
    REPLICATED,
    SHARDED,
    data_parallel,
    make_mesh,
    replicate,
    shard,
)
from jax_noisy_anogan.scoring.scorer import Scorer
from jax_noisy_anogan.training.state import init_state
from jax_noisy_anogan.training.step import TrainStep

# Without blocks, which the tests of the network have, programs compile in a tenth of the time.
SIDE = 4
RATE = 0.5
SGD = optax.sgd(RATE)


def _networks(resolution=8, fading=False, dense=True, **changes):
    return build_networks(
        resolution=resolution,
        fading=fading,
        channels=1,
        fmap_base=32,
        fmap_max=8,
        latent_size=4,
        stddev_group=2,
        dense=dense,
        **changes,
    )


def _params(networks, seed=0):
    """Parameters with biases that are not zero, without a program that draws them."""
    shapes = jax.eval_shape(networks.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def _discriminator(networks, seed=0):
    return _params(networks, seed).discriminator


def _images(count=4, side=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, side, side, 1), np.float32)


# -- The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "fading"), [(8, False), (16, True)])
def test_every_pixel_has_a_logit_and_the_judgement_of_the_image_stays_the_same(side, fading):
    with_decoder, without = (_networks(side, fading, dense) for dense in (True, False))
    params = _discriminator(with_decoder)
    plain = {name: layer for name, layer in params.items() if name != "decoder"}
    shapes = jax.tree.map(np.shape, _discriminator(without))
    assert jax.tree.map(np.shape, plain) == shapes
    x = _images(side=side)
    got, want = (
        jax.jit(networks.discriminate)(tree, x, 0.3)
        for networks, tree in ((with_decoder, params), (without, plain))
    )
    assert got.dense.shape == (4, side, side)
    assert got.dense.dtype == jnp.float32
    assert want.dense is None
    # Other programs add up in another order.
    np.testing.assert_allclose(got.logits, want.logits, rtol=1e-5, atol=1e-5)


def test_a_network_starts_alike_with_and_without_a_decoder():
    with_decoder, without = (
        _networks(SIDE, dense=dense).init(jax.random.key(0)) for dense in (True, False)
    )
    discriminator = dict(with_decoder.discriminator)
    del discriminator["decoder"]
    jax.tree.map(np.testing.assert_array_equal, discriminator, without.discriminator)
    jax.tree.map(np.testing.assert_array_equal, with_decoder.generator, without.generator)


def test_the_logits_of_a_pixel_depend_on_its_image_alone():
    networks = _networks()
    params, x = _discriminator(networks), _images()
    judge = jax.jit(networks.discriminate)
    other = judge(params, np.concatenate([x[:2], 9 * x[2:]]))
    np.testing.assert_array_equal(judge(params, x).dense[:2], other.dense[:2])


def test_a_grown_decoder_begins_with_what_it_said_before():
    small, large = _networks(8), _networks(16, fading=True)
    old = _discriminator(small)
    grown = grow_params(old, _discriminator(large, 1))
    stable = _networks(16)
    kept = grow_params(grown, _discriminator(stable, 2))
    x = _images(side=16)

    @jax.jit
    def judged():
        before = small.discriminate(old, downsample_average(x)).dense
        begun, ended = (large.discriminate(grown, x, alpha).dense for alpha in (0.0, 1.0))
        return before, begun, ended, stable.discriminate(kept, x).dense

    before, begun, ended, after = judged()
    # The same sums in another order.
    np.testing.assert_allclose(begun, np.repeat(np.repeat(before, 2, 1), 2, 2), atol=1e-5)
    np.testing.assert_allclose(after, ended, atol=1e-5)
    assert np.abs(ended - begun).max() > 0.1


def test_less_memory_gives_the_same_gradients():
    plain, *others = _networks(), _networks(microbatch=2), _networks(rematerialize=True)
    params, x = _discriminator(plain), _images()

    def gradient(networks):
        def loss(params):
            out = networks.discriminate(params, x, 1.0, 0.5)
            return jnp.sin(out.dense).mean() + out.logits.mean()

        return jax.jit(jax.grad(loss))(params)

    want = gradient(plain)
    for networks in others:
        jax.tree.map(
            # The same sums in another order.
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            gradient(networks),
            want,
        )


# -- The loss -------------------------------------------------------------------------------------


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("objective", "real_weight"), [("equation_15", 0.3), ("equation_18", 1.0)])
def test_the_dense_loss_is_equation_15_or_18_over_pixels(objective, real_weight):
    gamma, rng = 0.3, np.random.default_rng(0)
    real, fake, abnormal = rng.normal(size=(3, 4, 5, 5))
    masks = np.zeros((4, 5, 5))
    masks[0, 1:3, 2:4], masks[1, 0, 0], masks[2] = 1, 0.25, 1  # the last one is not located
    got = losses.dense_discriminator_loss(
        *(jnp.asarray(v) for v in (real, fake, abnormal, masks)), gamma=gamma, objective=objective
    )
    normal, defective = [], []
    for logits, mask in zip(abnormal, masks, strict=True):
        if not mask.any():
            normal.append(0.0)
            defective.append(np.log(1 - _sigmoid(logits.min())))
            continue
        outside = 1 - mask
        log_normal, log_abnormal = np.log(_sigmoid(logits)), np.log(1 - _sigmoid(logits))
        normal.append((outside * log_normal).sum() / outside.sum() if outside.any() else 0.0)
        defective.append((mask * log_abnormal).sum() / mask.sum())
    want_real = -real_weight * (np.log(_sigmoid(real)).mean() + np.mean(normal)) / 2
    want_fake = -gamma * np.log(1 - _sigmoid(fake)).mean()
    want_abnormal = -(1 - gamma) * np.mean(defective)
    # float32.
    np.testing.assert_allclose(got.real, want_real, rtol=1e-5)
    np.testing.assert_allclose(got.fake, want_fake, rtol=1e-5)
    np.testing.assert_allclose(got.abnormal, want_abnormal, rtol=1e-5)
    np.testing.assert_allclose(got.total, want_real + want_fake + want_abnormal, rtol=1e-5)


def test_of_one_pixel_an_image_the_dense_loss_is_that_of_images():
    real, fake, abnormal = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    pixels = (jnp.asarray(v)[:, None, None] for v in (real, fake, abnormal))
    masks = jnp.ones((6, 1, 1))
    got = losses.dense_discriminator_loss(*pixels, masks, gamma=0.4, objective="equation_18")
    want = losses.discriminator_loss_equation_18(real, fake, abnormal, 0.4)
    np.testing.assert_allclose(got.fake, want.fake, rtol=1e-6)
    np.testing.assert_allclose(got.abnormal, want.abnormal, rtol=1e-6)
    # No pixel lies outside the masks: that half of the normal pixels is missing.
    np.testing.assert_allclose(got.real, want.real / 2, rtol=1e-6)


def test_the_dense_loss_of_plain_anogan_has_no_abnormal_term():
    real, fake = jnp.ones((2, 3, 4, 4))
    got = losses.dense_discriminator_loss(
        real, fake, None, None, gamma=1.0, objective="equation_15"
    )
    assert got.abnormal == 0
    np.testing.assert_allclose(got.total, -np.log(_sigmoid(1)) - np.log(_sigmoid(-1)), rtol=1e-6)


# -- The update -----------------------------------------------------------------------------------


LOSS = LossConfig(gamma=0.4, objective="equation_18", penalty_weight=0.1, dense_weight=2.0)
ALPHA = np.float32(0.5)


def _batch(count=8):
    rng = np.random.default_rng(0)
    real, abnormal = rng.integers(0, 256, (2, count, SIDE, SIDE, 1), np.uint8)
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    masks[::2, 1:3, 2:4] = 255
    masks[1, 0, 0] = 51
    return real, abnormal, masks


def _start(networks):
    shapes = jax.eval_shape(lambda key: init_state(networks, SGD, key), jax.random.key(0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return state.replace(params=_params(networks))


def _step(networks, axis_name=None):
    return TrainStep(networks, SGD, loss=LOSS, prior="uniform", ema_decay=0.5, axis_name=axis_name)


@functools.cache
def _updated(devices=0):
    """A state, and what an update makes of it: on so many devices, or without a mapped axis."""
    networks = _networks(SIDE)
    state, key = _start(networks), jax.random.key(2)
    real, abnormal, masks = _batch()
    if not devices:
        step = jax.jit(_step(networks))
        return state, *step(state, real, abnormal, ALPHA, key, masks)
    mesh = make_mesh(jax.devices()[:devices])
    specs = (REPLICATED, SHARDED, SHARDED, REPLICATED, REPLICATED, SHARDED)
    step = data_parallel(_step(networks, AXIS), mesh, specs, (REPLICATED, REPLICATED))
    shown = (shard(part, mesh) for part in (real, abnormal))
    shares = shard(masks, mesh)
    return state, *step(replicate(state, mesh), *shown, ALPHA, key, shares)


def test_the_decoder_descends_the_dense_loss():
    state, new, metrics = _updated()
    networks = _networks(SIDE)
    real, abnormal, masks = _batch()
    shown = [images.astype(np.float32) / 127.5 - 1 for images in (real, abnormal)]

    def dense_loss(decoder):
        params = state.params.discriminator | {"decoder": decoder}
        z, _ = _step(networks)._draw(jax.random.fold_in(jax.random.key(2), 0), len(real))
        fake = networks.generate(state.params.generator, z, ALPHA)
        logits = [networks.discriminate(params, x, ALPHA).dense for x in (shown[0], fake, shown[1])]
        found = losses.dense_discriminator_loss(
            *logits, masks / 255.0, gamma=LOSS.gamma, objective=LOSS.objective
        )
        return found.total

    old = state.params.discriminator["decoder"]
    value, gradient = jax.jit(jax.value_and_grad(dense_loss))(old)
    np.testing.assert_allclose(metrics["d_dense_total"], value, rtol=1e-4)
    jax.tree.map(
        # To a part in a thousand of the step: float32 sums in another order.
        lambda a, b, g: np.testing.assert_allclose(
            a - b, -RATE * LOSS.dense_weight * g, atol=1e-3 * float(np.abs(g).max()) + 1e-6
        ),
        new.params.discriminator["decoder"],
        old,
        gradient,
    )


def test_the_dense_update_is_the_same_on_any_number_of_devices():
    state, one, _ = _updated()
    _, four, _ = _updated(4)
    jax.tree.map(
        lambda old, a, b: np.testing.assert_allclose(
            a, b, atol=1e-3 * float(np.abs(np.asarray(a) - old).max()) + 1e-7
        ),
        state.params,
        one.params,
        four.params,
    )


# -- Scores ---------------------------------------------------------------------------------------


CONFIG = Config(
    data=DataConfig(flip_horizontal=True, flip_vertical=True),
    growth=GrowthConfig(resolution=SIDE),
    network=NetworkConfig(dense=True),
    search=SearchConfig(steps=1, batch_size=4),
    score=ScoreConfig(map="dense"),
)


@pytest.mark.parametrize("average_flips", [False, True])
def test_the_dense_map_is_minus_the_logit_of_every_pixel(average_flips):
    networks = _networks(SIDE)
    params = _params(networks)
    stddev = 0.4
    reference = DiscriminatorStatistics(*(np.float32(value) for value in (1.0, stddev, 0.0, 0.0)))
    score = dataclasses.replace(CONFIG.score, average_flips=average_flips)
    scorer = Scorer(Model(networks, params, reference), dataclasses.replace(CONFIG, score=score))
    images = list(np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 1), np.uint8))
    latents = np.ones((1, 4), np.float32)
    results = list(scorer.measure((image, latents) for image in images))
    flips = [(), (0,), (1,), (0, 1)] if average_flips else [()]
    judge = jax.jit(networks.discriminate)
    for image, result in zip(images, results, strict=True):
        x = image.astype(np.float32) / 127.5 - 1
        maps, logits = [], []
        for flip in flips:
            view = jnp.asarray(np.flip(x, flip))[None]
            out = judge(params.discriminator, view, 1.0, stddev)
            maps.append(np.flip(np.asarray(out.dense[0]), flip))
            logits.append(float(out.logits[0]))
        # Other programs add up in another order.
        np.testing.assert_allclose(result.map, -np.mean(maps, axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            result.terms["discriminator"], -np.mean(logits), rtol=1e-4, atol=1e-4
        )


def test_settings_that_need_a_dense_discriminator_or_forbid_it_are_refused():
    validate(CONFIG)
    with pytest.raises(ConfigError, match="without network"):
        validate(dataclasses.replace(CONFIG, network=NetworkConfig()))
    wasserstein = LossConfig(objective="wgan_gp", penalty="gp")
    with pytest.raises(ConfigError, match="no loss per pixel"):
        validate(dataclasses.replace(CONFIG, loss=wasserstein))
