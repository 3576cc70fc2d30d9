"""The paper's equations against NumPy, closed forms and finite differences in float64."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance

from jax_noisy_anogan import losses
from jax_noisy_anogan.config import OBJECTIVES, Config, ConfigError, LossConfig, validate
from jax_noisy_anogan.networks import build_networks

LOGITS = st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=5).map(np.array)
GAMMAS = st.floats(0.01, 1.0)
QUICK = hypothesis.settings(deadline=None, max_examples=25)
LOGISTIC = ("equation_15", "equation_18")
# NumPy's log of a probability near 1 keeps no more digits than the probability does.
ROUNDING = 1e-14


def _d(logits):
    """D(x), the probability that x is normal."""
    return 1.0 / (1.0 + np.exp(-logits))


def _loss(objective, real, fake, abnormal, gamma):
    with jax.enable_x64(True):
        return losses.DISCRIMINATOR_LOSSES[objective](
            *(None if a is None else jnp.asarray(a) for a in (real, fake, abnormal)), gamma
        )


# ---------------------------------------------------------------------------------------------
# Training objectives
# ---------------------------------------------------------------------------------------------


@QUICK
@hypothesis.given(LOGITS, LOGITS, LOGITS)
def test_equations_1_16_and_17(real, fake, abnormal):
    value = np.log(_d(real)).mean() + np.log(_d(-fake)).mean()
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            losses.adversarial_value(jnp.asarray(real), jnp.asarray(fake)),
            value,
            rtol=1e-9,
            atol=ROUNDING,
        )
        np.testing.assert_allclose(
            losses.abnormal_value(jnp.asarray(abnormal)),
            np.log(_d(-abnormal)).mean(),
            rtol=1e-9,
            atol=ROUNDING,
        )


def test_d_is_the_probability_of_normal():
    """Figure 2's caption calls abnormal 1; the equations say D = 1 for normal, and they hold."""
    normal, abnormal = jnp.full(3, 5.0), jnp.full(3, -5.0)
    right = losses.discriminator_loss_equation_18(normal, abnormal, abnormal, 0.1).total
    wrong = losses.discriminator_loss_equation_18(abnormal, normal, normal, 0.1).total
    assert right < 0.05 < wrong


@QUICK
@hypothesis.given(LOGITS, LOGITS, LOGITS, GAMMAS)
def test_discriminator_losses_equal_numpy_written_from_the_equations(real, fake, abnormal, gamma):
    log_real = np.log(_d(real)).mean()
    log_fake, log_abnormal = np.log(_d(-fake)).mean(), np.log(_d(-abnormal)).mean()
    expected = {
        "equation_15": -(gamma * (log_real + log_fake) + (1 - gamma) * log_abnormal),
        "equation_18": -(log_real + gamma * log_fake + (1 - gamma) * log_abnormal),
        "wgan_gp": -(real.mean() - gamma * fake.mean() - (1 - gamma) * abnormal.mean()),
    }
    assert set(expected) == set(OBJECTIVES) == set(losses.DISCRIMINATOR_LOSSES)
    for objective, value in expected.items():
        terms = _loss(objective, real, fake, abnormal, gamma)
        np.testing.assert_allclose(terms.total, value, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            terms.real + terms.fake + terms.abnormal, terms.total, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("objective", LOGISTIC)
@pytest.mark.parametrize("abnormal", [None, np.array([7.0, -2.0])])
def test_gamma_1_is_plain_anogan(objective, abnormal):
    real, fake = np.array([0.3, -1.2, 2.0]), np.array([1.5, -0.4])
    value = np.log(_d(real)).mean() + np.log(1.0 - _d(fake)).mean()
    np.testing.assert_allclose(_loss(objective, real, fake, abnormal, 1.0).total, -value)


@QUICK
@hypothesis.given(LOGITS)
def test_generator_losses_equal_numpy(fake):
    with jax.enable_x64(True):
        fake_ = jnp.asarray(fake)
        for objective in LOGISTIC:
            np.testing.assert_allclose(
                losses.GENERATOR_LOSSES[objective](fake_),
                -np.log(_d(fake)).mean(),
                rtol=1e-9,
                atol=ROUNDING,
            )
        np.testing.assert_allclose(
            losses.GENERATOR_LOSSES["wgan_gp"](fake_), -fake.mean(), rtol=1e-9, atol=1e-12
        )
    assert set(losses.GENERATOR_LOSSES) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", LOGISTIC)
def test_confident_mistakes_keep_finite_losses_and_full_gradients(objective):
    wrong = jnp.array([1e4])
    gradient = jax.grad(
        lambda real, fake: losses.DISCRIMINATOR_LOSSES[objective](real, fake, fake, 0.1).total,
        (0, 1),
    )(-wrong, wrong)
    real_weight = 0.1 if objective == "equation_15" else 1.0
    np.testing.assert_allclose(gradient[0], [-real_weight], rtol=1e-6)
    np.testing.assert_allclose(gradient[1], [1.0], rtol=1e-6)
    # Non-saturating: G still learns where D is sure that its images are drawn.
    generator = jax.grad(losses.GENERATOR_LOSSES[objective])(-wrong)
    np.testing.assert_allclose(generator, [-1.0], rtol=1e-6)


# Distributions over five points, in twentieths. The last point holds no abnormal image; the first
# holds so many that p_d >= (1 - gamma) p_an fails at gamma = 0.1, as it does for disjoint classes.
COUNTS_D = np.array([1, 5, 8, 4, 2])
COUNTS_G = np.array([4, 6, 1, 5, 4])
COUNTS_AN = np.array([14, 3, 1, 2, 0])


def _best_discriminator(objective, gamma, counts_d, counts_g, counts_an):
    """D and the loss at its optimum, by descent over one logit per point."""
    points = np.arange(len(counts_d))
    real, fake, abnormal = (jnp.asarray(points.repeat(c)) for c in (counts_d, counts_g, counts_an))

    @jax.jit
    @jax.value_and_grad
    def objective_at(logits):
        terms = losses.DISCRIMINATOR_LOSSES[objective](
            logits[real], logits[fake], logits[abnormal], gamma
        )
        return terms.total

    with jax.enable_x64(True):
        found = scipy.optimize.minimize(
            lambda logits: tuple(np.asarray(v) for v in objective_at(logits)),
            np.zeros(len(points)),
            jac=True,
            method="BFGS",
            options={"gtol": 1e-9},
        )
    return _d(found.x), found.fun


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_the_optimal_discriminator_of_each_objective(gamma):
    p_d, p_g, p_an = (c / c.sum() for c in (COUNTS_D, COUNTS_G, COUNTS_AN))
    p_n = gamma * p_g + (1 - gamma) * p_an
    best = functools.partial(
        _best_discriminator, gamma=gamma, counts_d=COUNTS_D, counts_g=COUNTS_G, counts_an=COUNTS_AN
    )
    np.testing.assert_allclose(best("equation_15")[0], gamma * p_d / (gamma * p_d + p_n), rtol=1e-6)
    np.testing.assert_allclose(best("equation_18")[0], p_d / (p_d + p_n), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_equation_18_leaves_the_generator_with_the_jensen_shannon_divergence(gamma):
    p_d, p_g, p_an = (c / c.sum() for c in (COUNTS_D, COUNTS_G, COUNTS_AN))
    _, loss = _best_discriminator("equation_18", gamma, COUNTS_D, COUNTS_G, COUNTS_AN)
    distance = scipy.spatial.distance.jensenshannon(p_d, gamma * p_g + (1 - gamma) * p_an)
    np.testing.assert_allclose(-loss, 2 * distance**2 - np.log(4.0), rtol=1e-8)


def test_equation_23_subtracts_the_anomalies_from_the_best_generator():
    """p_g* = p_d / gamma - (1 - gamma) / gamma p_an reaches the minimum -log 4 of Eq. 18."""
    gamma, p_d, p_an = 0.5, np.array([8, 6, 4, 2]) / 20, np.array([4, 4, 3, 1]) / 12
    p_g = p_d / gamma - (1 - gamma) / gamma * p_an
    assert (p_g >= 0).all()
    counts = (np.round(60 * p).astype(int) for p in (p_d, p_g, p_an))
    best, loss = _best_discriminator("equation_18", gamma, *counts)
    np.testing.assert_allclose(best, np.full(4, 0.5), rtol=1e-6)
    np.testing.assert_allclose(-loss, -np.log(4.0), rtol=1e-9)


@QUICK
@hypothesis.given(LOGITS, LOGITS, LOGITS, GAMMAS, st.floats(-100.0, 100.0))
def test_a_shift_of_the_balanced_critic_changes_nothing(real, fake, abnormal, gamma, shift):
    """With Eq. 15's weights it would gain (1 - gamma) * shift, without bound."""
    total = _loss("wgan_gp", real, fake, abnormal, gamma).total
    moved = _loss("wgan_gp", real + shift, fake + shift, abnormal + shift, gamma).total
    np.testing.assert_allclose(moved, total, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (LossConfig(objective="hinge"), r"config\.loss\.objective .*equation_18, wgan_gp"),
        (
            LossConfig(objective="wgan_gp_equation_15"),
            r"config\.loss\.objective .*balanced form: .* without bound",
        ),
        (LossConfig(objective="wgan_gp", penalty="r1"), r"config\.loss\.penalty .*gp with wgan_gp"),
    ],
)
def test_no_objective_but_the_known_ones_is_accepted(loss, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config(loss=loss))


# ---------------------------------------------------------------------------------------------
# Penalties
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def quadratic():
    """A critic x'Ax / 2 + b'x, whose gradient Ax + b is known, on images of 2 x 3 pixels."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 6)), rng.standard_normal(6)
    a = a + a.T

    def critic(x):
        flat = x.reshape(len(x), 6)
        return 0.5 * jnp.einsum("ni,ij,nj->n", flat, a, flat) + flat @ b

    return critic, lambda x: x.reshape(-1, 6) @ a + b


def test_r1_is_half_the_mean_squared_gradient(quadratic):
    critic, gradient = quadratic
    x = np.random.default_rng(1).standard_normal((5, 2, 3, 1))
    expected = 0.5 * (gradient(x) ** 2).sum(axis=1).mean()
    with jax.enable_x64(True):
        np.testing.assert_allclose(losses.r1_penalty(critic, jnp.asarray(x)), expected, rtol=1e-9)


def test_gradient_penalty_pulls_the_slope_between_real_and_drawn_to_one(quadratic):
    critic, gradient = quadratic
    rng = np.random.default_rng(2)
    real, fake = rng.standard_normal((2, 5, 2, 3, 1))
    mix = rng.uniform(size=5)
    between = np.stack([m * r + (1 - m) * f for m, r, f in zip(mix, real, fake, strict=True)])
    slope = np.linalg.norm(gradient(between), axis=1)
    with jax.enable_x64(True):
        penalty = losses.wgan_gradient_penalty(critic, *map(jnp.asarray, (real, fake, mix)))
        np.testing.assert_allclose(penalty, ((slope - 1) ** 2).mean(), rtol=1e-9)


def test_gradient_penalty_of_a_flat_critic_is_one_with_a_finite_derivative():
    x, mix = jnp.ones((2, 2, 2, 1)), jnp.full(2, 0.5)

    def penalty(slope):
        return losses.wgan_gradient_penalty(
            lambda images: slope * images.sum(axis=(1, 2, 3)), x, x, mix
        )

    value, derivative = jax.value_and_grad(penalty)(0.0)
    np.testing.assert_allclose(value, 1.0, atol=1e-5)
    assert np.isfinite(derivative)


def test_drift_is_the_mean_square():
    np.testing.assert_allclose(losses.drift_penalty(jnp.array([3.0, -1.0])), 5.0)


# ---------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("gamma", "weight"), [(0.1, 0.1), (0.7, 0.4), (1.0, 0.0)])
def test_search_terms_equal_numpy_written_from_equations_2_to_4_24_and_25(gamma, weight, reduction):
    rng = np.random.default_rng(4)
    x, drawn = rng.uniform(-1, 1, (2, 4, 6, 3))
    f_x, f_drawn = rng.standard_normal((2, 2, 3, 5))
    reduce = getattr(np, reduction)
    residual, feature = reduce(np.abs(x - drawn)), reduce(np.abs(f_x - f_drawn))
    penalty = np.abs(1.0 - _d(0.3))
    anogan = (1 - weight) * residual + weight * feature
    expected = losses.SearchTerms(
        gamma * anogan + (1 - gamma) * penalty, anogan, residual, feature, penalty
    )
    with jax.enable_x64(True):
        terms = losses.search_loss(
            *map(jnp.asarray, (x, drawn, f_x, f_drawn, _d(0.3))),
            gamma=gamma,
            feature_weight=weight,
            reduction=reduction,
        )
    assert terms._fields == expected._fields
    np.testing.assert_allclose(terms, expected, rtol=1e-12)


def test_the_mean_keeps_the_balance_of_the_terms_at_every_resolution():
    small = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 1)).astype(np.float32)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    of = losses.residual_loss
    np.testing.assert_allclose(of(*large, "mean"), of(*small, "mean"), rtol=1e-5)
    np.testing.assert_allclose(of(*large, "sum"), 16 * of(*small, "sum"), rtol=1e-5)


def test_half_precision_features_are_subtracted_and_summed_in_float32():
    f_x = jnp.full((32, 32, 4), 1.0078125, jnp.bfloat16)  # 1 + 2^-7, the next above 1
    total = losses.feature_loss(f_x, jnp.zeros_like(f_x))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, 4096 * 1.0078125, rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Finite differences through the real networks
# ---------------------------------------------------------------------------------------------

ALPHA = 0.3
# Groups of two in batches of four: the minibatch statistic takes part in every derivative.
NETWORKS = build_networks(
    resolution=8,
    fading=True,
    channels=1,
    fmap_base=16,
    fmap_max=4,
    latent_size=4,
    stddev_group=2,
    compute_dtype="float64",
)


@functools.cache
def _setting():
    """Random parameters, images and latents in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(NETWORKS.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    images = dict(
        zip(("real", "fake", "abnormal"), rng.uniform(-1, 1, (3, 4, 8, 8, 1)), strict=True)
    )
    return params, images, rng.standard_normal((4, 4))


def _assert_derivatives_are_those_of_finite_differences(function, tree):
    """Central differences along a random direction of every leaf by itself."""
    rng = np.random.default_rng(1)
    step = 1e-6
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(function))(tree)
        function = jax.jit(function)
        leaves, treedef = jax.tree.flatten(tree)
        slopes = jax.tree.leaves(gradient)
        assert value.dtype == slopes[0].dtype == jnp.float64
        for index, leaf in enumerate(leaves):
            direction = rng.standard_normal(leaf.shape)
            values = [
                function(treedef.unflatten([*leaves[:index], moved, *leaves[index + 1 :]]))
                for moved in (leaf + step * direction, leaf - step * direction)
            ]
            expected = float(values[0] - values[1]) / (2 * step)
            assert np.any(slopes[index])
            np.testing.assert_allclose(
                np.vdot(slopes[index], direction), expected, rtol=1e-5, atol=1e-7
            )


def _critic(params):
    return lambda images: NETWORKS.discriminate(params, images, ALPHA).logits


@pytest.mark.parametrize("objective", ["equation_15", "equation_18"])
def test_derivatives_of_the_discriminator_loss_with_r1(objective):
    params, images, _ = _setting()

    def loss(params):
        critic = _critic(params)
        logits = (critic(images[kind]) for kind in ("real", "fake", "abnormal"))
        terms = losses.DISCRIMINATOR_LOSSES[objective](*logits, 0.1)
        return terms.total + 10.0 * losses.r1_penalty(critic, images["real"])

    _assert_derivatives_are_those_of_finite_differences(loss, params.discriminator)


def test_derivatives_of_the_balanced_wasserstein_loss_with_gradient_penalty_and_drift():
    params, images, _ = _setting()
    mix = np.array([0.1, 0.4, 0.6, 0.9])

    def loss(params):
        critic = _critic(params)
        real, fake, abnormal = (critic(images[kind]) for kind in ("real", "fake", "abnormal"))
        return (
            losses.discriminator_loss_wgan(real, fake, abnormal, 0.1).total
            + 10.0 * losses.wgan_gradient_penalty(critic, images["real"], images["fake"], mix)
            + 0.001 * losses.drift_penalty(real)
        )

    _assert_derivatives_are_those_of_finite_differences(loss, params.discriminator)


@pytest.mark.parametrize("objective", ["equation_18", "wgan_gp"])
def test_derivatives_of_the_generator_loss(objective):
    params, _, z = _setting()

    def loss(generator):
        drawn = NETWORKS.generate(generator, z, ALPHA)
        return losses.GENERATOR_LOSSES[objective](_critic(params.discriminator)(drawn))

    _assert_derivatives_are_those_of_finite_differences(loss, params.generator)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_derivatives_of_the_search_loss_by_the_latent(reduction):
    params, images, z = _setting()

    def judge(image):
        return NETWORKS.discriminate(params.discriminator, image[None], ALPHA, jnp.asarray(0.5))

    def loss(z):
        drawn = NETWORKS.generate(params.generator, z[None], ALPHA)[0]
        judged = judge(drawn)
        return losses.search_loss(
            images["real"][0],
            drawn,
            judge(images["real"][0]).features[4][0],
            judged.features[4][0],
            jax.nn.sigmoid(judged.logits[0]),
            gamma=0.1,
            feature_weight=0.1,
            reduction=reduction,
        ).total

    _assert_derivatives_are_those_of_finite_differences(loss, z[0])
