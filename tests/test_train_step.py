"""One update of both networks, against a plain re-derivation, closed forms and other device counts.

Updates are compared after SGD with a large step, since Adam would hide a wrong factor. Two float32
programs of the same update differ by the order of their sums, which leaves up to 1e-4 of the
largest change in a parameter array; and where rounding moves an activation of one image across the
kink of leaky ReLU, that image's share of the gradient jumps: one of the 512 pixels that a weight is
summed over at 4 x 4. `assert_same_update` therefore allows 1e-3 of the largest change per update.
"""

import dataclasses
import functools
from dataclasses import dataclass, field

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.data.synthetic import draw_surface
from jax_noisy_anogan.networks import Networks, build_networks
from jax_noisy_anogan.networks.pixels import PixelScale, to_byte_images, to_float_images
from jax_noisy_anogan.runtime.parallel import (
    AXIS,
    REPLICATED,
    SHARDED,
    data_parallel,
    make_mesh,
    replicate,
    shard,
)
from jax_noisy_anogan.training import collapse
from jax_noisy_anogan.training.state import init_state, make_optimizer
from jax_noisy_anogan.training.step import TrainStep

BATCH, GROUP, RESOLUTION = 32, 2, 8
RATE, DECAY = 0.5, 0.8
SGD = optax.sgd(RATE)
KEY = jax.random.key(11)
# What an encoder learns. D does not yet have the resolution of this f(x).
SEARCH = SearchConfig(
    feature_weight=0.2, feature_resolution=16, feature_scale=3.0, reduction="mean"
)


def _networks(resolution=RESOLUTION, fading=True, group=GROUP, encoder=False):
    return build_networks(
        resolution=resolution,
        fading=fading,
        channels=1,
        fmap_base=64,
        fmap_max=8,
        latent_size=16,
        stddev_group=group,
        encoder=encoder,
    )


@functools.cache
def _start(fading, encoder=False):
    """A state whose biases are not zero and whose average differs from its parameters.

    With the biases at zero a grey pixel sits on the kink of leaky ReLU, where rounding decides.
    """
    networks = _networks(fading=fading, encoder=encoder)
    state = jax.jit(lambda key: init_state(networks, SGD, key))(jax.random.key(1))
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda p: p + 0.2 * rng.standard_normal(p.shape, np.float32), state.params
    )
    return state.replace(params=params, average=jax.tree.map(lambda p: 0.5 * p + 0.1, params))


def _copy(state):
    return jax.tree.map(jnp.copy, state)


def _bytes(seed, batch=BATCH):
    shape = (batch, RESOLUTION, RESOLUTION, 1)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


REAL, ABNORMAL = _bytes(0), _bytes(1) // 3


def _make(networks, loss, optimizer=SGD, axis_name=None, decay=DECAY):
    return TrainStep(
        networks,
        optimizer,
        loss=loss,
        prior="uniform",
        ema_decay=decay,
        axis_name=axis_name,
        search=SEARCH,
    )


def _on_devices(loss, fading, encoder, count):
    """The step over `count` devices, and a function that places its arguments."""
    mesh = make_mesh(jax.devices()[:count])
    made = _make(_networks(fading=fading, encoder=encoder), loss, axis_name=AXIS)

    @chex.assert_max_traces(n=1)
    def step(*arguments):
        return made(*arguments)

    specs = (REPLICATED, SHARDED, SHARDED, REPLICATED, REPLICATED)
    return data_parallel(step, mesh, specs, (REPLICATED, REPLICATED), (0,)), mesh


def assert_same_update(start, got, want, tolerance=1e-3):
    """Every leaf of `got` equals `want` to `tolerance` of the largest change in the leaf."""

    def compare(path, old, a, b):
        old, a, b = (np.asarray(leaf, np.float64) for leaf in (old, a, b))
        # A parameter is itself stored to half a unit in the last place.
        allowed = tolerance * np.abs(b - old).max() + 1e-7 * np.abs(b).max()
        error = np.abs(a - b).max()
        assert error <= allowed, f"{jax.tree_util.keystr(path)}: {error:.2e} above {allowed:.2e}"

    jax.tree_util.tree_map_with_path(compare, start, got, want)


# ---------------------------------------------------------------------------------------------
# Against a plain re-derivation
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservedNetworks(Networks):
    """Networks that note which latents and images pass through them."""

    latents: list = field(default_factory=list, compare=False)
    images: list = field(default_factory=list, compare=False)
    encoded: list = field(default_factory=list, compare=False)

    def generate(self, params, z, alpha=1.0):
        jax.debug.callback(lambda value: self.latents.append(np.asarray(value)), z)
        return super().generate(params, z, alpha)

    def discriminate(self, params, x, alpha=1.0, stddev=None):
        jax.debug.callback(lambda value: self.images.append(np.asarray(value)), x)
        return super().discriminate(params, x, alpha, stddev)

    def encode(self, params, x, alpha=1.0):
        z = super().encode(params, x, alpha)
        jax.debug.callback(lambda value: self.encoded.append(np.asarray(value)), z)
        return z


def _observe(networks):
    return ObservedNetworks(*(getattr(networks, f.name) for f in dataclasses.fields(Networks)))


def _blend(images, alpha):
    """Real images while a layer fades in, in NumPy: 2 x 2 means and the images themselves."""
    means = images.reshape(len(images), RESOLUTION // 2, 2, RESOLUTION // 2, 2, 1).mean((2, 4))
    coarse = means.repeat(2, axis=1).repeat(2, axis=2)
    return np.float32((1.0 - alpha) * coarse + alpha * images)


def _mixing_numbers(images, real, fake):
    """The weights of `mix real + (1 - mix) fake`, of the one observed batch that is such a mix."""
    line, found = (real - fake).reshape(len(real), -1), []
    for seen in images:
        if seen.shape == real.shape:
            offset = (seen - fake).reshape(line.shape)
            mix = (line * offset).sum(1) / (line * line).sum(1)
            apart = np.minimum(np.abs(mix), np.abs(1.0 - mix)).max()
            if np.abs(offset - mix[:, None] * line).max() < 1e-4 and apart > 1e-3:
                found.append(mix)
    assert found, "no batch between the real and the drawn images was judged"
    mix = np.float32(found[0])
    assert mix.min() >= 0.0
    assert mix.max() <= 1.0
    assert len(np.unique(mix)) == len(mix)
    return mix


def _penalised(loss):
    """The first of every `penalty_interval` groups."""
    images = np.arange(BATCH)
    return images[images // GROUP % loss.penalty_interval == 0]


def _plain_update(networks, state, real, abnormal, z, alpha, loss, mix):
    """The update written straight from the equations: two losses, two gradients, two descents."""

    def logits(params, x):
        return networks.discriminate(params, x, alpha).logits

    def of_abnormal(params):
        stddev = None
        if loss.abnormal_statistic == "real":
            # No gradient: a number that D is given, as when it scores.
            seen = networks.discriminate(state.params.discriminator, real, alpha).stddev
            stddev = jax.lax.stop_gradient(seen)
        return networks.discriminate(params, abnormal, alpha, stddev)

    def log_d(s):  # log D(x) with D = 1 / (1 + exp(-s))
        return -jnp.log1p(jnp.exp(-s))

    def d_loss(params):
        fake = networks.generate(state.params.generator, z, alpha)
        s_real, s_fake = (logits(params, x) for x in (real, fake))
        s_abnormal = of_abnormal(params).logits
        if loss.objective == "wgan_gp":
            value = (
                s_real.mean() - loss.gamma * s_fake.mean() - (1 - loss.gamma) * s_abnormal.mean()
            )
            drift = loss.drift_weight * (s_real**2).mean()
        else:
            weight = {"equation_15": loss.gamma, "equation_18": 1.0}[loss.objective]
            value = weight * log_d(s_real).mean() + loss.gamma * log_d(-s_fake).mean()
            value = value + (1 - loss.gamma) * log_d(-s_abnormal).mean()
            drift = 0.0
        kept = _penalised(loss)
        at = jnp.asarray(real)[kept]
        if mix is not None:
            at = mix[:, None, None, None] * (at - fake[kept]) + fake[kept]
        slope = jax.grad(lambda x: logits(params, x).sum())(at)
        square = (slope**2).sum((1, 2, 3))
        deviation = (square**0.5 - 1) ** 2
        penalty = square.mean() / 2 if loss.penalty == "r1" else deviation.mean()
        weight = loss.gamma if loss.penalty == "r1" else 10.0
        return -value + drift + weight * penalty

    def descend(params, gradient):
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    params_d = descend(state.params.discriminator, jax.grad(d_loss)(state.params.discriminator))

    def g_loss(params):
        s = logits(params_d, networks.generate(params, z, alpha))
        return -s.mean() if loss.objective == "wgan_gp" else -log_d(s).mean()

    def drawn_again(generator, encoder, x):
        return networks.generate(generator, networks.encode(encoder, x, alpha), alpha)

    def reconstruction(params):
        x = jnp.asarray(real)[::GROUP]
        return jnp.abs(x - drawn_again(params, state.params.encoder, x)).mean()

    def e_loss(params):  # Eq. 24 of means, through the averages
        x = jnp.concatenate([real[::GROUP], fake[::GROUP]])
        stddev = state.statistics.mean("stddev")
        drawn = drawn_again(state.average.generator, params, x)
        d_x, d_drawn = (
            networks.discriminate(state.average.discriminator, images, alpha, stddev)
            for images in (x, drawn)
        )
        f, f_drawn = (3.0 * out.features[RESOLUTION] for out in (d_x, d_drawn))
        anogan = 0.8 * jnp.abs(x - drawn).mean() + 0.2 * jnp.abs(f - f_drawn).mean()
        normality = 1 / (1 + jnp.exp(-d_drawn.logits))
        return loss.gamma * anogan + (1 - loss.gamma) * (1 - normality).mean()

    fake = networks.generate(state.params.generator, z, alpha)
    gradient, encoder = jax.grad(g_loss)(state.params.generator), state.params.encoder
    if encoder is not None:
        more = jax.grad(reconstruction)(state.params.generator)
        gradient = jax.tree.map(lambda g, m: g + loss.reconstruction_weight * m, gradient, more)
        encoder = descend(encoder, jax.grad(e_loss)(encoder))
    params = type(state.params)(descend(state.params.generator, gradient), params_d, encoder)
    said = [networks.discriminate(state.params.discriminator, x, alpha) for x in (real, fake)]
    said.append(of_abnormal(state.params.discriminator))
    return params, g_loss(state.params.generator), said


# Between them: both penalties, every image and every second group, fading and not, both losses,
# with and without an encoder.
CASES = {
    "r1": (True, False, LossConfig(gamma=0.3, objective="equation_18", penalty="r1")),
    "real statistic": (
        True,
        True,
        LossConfig(
            gamma=0.3,
            objective="equation_15",
            penalty="r1",
            abnormal_statistic="real",
            reconstruction_weight=20.0,
        ),
    ),
    "lazy gp": (
        False,
        False,
        LossConfig(
            gamma=0.4, objective="wgan_gp", penalty="gp", penalty_interval=2, drift_weight=0.02
        ),
    ),
}
NAMES = {
    "d_loss",
    "d_real",
    "d_fake",
    "d_abnormal",
    "d_accuracy_real",
    "d_accuracy_fake",
    "d_accuracy_abnormal",
    "d_penalty",
    "g_loss",
    "g_spread",
    "real_spread",
    "d_gradient_norm",
    "g_gradient_norm",
}


@pytest.mark.parametrize("case", list(CASES))
def test_an_update_is_the_one_that_the_equations_give(case):
    fading, encoder, loss = CASES[case]
    alpha = 0.3
    networks, state = _networks(fading=fading, encoder=encoder), _start(fading, encoder)
    observed = _observe(networks)
    got, metrics = jax.jit(_make(observed, loss))(
        state, REAL, ABNORMAL, jnp.float32(alpha), jax.random.key(3)
    )
    jax.effects_barrier()

    found = {z.tobytes() for z in observed.encoded}
    z, *again = (z for z in observed.latents if z.tobytes() not in found)
    assert all(np.array_equal(z, other) for other in again)
    assert z.shape == (BATCH, 16)
    assert len({row.tobytes() for row in z}) == BATCH
    np.testing.assert_allclose((z**2).sum(1), 16.0, rtol=1e-5)

    real, abnormal = (np.float32(x / 127.5 - 1.0) for x in (REAL, ABNORMAL))
    if fading:
        real, abnormal = _blend(real, alpha), _blend(abnormal, alpha)
    fake = np.asarray(jax.jit(networks.generate)(state.params.generator, z, alpha))
    mix, kept = None, _penalised(loss)
    if loss.penalty == "gp":
        mix = _mixing_numbers(observed.images, real[kept], fake[kept])

    params, g_loss, (out_real, out_fake, out_abnormal) = jax.jit(
        lambda state: _plain_update(networks, state, real, abnormal, z, alpha, loss, mix)
    )(state)
    assert_same_update(state.params, got.params, params)
    average = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, state.average, params)
    assert_same_update(state.average, got.average, average)
    assert int(got.step) == int(state.step) + 1

    # The reference holds what D said before its update, the statistic included.
    y = np.asarray(out_real.features[4], np.float64).reshape(BATCH // GROUP, GROUP, -1)
    expected = {
        "stddev": np.sqrt(y.var(axis=1) + 1e-8).mean(),
        "logit_real": out_real.logits.mean(),
        "logit_fake": out_fake.logits.mean(),
    }
    np.testing.assert_allclose(got.statistics.weight, 1 - DECAY, rtol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(got.statistics.mean(name), value, rtol=1e-4, atol=1e-6)

    more = {"e_loss", "e_gradient_norm", "g_reconstruction"} if encoder else set()
    assert set(metrics) == NAMES | more
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())
    terms = [metrics[name] for name in ("d_real", "d_fake", "d_abnormal")]
    np.testing.assert_allclose(metrics["d_loss"], sum(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["g_loss"], g_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["g_spread"], fake.std(axis=0).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["real_spread"], real.std(axis=0).mean(), rtol=1e-4)
    # That of G is of its own loss, without the pull of an encoder.
    for name, old, new in zip("gde", state.params, params, strict=True):
        if old is None or (encoder and name == "g"):
            continue
        squares = jax.tree.map(lambda a, b: np.sum(((a - b) / RATE) ** 2), old, new)
        norm = sum(jax.tree.leaves(squares)) ** 0.5
        np.testing.assert_allclose(metrics[f"{name}_gradient_norm"], norm, rtol=1e-4)
    right = {
        "real": np.asarray(out_real.logits) > 0,
        "fake": np.asarray(out_fake.logits) < 0,
        "abnormal": np.asarray(out_abnormal.logits) < 0,
    }
    for name, hits in right.items():
        np.testing.assert_allclose(metrics[f"d_accuracy_{name}"], hits.mean(), atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Devices, compilation, buffers
# ---------------------------------------------------------------------------------------------

ALPHAS = (0.25, 0.75)


def _run(step, mesh, start):
    state = replicate(_copy(start), mesh)
    for alpha in ALPHAS:
        given = state
        state, metrics = step(
            given, shard(REAL, mesh), shard(ABNORMAL, mesh), jnp.float32(alpha), KEY
        )
        # Collective steps of virtual devices must not pile up.
        jax.block_until_ready(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    return jax.tree.map(np.asarray, (state, metrics))


@pytest.mark.parametrize("case", list(CASES))
def test_1_and_8_devices_give_the_same_updates_with_one_compilation_and_donated_buffers(case):
    fading, encoder, loss = CASES[case]
    start, results = _start(fading, encoder), {}
    for count in (1, 8):
        chex.clear_trace_counter()
        step, mesh = _on_devices(loss, fading, encoder, count)
        results[count] = _run(step, mesh, start)
        # Two alphas and two steps went through one program.
        assert step._cache_size() == 1
    want, want_metrics = results[1]
    changed = jax.tree.map(
        lambda a, b: np.abs(a - b).max(),
        want.params,
        jax.tree.map(np.asarray, start.params),
    )
    assert min(jax.tree.leaves(changed.discriminator)) > 0
    got, metrics = results[8]
    assert_same_update(start, got, want, tolerance=1e-3 * len(ALPHAS))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, want_metrics[name], rtol=1e-3, atol=1e-4, err_msg=name)


# ---------------------------------------------------------------------------------------------
# Corners
# ---------------------------------------------------------------------------------------------


def _small_run(batch, abnormal, gamma=0.3):
    """One update at resolution 4 with groups of four, without penalty."""
    networks = _networks(resolution=4, fading=False, group=4)
    state = jax.jit(lambda key: init_state(networks, SGD, key))(jax.random.key(1))
    step = _make(networks, LossConfig(gamma=gamma, penalty="none"))
    real = _bytes(4, batch)[:, :4, :4]
    return jax.jit(step)(state, real, abnormal, jnp.float32(1.0), KEY)


def test_a_generator_that_draws_nearly_one_tile_of_a_drawn_texture_shows_a_sign():
    networks = _networks(resolution=4, fading=False, group=4)
    state = jax.jit(lambda key: init_state(networks, SGD, key))(jax.random.key(1))
    step = jax.jit(_make(networks, LossConfig(gamma=1.0, penalty="none")))
    surfaces = [draw_surface("brushed", 32, np.random.default_rng(k)) for k in range(BATCH)]
    tiles = np.stack([s[8:12, 8:12] for s in surfaces])[..., None]
    # Beside a large bias the latent changes little of what G draws.
    bias = 30.0 * np.float32(np.random.default_rng(0).standard_normal(8))
    stuck = jax.tree.map(jnp.copy, state.params.generator) | {"block_4_bias": jnp.asarray(bias)}
    for generator, constant in ((state.params.generator, False), (stuck, True)):
        params = state.params._replace(generator=generator)
        _, said = step(state.replace(params=params), tiles, None, jnp.float32(1.0), KEY)
        assert said["g_spread"] > collapse.LEAST_SPREAD  # no two of its images are equal
        assert bool(collapse.signs(said, critic=False)["generator_constant"]) == constant


@pytest.mark.parametrize("batch", [2, 3])
def test_a_minibatch_below_a_group_never_groups_drawn_with_abnormal_images(batch):
    dark, noise = np.zeros((batch, 4, 4, 1), np.uint8), _bytes(6, batch)[:, :4, :4]
    _, with_dark = _small_run(batch, dark)
    _, with_noise = _small_run(batch, noise)
    assert abs(with_dark["d_abnormal"] - with_noise["d_abnormal"]) > 1e-4
    np.testing.assert_allclose(with_dark["d_fake"], with_noise["d_fake"], rtol=1e-6)


def test_gamma_1_without_abnormal_images_equals_ignoring_them():
    without, metrics = _small_run(8, None, gamma=1.0)
    ignored, _ = _small_run(8, _bytes(6, 8)[:, :4, :4], gamma=1.0)
    # The update moves parameters by more than 1e-3; rounding by about 1e-7.
    chex.assert_trees_all_close(ignored.params, without.params, rtol=1e-5, atol=1e-6)
    assert metrics["d_abnormal"] == 0.0
    assert "d_accuracy_abnormal" not in metrics
    assert "d_penalty" not in metrics


@pytest.mark.parametrize(("group", "interval"), [(4, 1), (2, 2)])
def test_devices_that_would_cut_a_group_or_skip_a_penalty_are_refused(group, interval):
    networks = _networks(resolution=4, fading=False, group=group)
    state = jax.eval_shape(lambda key: init_state(networks, SGD, key), KEY)
    step = _make(networks, LossConfig(penalty_interval=interval), axis_name=AXIS)
    specs = (REPLICATED, SHARDED, SHARDED, REPLICATED, REPLICATED)
    mapped = data_parallel(step, make_mesh(), specs, (REPLICATED, REPLICATED))
    images = jax.ShapeDtypeStruct((16, 4, 4, 1), jnp.uint8)
    with pytest.raises(
        ValueError, match=r"growth.minibatch gives each of 8 devices 2 images.* 32;"
    ):
        mapped.lower(state, images, images, jnp.float32(1.0), KEY)


def test_the_optimiser_is_adam_of_the_settings():
    optim = OptimConfig(learning_rate=0.01, b1=0.5, b2=0.9, eps=1e-6)
    optimizer = make_optimizer(optim)
    p, m, v = 1.0, 0.0, 0.0
    params, state = jnp.float32(p), optimizer.init(jnp.float32(p))
    for t, g in enumerate((0.3, -0.2, 0.7), 1):
        updates, state = optimizer.update(jnp.float32(g), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
        p -= 0.01 * (m / (1 - 0.5**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-6)
        np.testing.assert_allclose(params, p, rtol=1e-6)


def test_rates_stay_and_then_fall_along_half_a_cosine():
    optimizer = make_optimizer(OptimConfig(learning_rate=0.01, b1=0.0), 3, 4)
    state = optimizer.init(jnp.float32(0.0))
    for step in range(9):
        updates, state = optimizer.update(jnp.float32(1.0), state)
        turn = np.clip((step - 3) / 4, 0.0, 1.0)  # without momentum Adam's steps are the rate
        np.testing.assert_allclose(updates, -0.005 * (1 + np.cos(np.pi * turn)), atol=1e-7)


def test_the_discriminators_updates_are_multiplied_and_only_they():
    start = _start(False)

    def params_after(rate, start=start):
        step = TrainStep(
            _networks(fading=False),
            SGD,
            loss=LossConfig(),
            prior="uniform",
            ema_decay=DECAY,
            discriminator_rate=rate,
        )
        after, _ = jax.jit(step)(start, REAL, ABNORMAL, jnp.float32(1.0), KEY)
        return after.params

    once, still, thrice = (params_after(rate) for rate in (1.0, 0.0, 3.0))
    chex.assert_trees_all_equal(still.discriminator, start.params.discriminator)
    assert_same_update(
        start.params.discriminator,
        thrice.discriminator,
        jax.tree.map(
            lambda old, new: old + 3 * (new - old),
            start.params.discriminator,
            once.discriminator,
        ),
    )
    # G learns from the new D, at its own rate.
    taught = start.replace(params=start.params._replace(discriminator=thrice.discriminator))
    assert_same_update(
        start.params.generator, thrice.generator, params_after(0.0, taught).generator
    )


def test_bytes_and_floats_are_two_names_of_every_pixel_value():
    values = np.arange(256, dtype=np.uint8)
    floats = np.asarray(to_float_images(values))
    np.testing.assert_allclose(floats, values / 127.5 - 1.0, atol=1e-6)
    np.testing.assert_array_equal(to_byte_images(floats), values)
    np.testing.assert_array_equal(to_byte_images(jnp.array([-3.0, 1.7])), [0, 255])


def test_standardised_pixels_have_the_mean_and_deviation_of_the_formula():
    values = np.arange(256, dtype=np.uint8)
    pixels = PixelScale(0.3, 0.1)
    floats = np.asarray(to_float_images(values, pixels))
    np.testing.assert_allclose(floats, (values / 255 - 0.3) / 0.1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(to_byte_images(floats, pixels), values)


def test_an_update_sees_images_through_their_scale():
    # (b / 255 - 1/4) / (1/4) = (2 b / 255 - 1/2) / (1/2)
    loss, alpha = LossConfig(gamma=0.4), jnp.float32(0.3)
    networks, start = _networks(fading=True), _start(fading=True)
    real, abnormal = REAL // 2, ABNORMAL // 2
    plain = _make(networks, loss)
    scaled = TrainStep(
        networks,
        SGD,
        loss=loss,
        prior="uniform",
        ema_decay=DECAY,
        pixels=PixelScale(0.25, 0.25),
    )
    want, seen = jax.jit(plain)(start, 2 * real, 2 * abnormal, alpha, KEY)
    got, half = jax.jit(scaled)(start, real, abnormal, alpha, KEY)
    assert_same_update(start, got, want)
    # Its drawn images span half as many grey levels.
    np.testing.assert_allclose(2.0 * half["g_spread"], seen["g_spread"], rtol=1e-5)
