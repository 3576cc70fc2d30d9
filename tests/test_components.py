"""Principal components of normal images, against NumPy written from the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.decomposition import PCA

from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.scoring import components
from jax_noisy_anogan.scoring.components import folds

SIDE = 32


def _images(count, seed, channels=1, side=SIDE):
    """Mixtures of six patterns, and a little noise."""
    patterns = np.random.default_rng(7).normal(size=(6, side, side, channels))
    patterns = ndimage.gaussian_filter(patterns, (0, 2, 2, 0), mode="wrap")
    rng = np.random.default_rng(seed)
    mixed = np.einsum("nk,kyxc->nyxc", rng.uniform(-1, 1, (count, 6)), patterns / patterns.std())
    levels = 128.0 + 25.0 * mixed + rng.normal(scale=2.0, size=mixed.shape)
    return np.clip(levels, 0, 255).astype(np.uint8)


def _rows(images, factor=1):
    """Local contrast of the averages of blocks, flat."""
    n, side, _, channels = images.shape
    blocks = images.reshape(n, side // factor, factor, side // factor, factor, channels)
    small = np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)
    contrast = np.stack([local_contrast(image, 1 / 8) for image in small])
    return ((contrast.astype(float) - 128) / 127).reshape(n, -1)


def _smoothed(squares, channels):
    side = round(np.sqrt(squares.shape[1] / channels))
    planes = squares.reshape(-1, side, side, channels).mean(axis=-1)
    return ndimage.gaussian_filter(planes, (0, 2, 2), mode="reflect")


def _left(training, rows):
    """Squared distance to the affine hull of all axes, by scikit-learn's exact decomposition."""
    pca = PCA(len(training) - 1, svd_solver="full").fit(training)
    return np.square(rows - pca.inverse_transform(pca.transform(rows)))


@pytest.mark.parametrize(("channels", "side"), [(1, SIDE), (3, SIDE), (1, 128)])
def test_what_is_left_counts_in_deviations_of_images_left_out(channels, side):
    normal, shown = (_images(n, seed, channels, side) for n, seed in ((24, 0), (5, 1)))
    factor = max(side // 64, 1)
    known = _rows(normal, factor)
    usual = np.concatenate(
        [_smoothed(_left(known[rest], known[fold]), channels) for rest, fold in folds(normal)]
    )
    mean, spread = usual.mean(axis=0), usual.var(axis=0)
    spread = np.sqrt(ndimage.gaussian_filter(spread, 2, mode="reflect") + 0.01 * spread.mean())
    expected = (_smoothed(_left(known, _rows(shown, factor)), channels) - mean) / spread
    built = components.fit(normal)
    found = components.unusual(built, jnp.asarray(shown))
    # Of the randomised decomposition in float32, in deviations.
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(("count", "kept"), [(3, 2), (5, 4), (120, 100)])
def test_there_are_at_most_a_hundred_axes_and_one_fewer_than_images(count, kept):
    axes = components.fit(_images(count, 0)).axes
    assert axes.shape == (kept, SIDE**2)
    np.testing.assert_allclose(axes @ axes.T, np.eye(kept), atol=1e-4)


def test_a_part_in_the_wrong_place_stands_out_though_its_patches_are_normal():
    """A stripe that is always on the left, and once on the right."""
    normal = _images(30, 2)
    normal[:, :, 4:8] = 255
    shown = _images(2, 3)
    shown[0, :, 4:8], shown[1, :, 24:28] = 255, 255
    found = np.asarray(components.unusual(components.fit(normal), jnp.asarray(shown)))
    assert found[1].max() > 10 * found[0].max()


def test_an_image_is_judged_to_the_bit_the_same_wherever_it_stands():
    built = components.fit(_images(30, 0, channels=3))
    judge = jax.jit(components.unusual)
    shown = jnp.asarray(_images(16, 1, channels=3))
    together = np.asarray(judge(built, shown))
    for places in (3, 8):
        moved = np.asarray(judge(built, jnp.roll(shown, places, axis=0)))
        np.testing.assert_array_equal(np.roll(moved, -places, axis=0), together)


def test_a_thumbnail_holds_the_mean_of_what_every_pixel_covers():
    image = np.random.default_rng(0).integers(0, 256, (160, 100, 3), np.uint8)
    # Each pixel twice and 16 times: 64 x 64 blocks of 5 x 25.
    fine = np.repeat(np.repeat(image, 16, axis=1), 2, axis=0).astype(float)
    expected = fine.reshape(64, 5, 64, 25, 3).mean(axis=(1, 3))
    found = components.thumbnail(image, 128)
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-3)
    compiled = np.asarray(
        jax.jit(components.thumbnail, static_argnames="tile")(jnp.asarray(image), tile=64)
    )
    assert np.abs(compiled.astype(int) - found).max() <= 1
    assert (compiled != found).mean() < 0.01
    small = image[:32, :32]
    np.testing.assert_array_equal(components.thumbnail(small, 32), small)
    larger = components.thumbnail(np.full((20, 48, 1), 77, np.uint8), 64)
    np.testing.assert_array_equal(larger, np.full((64, 64, 1), 77, np.uint8))
    square = components.thumbnail(np.full((48, 48, 1), 77, np.uint8), 64)
    np.testing.assert_array_equal(square, larger)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (_images(2, 0), "2 images: at least 3"),
        (np.repeat(_images(1, 0), 6, axis=0), "6 images that are all the same"),
    ],
)
def test_images_without_components_are_refused(images, complaint):
    with pytest.raises(ValueError, match=complaint):
        components.fit(images)
