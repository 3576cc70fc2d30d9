"""The latent search against a plain Python loop, Eq. 24, and itself with other neighbours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan.config import SEARCH_OPTIMIZERS, SearchConfig
from jax_noisy_anogan.latent_search import (
    Judgement,
    generate_bank,
    make_optimizer,
    nearest,
    search_latents,
)
from jax_noisy_anogan.networks import build_networks

LATENT, GAMMA, LAMBDA = 16, 0.3, 0.2
KEY = jax.random.key(2)
RNG = np.random.default_rng(0)
WEIGHT = np.float32(RNG.standard_normal((LATENT, 16)) / 4)
FEATURE = np.float32(RNG.standard_normal((16, 12)) / 4)
IMAGES = np.float32(RNG.uniform(-1, 1, (8, 4, 4, 1)))


def _draw(z):
    """A generator small enough to be written twice."""
    return jnp.tanh(z @ WEIGHT).reshape(4, 4, 1)


def _judge(x):
    f = x.reshape(-1) @ FEATURE
    logit = f.mean() + 0.5
    return Judgement(jax.nn.sigmoid(logit), logit, f.reshape(2, 2, 3))


def _search(images, *, steps=12, generate=_draw, judge=_judge, key=KEY, **changes):
    """One search; what `search_latents` takes beside the settings is picked out of `changes`."""
    prior, optimizer = changes.pop("prior", "uniform"), changes.pop("optimizer_object", None)
    gamma, initial = changes.pop("gamma", GAMMA), changes.pop("initial", None)
    settings = {"feature_weight": LAMBDA, "record_curve": True, **changes}
    run = functools.partial(
        search_latents,
        generate,
        judge,
        search=SearchConfig(steps=steps, **settings),
        gamma=gamma,
        prior=prior,
        latent_size=LATENT,
        optimizer=optimizer,
        initial=initial,
    )
    return jax.tree.map(np.asarray, jax.jit(run)(images, key))


def _terms(x, z, *, gamma=GAMMA, weight=LAMBDA, mean=False):
    """Eq. 2 to 4, 24 and 25 in float64."""
    drawn = np.tanh(np.float64(z) @ WEIGHT)
    f_x, f_drawn = np.float64(x).reshape(-1) @ FEATURE, drawn @ FEATURE
    reduce = np.mean if mean else np.sum
    residual = reduce(np.abs(np.float64(x).reshape(-1) - drawn))
    feature = reduce(np.abs(f_x - f_drawn))
    anogan = (1 - weight) * residual + weight * feature
    penalty = 1 - 1 / (1 + np.exp(-(f_drawn.mean() + 0.5)))
    return gamma * anogan + (1 - gamma) * penalty, anogan, residual, feature, penalty


def _starts(**changes):
    """The latents that a search begins with, as its generator sees them."""
    seen = []

    def watched(z):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), z)
        return _draw(z)

    _search(IMAGES[:1], steps=0, generate=watched, **changes)
    jax.effects_barrier()
    return np.unique(np.stack(seen), axis=0)


def _loop(x, z, steps, rate=lambda t: 0.1):
    """Algorithm 1 step by step, with Adam written out; the loss after every step.

    `rate` is that of update t = 1, 2, ...
    """

    def total(z):
        drawn = _draw(z)
        f = (x.reshape(-1) @ FEATURE, drawn.reshape(-1) @ FEATURE)
        residual, feature = jnp.abs(x - drawn).sum(), jnp.abs(f[0] - f[1]).sum()
        normality = 1 / (1 + jnp.exp(-(f[1].mean() + 0.5)))
        anogan = (1 - LAMBDA) * residual + LAMBDA * feature
        return GAMMA * anogan + (1 - GAMMA) * (1 - normality)

    gradient = jax.jit(jax.value_and_grad(total))
    m, v, z = np.zeros(LATENT), np.zeros(LATENT), np.float64(z)
    totals, path = [], []
    for t in range(1, steps + 2):
        value, g = gradient(jnp.float32(z))
        totals.append(float(value))
        path.append(z)
        g = np.float64(g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        z = z - rate(t) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        z = z * np.sqrt(LATENT) / np.linalg.norm(z)
    return np.array(totals), np.stack(path)


@pytest.fixture(scope="module")
def found():
    return _search(IMAGES)


def test_the_search_is_the_plain_loop_with_adam_and_keeps_its_best_step(found):
    (start,) = _starts()
    for i, x in enumerate(IMAGES):
        totals, path = _loop(x, start, 12)
        # The loop keeps its state in float64; rounding of one step is carried through eleven.
        np.testing.assert_allclose(found.curve.total[i], totals, rtol=1e-4)
        best = totals.argmin()
        np.testing.assert_allclose(found.latent[i], path[best], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.loss[i], totals[best], rtol=1e-4)


def test_terms_obey_equation_24_at_the_latent_that_is_returned(found):
    for i, x in enumerate(IMAGES):
        best = found.curve.total[i].argmin()
        terms = [term[i, best] for term in found.curve]
        np.testing.assert_allclose(terms, _terms(x, found.latent[i]), rtol=1e-5)
        np.testing.assert_allclose(found.loss[i], terms[0], rtol=1e-6)


def test_gamma_lambda_and_the_mean_reduction_reach_the_terms():
    got = _search(IMAGES[:2], steps=3, gamma=0.9, feature_weight=0.6, reduction="mean")
    for i in range(2):
        want = _terms(IMAGES[i], got.latent[i], gamma=0.9, weight=0.6, mean=True)
        best = got.curve.total[i].argmin()
        np.testing.assert_allclose([term[i, best] for term in got.curve], want, rtol=1e-5)


def test_the_best_step_is_reported_and_a_shorter_run_is_the_beginning_of_a_longer_one(found):
    assert all(term.shape == (8, 13) for term in found.curve)
    # The last evaluation is compiled outside the scan: it may round differently.
    np.testing.assert_allclose(found.loss, found.curve.total.min(axis=1), rtol=1e-5)
    for steps in (0, 5):
        short = _search(IMAGES, steps=steps)
        assert short.curve.total.shape == (8, steps + 1)
        np.testing.assert_allclose(short.curve.total, found.curve.total[:, : steps + 1], rtol=1e-5)
        running = found.curve.total[:, : steps + 1].min(axis=1)
        np.testing.assert_allclose(short.loss, running, rtol=1e-5)
    assert _search(IMAGES, record_curve=False).curve is None


def test_the_cosine_schedule_halves_the_rate_at_half_time_and_ends_at_zero():
    (start,) = _starts()
    got = _search(IMAGES[:3], schedule="cosine", learning_rate=0.3)
    for i in range(3):
        totals, _ = _loop(IMAGES[i], start, 12, lambda t: 0.15 * (1 + np.cos(np.pi * (t - 1) / 12)))
        np.testing.assert_allclose(got.curve.total[i], totals, rtol=1e-4)
    assert _search(IMAGES[:1], steps=0, schedule="cosine").curve.total.shape == (1, 1)


def test_an_initialisation_replaces_the_first_restarts_and_an_empty_one_changes_no_bit(found):
    same = _search(IMAGES, initial=lambda x: jnp.zeros((0, LATENT)))
    jax.tree.map(np.testing.assert_array_equal, same, found)
    z = np.float32(np.random.default_rng(5).standard_normal((1, LATENT)))
    z *= 4.0 / np.linalg.norm(z)
    got = _search(IMAGES[:3], restarts=2, initial=lambda x: jnp.asarray(z))
    second = _starts(restarts=2)
    for i in range(3):
        # The second restart keeps its own latent of the prior, whichever of the two that is.
        curves = np.stack([_loop(IMAGES[i], begin, 12)[0] for begin in (z[0], *second)])
        least = curves.min(axis=1)
        assert any(got.loss[i] == pytest.approx(min(least[0], o), rel=1e-4) for o in least[1:])


@pytest.mark.parametrize(("side", "channels"), [(4, 1), (32, 3)])
def test_the_bank_gives_the_nearest_generated_images_by_brute_force(side, channels):
    weight = np.float32(RNG.standard_normal((LATENT, side * side * channels)) / 4)

    def generate(z):
        return jnp.tanh(z @ weight).reshape(side, side, channels)

    bank = generate_bank(
        generate, KEY, count=50, prior="uniform", latent_size=LATENT, batch_size=16
    )
    np.testing.assert_allclose(np.linalg.norm(bank.latents, axis=1), 4.0, rtol=1e-5)
    assert len(np.unique(bank.latents, axis=0)) == 50
    factor = max(side // 16, 1)

    def small(images):
        shape = (-1, side // factor, factor, side // factor, factor, channels)
        return np.float64(images).reshape(shape).mean(axis=(2, 4))

    drawn = small(np.tanh(np.float64(bank.latents) @ np.float64(weight)))
    for x in RNG.uniform(-1, 1, (6, side, side, channels)).astype(np.float32):
        order = np.square(drawn - small(x)).sum(axis=(1, 2, 3)).argsort()
        got = jax.jit(functools.partial(nearest, count=3))(bank, x)
        np.testing.assert_array_equal(got, np.asarray(bank.latents)[order[:3]])
    for index in (0, 49):
        z = bank.latents[index]
        np.testing.assert_array_equal(nearest(bank, generate(z), 1)[0], z)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_restarts_keep_the_best_of_single_runs_from_every_start_of_the_prior(prior):
    starts = _starts(restarts=3, prior=prior)
    assert starts.shape == (3, LATENT)
    np.testing.assert_allclose(np.linalg.norm(starts, axis=1), 4.0, rtol=1e-5)
    got = _search(IMAGES[:3], restarts=3, prior=prior)
    for i in range(3):
        curves = np.stack([_loop(IMAGES[i], start, 12)[0] for start in starts])
        winner = curves.min(axis=1).argmin()
        np.testing.assert_allclose(got.loss[i], curves.min(), rtol=1e-4)
        np.testing.assert_allclose(got.curve.total[i], curves[winner], rtol=1e-4)


def test_priors_draw_different_starts():
    uniform, normal = (_starts(restarts=64, prior=prior) for prior in ("uniform", "normal"))
    # Kurtosis of a uniform number is 1.8, of a normal one 3; the projection moves both little.
    kurtosis = [(x**4).mean() / (x**2).mean() ** 2 for x in (uniform, normal)]
    assert kurtosis[0] < 2.1 < 2.4 < kurtosis[1]


@pytest.mark.parametrize("restarts", [1, 2])
def test_every_latent_stays_on_the_hypersphere_and_f_of_x_is_computed_once(restarts):
    latents, judged = [], []

    def generate(z):
        jax.debug.callback(lambda value: latents.append(np.asarray(value)), z)
        return _draw(z)

    def judge(x):
        jax.debug.callback(lambda value: judged.append(np.asarray(value)), x)
        return _judge(x)

    result = _search(IMAGES[:2], steps=6, generate=generate, judge=judge, restarts=restarts)
    jax.effects_barrier()
    norms = np.linalg.norm([*latents, *result.latent], axis=-1)
    np.testing.assert_allclose(norms, 4.0, rtol=1e-5)
    assert len(latents) >= 2 * restarts * 7
    for x in IMAGES[:2]:
        assert sum(np.array_equal(x, seen) for seen in judged) == 1


# Steps of a fixed length circle around a kink of |x - G(z)|: these rates keep the circle small.
RATES = {"adam": 0.01, "sgd": 0.01, "rmsprop": 0.01, "adamax": 0.02, "lion": 0.003, "lbfgs": 0.1}


@pytest.mark.parametrize("name", SEARCH_OPTIMIZERS)
def test_every_step_rule_finds_an_image_of_the_generator(name):
    z = np.float32(np.random.default_rng(3).standard_normal((2, LATENT)))
    z *= 4.0 / np.linalg.norm(z, axis=1, keepdims=True)
    drawn = np.stack([_draw(row) for row in z])
    got = _search(drawn, steps=1500, optimizer=name, learning_rate=RATES[name], gamma=1.0)
    start, end = got.curve.residual[:, 0], got.curve.residual.min(axis=1)
    assert (end < 0.05 * start).all(), end / start


def test_any_optax_optimiser_can_be_passed(found):
    same = _search(IMAGES, optimizer="sgd", optimizer_object=optax.adam(0.1))
    np.testing.assert_allclose(same.curve.total, found.curve.total, rtol=1e-5)
    schedule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(0.3, 12))
    )
    other = _search(IMAGES, optimizer_object=schedule)
    assert (other.loss < other.curve.total[:, 0]).all()
    line_search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    other = _search(IMAGES, optimizer_object=line_search)
    assert (other.loss < other.curve.total[:, 0]).all()
    state = make_optimizer(SearchConfig(optimizer="rmsprop")).init(jnp.zeros(LATENT))
    assert jax.tree.structure(state) == jax.tree.structure(
        optax.rmsprop(0.1).init(jnp.zeros(LATENT))
    )


# ---------------------------------------------------------------------------------------------
# With the real networks: neighbours and devices
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks_search():
    """A jitted search of 8 x 8 images with real networks, and eight images."""
    networks = build_networks(
        resolution=8, fading=False, channels=1, fmap_base=64, fmap_max=8, latent_size=LATENT
    )
    params = jax.jit(networks.init)(jax.random.key(7))

    def judge(x):
        out = networks.discriminate(params.discriminator, x[None], stddev=jnp.float32(0.4))
        return Judgement(jax.nn.sigmoid(out.logits[0]), out.logits[0], out.features[4][0])

    run = functools.partial(
        search_latents,
        lambda z: networks.generate(params.generator, z[None])[0],
        judge,
        search=SearchConfig(steps=10, restarts=2, record_curve=True),
        gamma=GAMMA,
        prior="uniform",
        latent_size=LATENT,
    )
    images = np.float32(np.random.default_rng(9).uniform(-1, 1, (8, 8, 8, 1)))
    return jax.jit(run), images


def _rows(result, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], result)


def test_order_padding_and_neighbours_leave_every_bit_of_a_result(networks_search):
    search, images = networks_search
    whole = search(images, KEY)
    order = np.random.default_rng(1).permutation(8)
    padded, strangers = images.copy(), images.copy()
    padded[3:] = 0.0
    strangers[3:] = 50.0 * images[3:] + 7.0
    for other, at, of in (
        (images[order], np.arange(8), order),
        (padded, np.arange(3), np.arange(3)),
        (strangers, np.arange(3), np.arange(3)),
    ):
        jax.tree.map(np.testing.assert_array_equal, _rows(search(other, KEY), at), _rows(whole, of))
