"""Pictures: every pixel where it belongs."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan import pictures


def _images(count, height, width, channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 250, (count, height, width, channels), dtype=np.uint8)


def test_the_grid_holds_every_image_enlarged_and_white_elsewhere():
    images = _images(5, 2, 3, 1)
    grid = pictures.image_grid(images, 3, border=1, scale=2)
    assert grid.shape == (2 * (4 + 1) + 1, 3 * (6 + 1) + 1, 1)
    expected = np.full_like(grid, 255)
    for number in range(5):
        top, left = 1 + 5 * (number // 3), 1 + 7 * (number % 3)
        expected[top : top + 4, left : left + 6] = np.kron(
            images[number], np.ones((2, 2, 1), np.uint8)
        )
    np.testing.assert_array_equal(grid, expected)


def test_a_grid_without_border_is_the_images_themselves():
    images = _images(4, 2, 2, 3)
    grid = pictures.image_grid(images, 2, border=0)
    np.testing.assert_array_equal(grid[2:, 2:], images[3])
    assert grid.shape == (4, 4, 3)
    assert pictures.image_grid(images, 9, border=0).shape == (2, 8, 3)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="0 images"):
        pictures.image_grid(_images(0, 2, 2, 1), 2)


def test_labelled_rows_hold_the_images_and_ink_beside_them():
    grey, rgb = _images(3, 32, 32, 1), _images(3, 32, 32, 3, seed=1)
    sheet = pictures.rows_of_images([grey, rgb], ["input", "reconstruction"])
    tall = 2 * 32 + 4
    assert sheet.shape[0] == 2 * tall
    strip = sheet[tall:, -(3 * 66 + 2) :]
    for number in range(3):
        found = strip[2 : 2 + 64, 2 + 66 * number : 2 + 66 * number + 64]
        np.testing.assert_array_equal(found[::2, ::2], rgb[number])
    for row in range(2):
        assert (sheet[row * tall : (row + 1) * tall, : -(3 * 66 + 2)] < 128).any()


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="one label per row"):
        pictures.rows_of_images([_images(2, 8, 8, 1), _images(3, 8, 8, 1)], ["a", "b"])
    with pytest.raises(ValueError, match="one label per row"):
        pictures.rows_of_images([_images(2, 8, 8, 1)], ["a", "b"])


def test_colours_are_those_of_matplotlib():
    difference = np.array([[0.0, 0.5], [1.0, 3.0]])
    found = pictures.difference_image(difference, high=1.0)
    wanted = matplotlib.colormaps["inferno"](np.array([[0.0, 0.5], [1.0, 1.0]]), bytes=True)
    assert np.abs(found.astype(int) - wanted[..., :3]).max() <= 1
    batch = pictures.difference_image(np.stack([difference, difference]), high=1.0)
    np.testing.assert_array_equal(batch[1], found)


def test_the_overlay_leaves_the_image_where_the_map_is_low():
    image, heat = _images(1, 8, 8, 1)[0], np.zeros((8, 8))
    heat[2, 3] = 5.0
    found = pictures.overlay(image, heat, low=1.0, high=2.0)
    untouched = heat == 0
    np.testing.assert_array_equal(found[untouched], np.repeat(image, 3, axis=-1)[untouched])
    red, green, blue = found[2, 3].astype(int)
    assert red > green
    assert red > blue


def test_the_contour_runs_around_the_region():
    image, heat = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9))
    heat[3:6, 3:6] = 1.0
    found = pictures.overlay(image, heat, low=2.0, high=3.0, contour_at=0.5)
    white = (found == 255).all(axis=-1)
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True
    expected[3:6, 3:6] = False
    np.testing.assert_array_equal(white, expected)
    assert (image == 0).all()


def test_wrong_ranges_and_sizes_are_refused():
    with pytest.raises(ValueError, match="low below high"):
        pictures.overlay(np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4)), low=1.0, high=1.0)
    with pytest.raises(ValueError, match="same size"):
        pictures.overlay(np.zeros((4, 4, 1), np.uint8), np.zeros((5, 4)), low=0.0, high=1.0)


def test_the_histogram_shows_each_class_share_of_pixels(tmp_path):
    normal, abnormal = np.full((3, 4, 4), 0.01), np.full((2, 4, 4), 0.01)
    abnormal[0, :2] = 0.59
    figure = pictures.difference_histogram_figure(normal, abnormal)
    outlines = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    shares = [patch.get_data().values for patch in outlines]
    assert shares[0][1] == 1.0
    assert (shares[1][1], shares[1][-1]) == (0.75, 0.25)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["normal (mean 0.010)", "abnormal (mean 0.155)"]
    figure.savefig(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size == (640, 400)
    pictures.difference_histogram_figure(normal, abnormal[:0])


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_pictures_read_back_equal(tmp_path, channels):
    picture = _images(1, 5, 7, channels)[0]
    pictures.save_png(tmp_path / "picture.png", picture)
    read = np.asarray(Image.open(tmp_path / "picture.png"))
    np.testing.assert_array_equal(read.reshape(picture.shape), picture)


def test_float_maps_read_back_equal(tmp_path):
    heat = np.random.default_rng(0).normal(size=(5, 7))
    pictures.save_float_tiff(tmp_path / "map.tiff", heat)
    read = np.asarray(Image.open(tmp_path / "map.tiff"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, heat.astype(np.float32))
