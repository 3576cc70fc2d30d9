"""The memory of normal patches, against brute force and closed forms in NumPy."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan.runtime import files
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.scoring.components import Components
from jax_noisy_anogan.scoring.maps import MapCalibration
from jax_noisy_anogan.scoring.memory import Memory, build, distance_map, distances, joined

PLACES, WIDTH = 4, 3
# |a - b|^2 comes from three float32 sums of numbers near 1: sqrt(3 * 1.2e-7) at worst, at 0.
TOLERANCE = 1e-3


def _features(count, seed=0, places=PLACES):
    rng = np.random.default_rng(seed)
    # Features of unlike size, as those of two networks are.
    return rng.normal(size=(count, places, places, WIDTH)).astype(np.float32) * [1.0, 10.0, 0.1]


NORMAL, SHOWN = _features(6), _features(5, seed=1)
COMPONENTS = Components(
    jnp.zeros(16), jnp.ones((2, 16)), MapCalibration(jnp.zeros((4, 4)), jnp.ones((4, 4)))
)


def _brute_force(normal, shown, margin=None, blocks=1):
    """Distance of every place to every allowed normal patch, one pair at a time."""
    normal, shown = (f / normal.std(axis=(0, 1, 2)) / np.sqrt(WIDTH) for f in (normal, shown))
    found = np.empty(shown.shape[:3])
    step = normal.shape[1] // blocks
    for n, y, x in np.ndindex(found.shape):
        best = np.inf
        for k, v, u in np.ndindex(normal.shape[:3]):
            inside = all(
                step * (p // step) - (margin or 0) <= q < step * (p // step + 1) + (margin or 0)
                for p, q in ((y, v), (x, u))
            )
            if inside:
                best = min(best, np.linalg.norm(shown[n, y, x] - normal[k, v, u]))
        found[n, y, x] = best
    return found


def test_distances_are_those_of_a_search_through_all_pairs():
    memory = build(NORMAL, size=10**6)
    assert memory.patches.shape == (1, 1, NORMAL[..., 0].size, WIDTH)
    np.testing.assert_allclose(
        distances(memory, jnp.asarray(SHOWN)), _brute_force(NORMAL, SHOWN), atol=TOLERANCE
    )


@pytest.mark.parametrize("margin", [0, 1])
def test_aligned_parts_are_compared_with_nearby_places_only(margin):
    memory = build(NORMAL, size=10**6, blocks=2, margin=margin)
    near = (PLACES // 2 + margin) ** 2
    assert memory.patches.shape == (2, 2, len(NORMAL) * near, WIDTH)
    np.testing.assert_allclose(
        distances(memory, jnp.asarray(SHOWN)),
        _brute_force(NORMAL, SHOWN, margin, blocks=2),
        atol=TOLERANCE,
    )


def test_a_patch_that_is_normal_elsewhere_is_abnormal_in_its_block():
    """A left half of zeros and a right half of ones; the tested image has them swapped."""
    normal = np.zeros((2, 4, 4, 1), np.float32)
    normal[:, :, 2:] = 1.0
    swapped = jnp.asarray(1.0 - normal)
    assert distances(build(normal, size=8), swapped).max() == pytest.approx(0.0, abs=TOLERANCE)
    # One unit is two standard deviations of halves of zeros and ones.
    found = distances(build(normal, size=8, blocks=2), swapped)
    np.testing.assert_allclose(found, 2.0, atol=TOLERANCE)


def test_the_core_set_is_that_of_greedy_k_centre():
    points = np.random.default_rng(2).normal(size=(40, WIDTH)).astype(np.float32)
    chosen = [int(np.argmin(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
    while len(chosen) < 7:
        nearest = np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(axis=1)
        chosen.append(int(np.argmax(nearest)))
    found = memory_lib._core_set(jnp.asarray(points), 7)
    np.testing.assert_array_equal(found, points[chosen])


def test_a_small_core_set_reaches_all_clusters():
    """Of a thousand patches of one kind and one each of three others, four suffice."""
    rng = np.random.default_rng(3)
    common = rng.normal(scale=0.01, size=(1, 32, 32, 2))
    common[0, 0, :3] += [[5, 0], [0, 5], [-5, -5]]
    memory = build(common.astype(np.float32), size=4)
    scale = np.sqrt(2.0) * common.std(axis=(0, 1, 2))
    assert distances(memory, jnp.asarray(common, jnp.float32)).max() < (0.1 / scale).max()


def test_a_map_has_the_images_resolution_and_is_linear_between_places():
    memory = build(NORMAL, size=40)
    found = np.asarray(distance_map(memory, jnp.asarray(SHOWN), 2 * PLACES))
    places = np.asarray(distances(memory, jnp.asarray(SHOWN)))
    # The centre of a pixel lies a quarter of a place from that of its own, at the border beyond.
    own, other = np.repeat(np.arange(PLACES), 2), [0, 1, 0, 2, 1, 3, 2, 3]

    def halfway(values):
        return 0.75 * values[:, own] + 0.25 * values[:, other]

    wanted = halfway(halfway(places).transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_random_features_are_rectified_projections():
    images = np.random.default_rng(6).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    found = np.asarray(memory_lib.random_features(jnp.asarray(images), places=4, seed=9))
    assert found.shape == (2, 4, 4, 3 * 12)
    level = (images[1, ..., 0].astype(np.float32) - 128) / 127
    for scale in range(3):
        kernels = np.random.Generator(np.random.PCG64(9 + scale)).standard_normal((5, 5, 1, 12))
        kernels /= np.sqrt((kernels**2).sum(axis=(0, 1, 2)))
        wide = np.pad(level, 2, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5))
        projected = np.maximum(np.einsum("yxij,ijk->yxk", windows, kernels[:, :, 0]), 0.0)
        side = len(level) // 4
        expected = projected.reshape(4, side, 4, side, 12).mean(axis=(1, 3))
        # Float32 sums of 25 products of numbers near 1.
        np.testing.assert_allclose(found[1, :, :, 12 * scale :][..., :12], expected, atol=1e-5)
        level = level.reshape(len(level) // 2, 2, -1, 2).mean(axis=(1, 3))


def test_features_of_other_resolutions_are_brought_to_the_places_of_the_first():
    fine = np.random.default_rng(7).normal(size=(1, 8, 8, 2)).astype(np.float32)
    flat = jnp.full((1, 2, 2, 1), 3.0)
    found = joined([jnp.zeros((1, 4, 4, 1)), jnp.asarray(fine), flat])
    assert found.shape == (1, 4, 4, 4)
    np.testing.assert_allclose(
        found[..., 1:3], fine.reshape(1, 4, 2, 4, 2, 2).mean(axis=(2, 4)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found[..., 3], 3.0, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(6, 6\) for 4 x 4 places"):
        joined([jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 6, 6, 1))])


def test_scoring_is_exported_with_its_features_for_any_batch_size():
    images = np.random.default_rng(8).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)

    def features(x):
        return memory_lib.random_features(x, places=4)

    normal = np.asarray(features(jnp.asarray(images)))
    memory = build(normal[:3], size=20)

    def score(x):
        return distance_map(memory, features(x), 16)

    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(score))(
        jax.ShapeDtypeStruct((batch, 16, 16, 1), jnp.uint8)
    )
    again = jax.export.deserialize(bytearray(exported.serialize()))
    for count in (1, 5):
        wanted = score(jnp.asarray(images[:count]))
        np.testing.assert_allclose(again.call(images[:count]), wanted, atol=TOLERANCE)


def test_a_memory_comes_back_from_its_file_bit_for_bit(tmp_path):
    usual = MapCalibration(jnp.ones((4, 4)), jnp.full((4, 4), 0.5))
    memory = build(NORMAL, size=5, blocks=2)._replace(usual=usual, components=COMPONENTS)
    memory_lib.save(tmp_path / "memory.npz", memory)
    loaded = memory_lib.load(tmp_path / "memory.npz")
    assert isinstance(loaded, Memory)
    for ours, theirs in zip(jax.tree.leaves(memory), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert theirs.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"patches": None}, "patches"),
        ({"patches": np.zeros((1, 1, 4, 3))}, "float32"),
        ({"patches": np.full((1, 1, 4, 3), np.nan, np.float32)}, "finite"),
        ({"patches": np.zeros((1, 2, 4, 3), np.float32)}, "patches of shape"),
        ({"patches": np.zeros((1, 1, 0, 3), np.float32)}, "patches of shape"),
        ({"scale": np.ones(2, np.float32)}, "do not fit"),
        ({"scale": np.zeros(3, np.float32)}, "not positive"),
        ({"mean": np.zeros((4, 4), np.float32)}, "do not fit"),
        ({"std": np.zeros((), np.float32)}, "not positive"),
        ({"axes": None}, "axes"),
        ({"centre": None}, "centre"),
        ({"centre": np.zeros(5, np.float32)}, "do not fit"),
        ({"axes": np.zeros(4, np.float32)}, "do not fit"),
        ({"left_std": np.zeros((2, 2), np.float32)}, "not positive"),
        ({"left_mean": np.zeros((4, 4), np.float32)}, "do not fit"),
        (dict.fromkeys(("left_mean", "left_std"), np.ones((), np.float32)), "do not fit"),
        ({"axes": np.full((2, 4), np.inf, np.float32)}, "finite"),
        ({"patches": np.array([None])}, "pickle|Object"),
    ],
)
def test_a_file_that_is_no_memory_is_refused_in_one_line(tmp_path, wrong, complaint):
    arrays = {
        "patches": np.ones((1, 1, 4, 3), np.float32),
        "scale": np.ones(3, np.float32),
        "mean": np.zeros((), np.float32),
        "std": np.ones((), np.float32),
        "centre": np.zeros(4, np.float32),
        "axes": np.ones((2, 4), np.float32),
        "left_mean": np.zeros((2, 2), np.float32),
        "left_std": np.ones((2, 2), np.float32),
        **wrong,
    }
    path = tmp_path / "memory.npz"
    np.savez(path, allow_pickle=True, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(CalibrationError, match=complaint) as caught:
        memory_lib.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_would_unpack_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    memory = build(NORMAL, size=5)._replace(components=COMPONENTS)
    memory_lib.save(tmp_path / "memory.npz", memory)
    monkeypatch.setattr(files, "_LARGEST_ARCHIVE", 100)
    with pytest.raises(CalibrationError, match="at most 100 are read"):
        memory_lib.load(tmp_path / "memory.npz")


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_a_missing_or_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "memory.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"memory\.npz is no memory"):
        memory_lib.load(path)


def test_a_flipped_bit_of_an_archive_ends_with_one_line_or_does_no_harm(tmp_path):
    path = tmp_path / "memory.npz"
    memory_lib.save(path, build(NORMAL, size=5)._replace(components=COMPONENTS))
    content = path.read_bytes()
    refused = 0
    # Headers of the first entry, and the list of entries at the end.
    for place in (*range(40), *range(len(content) - 500, len(content))):
        for bit in (0, 5):
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            )
            try:
                memory_lib.load(path)
            except CalibrationError:
                refused += 1
    assert refused > 100


def test_features_that_do_not_fit_are_refused():
    memory = build(NORMAL, size=5, blocks=2)
    with pytest.raises(ValueError, match="width 3"):
        distances(memory, jnp.zeros((1, 4, 4, 2)))
    with pytest.raises(ValueError, match="2 x 2 blocks"):
        distances(memory, jnp.zeros((1, 3, 4, 3)))
    with pytest.raises(ValueError, match="in 3 x 3 blocks"):
        build(NORMAL, size=5, blocks=3)
    with pytest.raises(ValueError, match="0 normal images"):
        build(NORMAL[:0], size=5)
    with pytest.raises(ValueError, match="finite"):
        build(np.full_like(NORMAL, np.nan), size=5)
    with pytest.raises(ValueError, match="multiple of 4"):
        memory_lib.random_features(jnp.zeros((1, 6, 6, 1), jnp.uint8), places=2)
