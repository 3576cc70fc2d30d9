"""Maps against SciPy and NumPy, tiles against the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jax_noisy_anogan.data.frame import enlarged
from jax_noisy_anogan.data.preprocess import pad_to_tile
from jax_noisy_anogan.scoring import maps as maps_lib
from jax_noisy_anogan.scoring import tiles as tiles_lib
from jax_noisy_anogan.scoring.calibration import CalibrationError


def test_the_pixel_difference_is_the_mean_over_channels():
    x, drawn = np.random.default_rng(0).uniform(-1, 1, (2, 3, 5, 4, 3)).astype(np.float32)
    found = maps_lib.pixel_difference(x, drawn)
    np.testing.assert_allclose(found, np.abs(x - drawn).mean(axis=3), rtol=1e-6)
    ones = jnp.ones((2, 2, 1))
    np.testing.assert_array_equal(maps_lib.pixel_difference(ones, -ones), np.full((2, 2), 2.0))


def test_the_attribution_is_that_of_integrated_gradients_in_closed_form():
    rng = np.random.default_rng(3)
    x, drawn, weight, curve = rng.normal(size=(4, 5, 6, 2)).astype(np.float32)

    def logit(image):
        return (weight * image + curve * image**2).sum()

    # The gradient is linear along the line, so that the midpoint rule is exact.
    expected = np.abs(weight * (x - drawn) + curve * (x**2 - drawn**2)).sum(axis=-1)
    np.testing.assert_allclose(
        maps_lib.attribution(logit, x, drawn, steps=3), expected, rtol=1e-4, atol=1e-5
    )


def test_the_attribution_of_a_curved_logit_adds_up_to_the_difference_of_logits():
    rng = np.random.default_rng(4)
    drawn = rng.normal(size=(5, 6, 1)).astype(np.float32)
    x = drawn + np.abs(rng.normal(size=drawn.shape)).astype(np.float32)
    weight = np.abs(rng.normal(size=drawn.shape)).astype(np.float32) / 10

    def logit(image):  # rising in every pixel, so that no part cancels another
        return jnp.tanh((weight * image).sum())

    total = maps_lib.attribution(logit, x, drawn, steps=64).sum()
    np.testing.assert_allclose(total, logit(x) - logit(drawn), rtol=1e-3)


@pytest.mark.parametrize("sigma", [0.0, 0.8, 3.0])
def test_smoothing_is_that_of_scipy(sigma):
    maps = np.random.default_rng(0).uniform(size=(2, 20, 13)).astype(np.float32)
    expected = ndimage.gaussian_filter(maps, (0, sigma, sigma))
    found = jax.jit(lambda m: maps_lib.smooth(m, sigma=sigma))(maps)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def _normal_maps(count=200, seed=0):
    """Pixels of very different usual difference and spread, in two halves."""
    rng = np.random.default_rng(seed)
    maps = 0.1 + 0.01 * rng.normal(size=(count, 24, 32))
    maps[:, :, 16:] = 0.5 + 0.1 * rng.normal(size=(count, 24, 16))
    return maps.astype(np.float32)


def _fit(maps, *, without=None, **settings):
    moments = maps_lib.MapMoments(**settings)
    for one in maps:
        moments.add(one)
    return moments.calibration(None if without is None else moments.of(*without))


@pytest.mark.parametrize("per_pixel", [True, False])
def test_statistics_without_a_map_are_those_of_the_other_maps(per_pixel):
    maps = _normal_maps(6) ** 2
    for numbers in ([0], [3], [5, 1], [0, 1, 2, 4]):
        left = _fit(maps, without=maps[numbers], sigma=1.0, per_pixel=per_pixel)
        others = _fit(np.delete(maps, numbers, axis=0), sigma=1.0, per_pixel=per_pixel)
        np.testing.assert_allclose(left.mean, others.mean, rtol=1e-5)
        np.testing.assert_allclose(left.std, others.std, rtol=1e-4)


def test_an_enlarged_map_keeps_its_place_and_is_linear_between_pixels():
    heat = np.zeros((4, 6), np.float32)
    heat[1, 2] = 1.0
    large = enlarged(heat, (40, 120))
    assert large.shape == (40, 120)
    y, x = np.unravel_index(np.argmax(large), large.shape)
    assert (y // 10, x // 20) == (1, 2)
    ramp = np.broadcast_to(np.arange(6.0), (4, 6))
    inner = enlarged(ramp, (8, 60))[:, 10:50]
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.1, atol=1e-6)


def test_the_statistics_are_those_of_numpy():
    maps = _normal_maps(30)
    smoothed = ndimage.gaussian_filter(maps.astype(float), (0, 1, 1))
    found = _fit(iter(maps), sigma=1.0)
    variance = ndimage.gaussian_filter(smoothed.var(axis=0), 1) + 0.01 * smoothed.var(axis=0).mean()
    np.testing.assert_allclose(found.mean, smoothed.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-4)
    found = _fit(maps, sigma=1.0, per_pixel=False)
    np.testing.assert_allclose(found.mean, smoothed.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.std, np.sqrt(1.01 * smoothed.var()), rtol=1e-5)


def test_normal_maps_are_standard_and_quiet_pixels_reveal_small_defects():
    calibration = _fit(_normal_maps(), sigma=1.0)
    new = _normal_maps(50, seed=1)
    calibrated = maps_lib.calibrated_map(new, calibration, sigma=1.0)
    assert np.abs(calibrated.mean()) < 0.05
    assert calibrated[:, :, 20:28].std() == pytest.approx(1.0, abs=0.1)
    # 0.2 more than usual is far below the loud half's usual difference.
    defective = new[:1].copy()
    defective[0, 10:14, 4:8] += 0.2
    assert defective[0, 10:14, 4:8].mean() < new[0, :, 16:].mean()
    heat = maps_lib.calibrated_map(defective, calibration, sigma=1.0)[0]
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    assert 10 <= y < 14
    assert 4 <= x < 8


def test_a_pixel_that_never_changed_raises_no_infinite_alarm():
    maps = _normal_maps(20)
    maps[:, :, :16] = 0.0
    calibration = _fit(maps, sigma=0.0)
    heat = maps_lib.calibrated_map(maps[0] + 0.01, calibration, sigma=0.0)
    expected = 0.01 / (0.1 * np.sqrt(maps.var(axis=0).mean()))
    np.testing.assert_allclose(heat[:, :16], expected, rtol=1e-4)


def test_calibrations_that_cannot_be_are_refused():
    fit = _fit
    with pytest.raises(ValueError, match="no map"):
        fit([], sigma=1.0)
    with pytest.raises(ValueError, match="use per_pixel=False"):
        fit([np.zeros((4, 4)), np.zeros((4, 5))], sigma=1.0)
    with pytest.raises(ValueError, match="maps that differ"):
        fit(np.zeros((3, 4, 4)), sigma=1.0)
    mixed = fit([np.zeros((4, 4)), np.ones((6, 5))], sigma=1.0, per_pixel=False)
    assert mixed.mean == pytest.approx(30 / 46)
    calibration = fit(np.arange(32.0).reshape(2, 4, 4), sigma=1.0)
    with pytest.raises(ValueError, match="equal sizes"):
        maps_lib.calibrated_map(jnp.zeros((5, 5)), calibration, sigma=1.0)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((64, 64), 16, 4), ((65, 47), 16, 0), ((16, 90), 16, 15)]
)
def test_tiles_cover_the_image_and_overlap(size, tile, overlap):
    positions = tiles_lib.tile_positions(*size, tile, overlap)
    covered = np.zeros(size, int)
    for top, left in positions:
        assert 0 <= top <= size[0] - tile
        assert 0 <= left <= size[1] - tile
        covered[top : top + tile, left : left + tile] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        starts = np.unique(positions[:, axis])
        assert (tile - np.diff(starts) >= overlap).all()
        assert len(starts) == 1 + np.ceil((size[axis] - tile) / (tile - overlap))


@pytest.mark.parametrize("size", [(40, 40), (33, 57), (16, 16), (9, 30), (3, 5)])
@pytest.mark.parametrize("overlap", [0, 5])
def test_blended_tiles_are_the_image_again(size, overlap):
    image = np.random.default_rng(0).uniform(-1, 1, (*size, 3)).astype(np.float32)
    positions = tiles_lib.tile_positions(*size, 16, overlap)
    tiles = tiles_lib.cut_tiles(image, positions, 16)
    assert tiles.shape == (len(positions), 16, 16, 3)
    found = tiles_lib.blend_tiles(tiles, positions, size)
    np.testing.assert_allclose(found, image, atol=1e-7)
    # The weights add up to exactly one: constant tiles blend to the constant.
    ones = tiles_lib.blend_tiles(np.ones((len(positions), 16, 16)), positions, size)
    np.testing.assert_array_equal(ones, np.ones(size, np.float32))


def test_blending_hides_the_seam():
    positions = tiles_lib.tile_positions(16, 24, 16, 8)
    found = tiles_lib.blend_tiles([np.zeros((16, 16)), np.ones((16, 16))], positions, (16, 24))
    np.testing.assert_array_equal(found[:, :8], 0.0)
    np.testing.assert_array_equal(found[:, 16:], 1.0)
    steps = np.diff(found, axis=1)
    assert (steps >= 0).all()
    assert steps.max() < 0.25


def test_small_images_are_continued_by_reflection():
    image = np.arange(3.0)[:, None] * np.ones((1, 4))
    padded = pad_to_tile(image, 6)
    assert padded.shape == (6, 6)
    assert padded[:, 0].tolist() == [0, 1, 2, 1, 0, 1]


def test_wrong_tiles_are_refused():
    with pytest.raises(ValueError, match="overlap from 0 to below the tile"):
        tiles_lib.tile_positions(64, 64, 16, 16)
    with pytest.raises(ValueError, match="uncovered"):
        tiles_lib.blend_tiles(np.ones((1, 8, 8)), np.array([[0, 0]]), (8, 12))
    with pytest.raises(ValueError, match="shorter"):
        tiles_lib.blend_tiles(np.ones((1, 8, 8)), np.array([[0, 0], [0, 4]]), (8, 12))


@pytest.mark.parametrize(
    ("mean", "std", "complaint"),
    [
        (np.zeros(()), np.ones(()), "float32"),
        (np.zeros((4, 4), np.float32), np.full((4, 4), np.nan, np.float32), "finite"),
        (np.zeros((4, 4), np.float32), np.ones((), np.float32), "do not fit"),
        (np.zeros(4, np.float32), np.ones(4, np.float32), "do not fit"),
        (np.zeros((), np.float32), np.zeros((), np.float32), "not positive"),
    ],
)
def test_statistics_that_no_fit_gives_are_refused_in_one_line(tmp_path, mean, std, complaint):
    """With a deviation of nan every decision would be `normal`."""
    path = tmp_path / "map_calibration.npz"
    np.savez(path, mean=mean, std=std)
    with pytest.raises(CalibrationError, match=complaint) as caught:
        maps_lib.load_maps(path)
    assert "\n" not in str(caught.value)
