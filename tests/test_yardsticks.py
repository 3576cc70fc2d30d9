"""Yardsticks: each against its definition in NumPy, and on surfaces with planted defects."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan.baselines import yardsticks
from jax_noisy_anogan.baselines.yardsticks import KNOWN_DEFECTS, UNSUPERVISED
from jax_noisy_anogan.data.frame import enlarged
from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.scoring.components import folds

SIDE = 32
ALL = UNSUPERVISED | KNOWN_DEFECTS


PATTERNS = ndimage.gaussian_filter(
    np.random.default_rng(7).normal(size=(5, SIDE, SIDE)), (0, 2, 2), mode="wrap"
)


def _surfaces(count, seed, defects=0):
    """Mixtures of five patterns; the last `defects` bear a dark checkerboard. And masks."""
    rng = np.random.default_rng(seed)
    mixed = np.einsum("nk,kyx->nyx", rng.uniform(-1.5, 1.5, (count, 5)), PATTERNS / PATTERNS.std())
    images = 128.0 + 12.0 * mixed + rng.normal(scale=2.0, size=mixed.shape)
    masks = np.zeros((count, SIDE, SIDE), bool)
    for k in range(count - defects, count):
        y, x = rng.integers(2, SIDE - 8, 2)
        masks[k, y : y + 6, x : x + 6] = True
        images[k, y : y + 6, x : x + 6] -= 80.0 * (np.add.outer(np.arange(6), np.arange(6)) % 2)
    return np.clip(images, 0, 255).astype(np.uint8)[..., None], masks


NORMAL, _ = _surfaces(40, seed=0)
KNOWN, MASKS = _surfaces(8, seed=1, defects=8)
TEST, TEST_MASKS = _surfaces(30, seed=2, defects=15)
DEFECTIVE = np.arange(30) >= 15


@pytest.fixture(scope="module")
def judged():
    return {name: f(NORMAL, KNOWN, TEST, seed=0, masks=MASKS) for name, f in ALL.items()}


@pytest.mark.parametrize("name", ["PCA residual", "nearest patch", "known defects"])
def test_planted_defects_are_found_and_located(judged, name):
    found = judged[name]
    assert roc_auc_score(DEFECTIVE, found.scores) > 0.95
    whole = np.stack([enlarged(map, (SIDE, SIDE)) for map in found.maps])
    assert roc_auc_score(TEST_MASKS.ravel(), whole.ravel()) > 0.95


def test_brightness_is_the_distance_of_means_and_sees_no_defect(judged):
    means, tested = NORMAL.reshape(40, -1).mean(1), TEST.reshape(30, -1).mean(1)
    np.testing.assert_allclose(
        judged["brightness"].scores, abs(tested - means.mean()) / (means.std() + 0.01), rtol=1e-6
    )
    assert judged["brightness"].maps is None
    brighter = np.concatenate([TEST[:15], TEST[:15] // 2])
    scores = yardsticks.brightness(NORMAL, KNOWN, brighter, seed=0).scores
    assert roc_auc_score(DEFECTIVE, scores) == 1.0


def _outside_the_span(training, images):
    """Squared distance per pixel to the affine hull, by least squares."""
    centre = training.mean(axis=0)
    basis = (training - centre).T
    left = (images - centre).T
    return np.square(left - basis @ np.linalg.lstsq(basis, left, rcond=1e-6)[0]).T


def test_residuals_are_those_off_the_components_in_deviations_of_images_left_out(judged):
    """With fewer images than components they span all that the images hold."""

    def rows(images):
        contrast = np.stack([local_contrast(image, 1 / 8) for image in images])
        return ((contrast.astype(float) - 128) / 127).reshape(len(images), -1)

    def maps(squares):
        planes = squares.reshape(-1, SIDE, SIDE)
        return ndimage.gaussian_filter(planes, (0, 2, 2), mode="reflect")

    known, tested = rows(NORMAL), rows(TEST)
    cross = [maps(_outside_the_span(known[rest], known[fold])) for rest, fold in folds(NORMAL)]
    usual = np.concatenate(cross)
    variance = ndimage.gaussian_filter(usual.var(axis=0), 2, mode="reflect")
    spread = np.sqrt(variance + 0.01 * usual.var(axis=0).mean())
    expected = (maps(_outside_the_span(known, tested)) - usual.mean(axis=0)) / spread
    # Of the randomised decomposition in float32, in deviations.
    np.testing.assert_allclose(judged["PCA residual"].scores, expected.max((1, 2)), atol=0.05)
    np.testing.assert_allclose(judged["PCA residual"].maps, expected, atol=0.05)


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_judged_by_itself_and_the_same_again(judged, name):
    alone = ALL[name](NORMAL, KNOWN, TEST[20:21], seed=0, masks=MASKS)
    # Sums of other lengths round otherwise.
    np.testing.assert_allclose(alone.scores, judged[name].scores[20:21], rtol=1e-4)


def test_near_duplicates_share_a_fold():
    pairs = np.repeat(NORMAL[:20], 2, axis=0)
    pairs[1::2] = pairs[1::2] // 2 + 60  # the same parts under other light
    tested = []
    for rest, fold in folds(pairs):
        assert not set(rest) & set(fold)
        assert len(rest) + len(fold) == 40
        assert set(fold // 2) == set(fold[fold % 2 == 0] // 2) == set(fold[fold % 2 == 1] // 2)
        tested += list(fold)
    assert sorted(tested) == list(range(40))


def test_parts_that_all_look_alike_are_dealt_one_by_one():
    rng = np.random.default_rng(3)
    alike = np.repeat(NORMAL[:1], 10, axis=0) + rng.integers(0, 3, (10, SIDE, SIDE, 1), np.uint8)
    assert [len(fold) for _, fold in folds(alike)] == [3, 3, 2, 2]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"normal": NORMAL[:3]}, "3 normal training"),
        ({"test": TEST[:0]}, "0 test images"),
        ({"test": TEST[:, :16, :16]}, "one shape"),
        ({"normal": NORMAL.astype(np.float32)}, "uint8"),
        ({"masks": MASKS[:2]}, "masks of"),
        ({"normal": np.repeat(NORMAL[:1], 9, axis=0)}, "all normal training images are the same"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(name, change, complaint):
    parts = {"normal": NORMAL, "abnormal": KNOWN, "test": TEST, "masks": MASKS, **change}
    with pytest.raises(DataError, match=complaint):
        ALL[name](**parts)


@pytest.mark.parametrize("masks", [None, MASKS & False])
def test_a_classifier_without_a_mask_is_refused(masks):
    with pytest.raises(DataError, match="mask"):
        KNOWN_DEFECTS["known defects"](NORMAL, KNOWN, TEST, masks=masks)
