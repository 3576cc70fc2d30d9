"""IR-MNIST puzzles and synthetic surfaces."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jax_noisy_anogan.config import DataConfig, IrMnistConfig, SyntheticConfig
from jax_noisy_anogan.data import ir_mnist, synthetic
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.errors import DataError


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    config = DataConfig(
        name="ir_mnist",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        ir_mnist=IrMnistConfig(generated_images=12, generated_abnormal_images=6, abnormal_digit=3),
    )
    return config, load_dataset(config, resolution=256, progress=False)


def test_puzzles_have_121_cells_and_normal_ones_no_three(puzzles):
    _, dataset = puzzles
    assert dataset.cells.shape == (18, 11, 11)
    normal = dataset.labels == 0
    assert normal.sum() == 12
    assert not (dataset.cells[normal] == 3).any()
    assert set(np.unique(dataset.cells[normal])) == {0, 1, 2, 4, 5, 6, 7, 8, 9}


def test_abnormal_puzzles_hold_a_three_where_the_mask_says(puzzles):
    config, _ = puzzles
    for example in ir_mnist.generated(None, config).examples[12:]:
        mask = example.load().mask
        assert (example.cells == 3).any()
        cells = mask[:220, :220].reshape(11, 20, 11, 20).mean(axis=(1, 3))
        np.testing.assert_array_equal(cells, example.cells == 3)
        assert not mask[220:].any()
        assert not mask[:, 220:].any()


def test_every_cell_shows_a_digit(puzzles):
    config, _ = puzzles
    image = ir_mnist.generated(None, config).examples[0].load().image
    assert image.shape == (224, 224, 1)
    cells = image[:220, :220, 0].reshape(11, 20, 11, 20).max(axis=(1, 3))
    assert (cells > 100).all()
    assert (image[220:] == 0).all()


def test_abnormal_puzzles_are_tested_or_known(puzzles):
    config, dataset = puzzles
    split = make_split(dataset, config)
    assert not split.is_abnormal[split.train_normal].any()
    assert split.is_abnormal[split.test].any()
    assert (~split.is_abnormal[split.test]).any()


def test_the_seed_chooses_the_puzzles():
    def first(seed):
        config = DataConfig(name="ir_mnist", ir_mnist=IrMnistConfig(generated_images=1, seed=seed))
        return ir_mnist.generated(None, config).examples[0].cells

    np.testing.assert_array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def _published(root, cells=None):
    for folder, count in (("train_mnist", 4), ("test_mnist_matrix", 3)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = np.full((224, 224, 3), number * 9 + len(folder), np.uint8)
            Image.fromarray(image).save(root / folder / f"image_{number}.jpg")
    if cells is not None:
        np.savez(root / "test_cell_labels.npz", label=cells)
    return DataConfig(name="ir_mnist", root=str(root), cache_dir=str(root / "cache"))


def test_published_cell_labels_decide_what_is_abnormal(tmp_path):
    cells = np.zeros((3, 11, 11), np.uint8)
    cells[1, 2, 5] = 3
    config = _published(tmp_path, cells)
    dataset = load_dataset(config, resolution=256, progress=False)
    by_id = dict(zip(dataset.ids, dataset.labels, strict=True))
    assert [by_id[f"test_mnist_matrix/image_{k}.jpg"] for k in range(3)] == [0, 1, 0]
    source = ir_mnist.published(tmp_path, config)
    masks = {example.id: example.load().mask for example in source.examples}
    expected = np.zeros((224, 224), bool)
    expected[40:60, 100:120] = True
    np.testing.assert_array_equal(masks["test_mnist_matrix/image_1.jpg"], expected)


def test_cells_and_masks_of_published_images_reach_the_dataset(tmp_path):
    cells = np.random.default_rng(0).integers(0, 10, (3, 11, 11)).astype(np.uint8)
    cells[2][cells[2] == 3] = 4
    dataset = load_dataset(_published(tmp_path, cells), resolution=256, progress=False)
    # Linear interpolation between the centres of 224 pixels at the centres of 256.
    at = np.clip((np.arange(256) + 0.5) * 224 / 256 - 0.5, 0, 223)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(224)))
    for number in range(3):
        row = dataset.ids.index(f"test_mnist_matrix/image_{number}.jpg")
        np.testing.assert_array_equal(dataset.cells[row], cells[number])
        pixels = np.pad(np.kron(cells[number] == 3, np.ones((20, 20), bool)), (0, 4))
        covered = weights @ pixels @ weights.T
        clear = np.abs(covered - 0.5) > 0.01
        np.testing.assert_array_equal(dataset.masks([row], 256)[0][clear], (covered >= 0.5)[clear])
        assert clear.mean() > 0.95
        assert dataset.has_mask[row]
    trained = [i for i, mark in enumerate(dataset.marks) if mark == "train"]
    assert (dataset.cells[trained] == -1).all()
    assert not dataset.masks(trained, 256).any()


@pytest.mark.parametrize("fault", ["name", "size", "text"])
def test_a_bad_published_image_is_named_or_listed(tmp_path, fault):
    config = _published(tmp_path, np.zeros((3, 11, 11), np.uint8))
    bad = tmp_path / "test_mnist_matrix" / ("first.jpg" if fault == "name" else "image_0.jpg")
    if fault == "text":
        bad.write_text("text")
    else:
        Image.new("L", (30, 30) if fault == "size" else (224, 224)).save(bad)
    reason = {"name": "image_12.jpg", "size": "224 x 224", "text": "not an image"}[fault]
    with pytest.raises(DataError, match=reason) as caught:
        load_dataset(config, resolution=16, progress=False)
    assert str(bad) in str(caught.value)
    config.on_bad_image = "skip"
    dataset = load_dataset(config, resolution=16, progress=False)
    assert [item.reason for item in dataset.left_out if item.file == str(bad)]
    assert len(dataset) == 6 + (fault == "name") * 1


def test_published_images_without_cell_labels_are_abnormal_with_unknown_masks(tmp_path):
    dataset = load_dataset(_published(tmp_path), resolution=16, progress=False)
    assert [dataset.labels[i] for i, m in enumerate(dataset.marks) if m == "test"] == [1, 1, 1]
    assert dataset.masks([0], 16) is None


@pytest.mark.parametrize("cells", [np.zeros((3, 9, 9)), np.zeros((2, 11, 11))])
def test_cell_labels_that_do_not_fit_are_named(tmp_path, cells):
    config = _published(tmp_path, cells)
    with pytest.raises(DataError, match="test_cell_labels"):
        ir_mnist.published(tmp_path, config)


@pytest.mark.parametrize("texture", synthetic.TEXTURES)
@pytest.mark.parametrize("kind", synthetic.DEFECTS)
@pytest.mark.parametrize("side", [64, 256])
def test_a_defect_changes_exactly_its_mask_and_less_than_one_percent(texture, kind, side):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        surface = synthetic.draw_surface(texture, side, rng)
        damaged, mask = synthetic.draw_defect(surface, kind, rng)
        np.testing.assert_array_equal(damaged != surface, mask)
        assert 0 < mask.mean() < 0.01


@pytest.mark.parametrize("texture", synthetic.TEXTURES)
def test_large_surfaces_keep_their_defects_small(texture):
    rng = np.random.default_rng(0)
    surface = synthetic.draw_surface(texture, 1024, rng)
    for kind in synthetic.DEFECTS:
        damaged, mask = synthetic.draw_defect(surface, kind, rng)
        np.testing.assert_array_equal(damaged != surface, mask)
        assert 0 < mask.mean() < 0.01


def test_noise_is_what_smoothing_in_space_without_borders_gives():
    drawn = synthetic._noise(128, (24.0, 40.0), np.random.default_rng(3))
    white = np.random.default_rng(3).standard_normal((128, 128), np.float32)
    smooth = ndimage.gaussian_filter(white, [3.0, 5.0], mode="wrap", truncate=8)
    np.testing.assert_allclose(drawn, smooth / smooth.std(), atol=1e-3)


def test_synthetic_surfaces_depend_on_seed_and_number_only(tmp_path):
    first, again = (
        synthetic.synthetic(
            DataConfig(synthetic=SyntheticConfig(images=3, abnormal_images=count)), resolution=32
        ).examples
        for count in (4, 8)
    )
    for a, b in zip(first, again, strict=False):
        np.testing.assert_array_equal(a.load().image, b.load().image)
    assert len({example.load().image.tobytes() for example in again}) == 11
    assert [example.label for example in again] == [0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4]
