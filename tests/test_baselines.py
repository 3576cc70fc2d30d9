"""Subspace competitors: each against an independent route, and on planted subspaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import spearmanr
from sklearn.linear_model import ElasticNet
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan.baselines import (
    SUBSPACE,
    dpcp,
    l1_thresholding,
    lrr,
    outlier_pursuit,
    published,
    r_graph,
    reaper,
)
from jax_noisy_anogan.baselines.features import array_features, load_features, pixel_features
from jax_noisy_anogan.baselines.linear_algebra import principal_coordinates
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.errors import DataError

DIMENSION = 4


def _planted(seed=0, sizes=(50,), dimension=DIMENSION, ambient=20, outliers=50):
    """Gaussian samples of random subspaces, then isotropic ones; and which are outliers."""
    rng = np.random.default_rng(seed)
    parts = []
    for size in sizes:
        basis = np.linalg.qr(rng.normal(size=(ambient, dimension)))[0]
        parts.append(rng.normal(size=(size, dimension)) @ basis.T)
    rows = np.concatenate([*parts, rng.normal(size=(outliers, ambient))])
    return rows, np.repeat([0, 1], [sum(sizes), outliers])


def _unit_columns(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T


ROWS, OUTLYING = _planted()
X = _unit_columns(ROWS)


@pytest.fixture
def coordinates():
    with jax.enable_x64(True):
        yield principal_coordinates(jnp.asarray(ROWS), None)


@pytest.mark.parametrize("name", SUBSPACE)
def test_one_planted_subspace_is_found(name):
    settings = {"dimension": DIMENSION} if name in ("REAPER", "DPCP") else {}
    scores = SUBSPACE[name](ROWS.astype(np.float32), **settings)
    assert scores.dtype == jnp.float32
    # One inlier of fifty is allowed to go: no walker of R-graph reaches one that no other needs.
    assert roc_auc_score(OUTLYING, scores) > 0.97


@pytest.mark.parametrize("seed", range(2))
def test_in_a_union_of_three_subspaces_only_the_graph_holds(seed):
    rows, outlying = _planted(seed, sizes=(90, 15, 15), ambient=12, outliers=60)
    auroc = {
        name: roc_auc_score(outlying, SUBSPACE[name](rows)) for name in ("CoP", "LRR", "R-graph")
    }
    assert auroc["R-graph"] > 0.95
    assert auroc["CoP"] < auroc["R-graph"] - 0.05
    assert auroc["LRR"] < auroc["R-graph"] - 0.05


@pytest.mark.parametrize("norm", [1, 2])
def test_coherence_pursuit_is_its_formula(norm):
    gram = X.T @ X - np.eye(X.shape[1])
    coherence = np.abs(gram).sum(axis=0) if norm == 1 else np.sqrt((gram**2).sum(axis=0))
    got = SUBSPACE["CoP"](ROWS, norm=norm)
    np.testing.assert_allclose(got, -coherence / coherence.max(), rtol=1e-6)


# --- REAPER -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [3, 7])
def test_reaper_is_optimal_by_its_frank_wolfe_gap(coordinates, dimension):
    # f is convex, so f(P) - f(optimum) <= <gradient, P> - min_Q <gradient, Q>, and the minimum
    # over 0 <= Q <= I, trace Q = d is the sum of the d smallest eigenvalues of the gradient. Where
    # distances vanish f is the smoothed objective (Huber's, with `floor`), at most n floor / 2 off.
    floor = 1e-10
    x = np.asarray(coordinates.columns)
    found = reaper.fit(coordinates.columns, dimension, floor, 1e-13, 3000)
    projector, distances = np.asarray(found.projector), np.asarray(found.distances)
    eigenvalues = np.linalg.eigvalsh(projector)
    assert eigenvalues.min() > -1e-9
    assert eigenvalues.max() < 1 + 1e-9
    assert np.trace(projector) == pytest.approx(dimension, abs=1e-9)
    np.testing.assert_allclose(distances, np.linalg.norm(x - projector @ x, axis=0), atol=1e-12)

    gradient = -(((x - projector @ x) / np.maximum(distances, floor)) @ x.T)
    gradient = (gradient + gradient.T) / 2
    gap = np.sum(gradient * projector) - np.linalg.eigvalsh(gradient)[:dimension].sum()
    assert gap + 1e-9 >= 0
    assert gap < 1e-4 * distances.sum()


def test_reaper_shares_solve_their_weighted_problem():
    squares = np.array([9.0, 5.0, 5.0, 2.0, 0.5, 0.1])
    with jax.enable_x64(True):
        shares = np.asarray(reaper.relaxed_shares(jnp.asarray(squares), 3))
    low, high = 0.0, squares[0]
    for _ in range(100):
        theta = (low + high) / 2
        total = np.maximum(0, 1 - theta / squares).sum()
        low, high = (theta, high) if total > 3 else (low, theta)
    np.testing.assert_allclose(shares, np.maximum(0, 1 - theta / squares), atol=1e-12)


def test_reaper_shares_without_noise_are_ones_and_zeros():
    shares = reaper.relaxed_shares(jnp.array([3.0, 1.0, 0.0, 0.0]), 2)
    np.testing.assert_array_equal(shares, [1, 1, 0, 0])


# --- Outlier Pursuit and LRR: strong duality --------------------------------------------------


def _nuclear(matrix):
    return np.linalg.svd(matrix, compute_uv=False).sum()


def _lengths(matrix):
    return np.linalg.norm(matrix, axis=0)


def test_outlier_pursuit_closes_its_duality_gap(coordinates):
    # Dual: max <Y, X> with |Y|_2 <= 1 and every column at most lambda long.
    x = np.asarray(coordinates.columns)
    low, high = outlier_pursuit.weight_bounds(coordinates)
    weight = (low * high) ** 0.5
    found = outlier_pursuit.decompose(coordinates.columns, weight, 1e-8, 5000)
    clean, corruption, y = (np.asarray(part) for part in found[:3])
    assert np.linalg.norm(x - clean - corruption) < 1e-6 * np.linalg.norm(x)
    y = y / max(np.linalg.norm(y, 2), _lengths(y).max() / weight, 1.0)
    primal = _nuclear(x - corruption) + weight * _lengths(corruption).sum()
    assert 0 < low < weight < high
    assert primal == pytest.approx(np.sum(y * x), rel=1e-5)


def test_lrr_closes_its_duality_gap(coordinates):
    # Dual: max <Y, X> with |X^T Y|_2 <= 1 and every column at most lambda long.
    x, s = np.asarray(coordinates.columns), np.asarray(coordinates.singular_values)
    low, high = lrr.weight_bounds(coordinates)
    weight = (low * high) ** 0.5
    found = lrr.represent(coordinates, weight, 1e-8, 5000)
    w, error, y = (np.asarray(part) for part in found[:3])
    z = (x / s[:, None]).T @ w
    assert np.linalg.norm(x - x @ z - error) < 1e-5 * np.linalg.norm(x)
    y = y / max(np.linalg.norm(x.T @ y, 2), _lengths(y).max() / weight, 1.0)
    primal = _nuclear(z) + weight * _lengths(x - x @ z).sum()
    assert primal == pytest.approx(np.sum(y * x), rel=1e-4)


def test_beyond_their_bounds_one_part_vanishes(coordinates):
    x = np.asarray(coordinates.columns)
    low, high = outlier_pursuit.weight_bounds(coordinates)
    all_out = outlier_pursuit.decompose(coordinates.columns, 0.98 * low, 1e-7, 5000)
    none_out = outlier_pursuit.decompose(coordinates.columns, 1.02 * high, 1e-7, 5000)
    np.testing.assert_allclose(all_out.corruption, x, atol=1e-4)
    np.testing.assert_allclose(none_out.corruption, 0 * x, atol=1e-4)

    low, high = lrr.weight_bounds(coordinates)
    all_error = lrr.represent(coordinates, 0.98 * low, 1e-7, 5000)
    no_error = lrr.represent(coordinates, 1.02 * high, 1e-7, 5000)
    np.testing.assert_allclose(all_error.error, x, atol=1e-3)
    np.testing.assert_allclose(no_error.error, 0 * x, atol=1e-3)


# --- DPCP -------------------------------------------------------------------------------------


def test_dpcp_normals_are_orthogonal_to_the_planted_span(coordinates):
    inliers = np.asarray(coordinates.columns)[:, OUTLYING == 0]
    count = len(inliers) - DIMENSION
    normals = np.asarray(dpcp.normals_by_reweighting(coordinates.columns, count).normals)
    np.testing.assert_allclose(normals.T @ normals, np.eye(count), atol=1e-8)
    assert np.abs(normals.T @ inliers).max() < 1e-5


def _distances(normals, x):
    return np.linalg.norm(normals.T @ x, axis=0)


def test_dpcp_normals_minimise_the_sum_of_distances():
    # Inliers off their subspace, so that no distance vanishes and the objective is smooth: at its
    # minimum every small rotation of the normals raises it.
    rng = np.random.default_rng(0)
    rows = ROWS + 0.1 * rng.normal(size=ROWS.shape)
    with jax.enable_x64(True):
        x = np.asarray(principal_coordinates(jnp.asarray(rows), None).columns)
        count = len(x) - DIMENSION
        found = dpcp.normals_by_reweighting(jnp.asarray(x), count, tolerance=1e-14, max_steps=2000)
        normals = np.asarray(found.normals)
    least = _distances(normals, x).sum()
    assert found.objective == pytest.approx(least, rel=1e-12)
    for _ in range(200):
        turned = np.linalg.qr(normals + 1e-3 * rng.normal(size=normals.shape))[0]
        assert _distances(turned, x).sum() > least
    # The gradient on the sphere of bases, by its definition.
    gradient = (x / _distances(normals, x)) @ (x.T @ normals)
    tangent = gradient - normals @ (normals.T @ gradient)
    assert np.linalg.norm(tangent) < 1e-5 * np.linalg.norm(gradient)


def test_dpcp_scores_are_distances():
    with jax.enable_x64(True):
        x = np.asarray(principal_coordinates(jnp.asarray(ROWS), None).columns)
        normals = dpcp.normals_by_reweighting(jnp.asarray(x), len(x) - DIMENSION).normals
    scores = SUBSPACE["DPCP"](ROWS, dimension=DIMENSION, components=None)
    np.testing.assert_allclose(scores, _distances(np.asarray(normals), x), atol=1e-6)


# --- self-expression --------------------------------------------------------------------------


def test_r_graph_coefficients_and_ranking_agree_with_scikit_learn(coordinates):
    l1_share, alpha = 0.95, 10.0
    gram = np.abs(X.T @ X)
    np.fill_diagonal(gram, 0)
    gamma = alpha * l1_share / gram.max(axis=0)
    expected = np.zeros((X.shape[1], X.shape[1]))
    for j in range(X.shape[1]):
        others = np.arange(X.shape[1]) != j
        model = ElasticNet(
            alpha=1 / (gamma[j] * len(X)),
            l1_ratio=l1_share,
            fit_intercept=False,
            tol=1e-8,
            max_iter=100_000,
        )
        expected[others, j] = model.fit(X[:, others], X[:, j]).coef_

    got = r_graph.express(coordinates, jnp.asarray(gamma), l1_share, 1e-7, 5000)
    np.testing.assert_allclose(got, expected, atol=2e-5)

    links = np.abs(expected).T
    links /= links.sum(axis=1, keepdims=True)
    pi, visited = np.full(len(links), 1 / len(links)), 0.0
    for _ in range(1000):
        pi = pi @ links
        visited = visited + pi / 1000
    scores = SUBSPACE["R-graph"](ROWS, l1_share=l1_share, alpha=alpha)
    assert spearmanr(scores, -visited).statistic > 0.999


def test_l1_thresholding_is_the_linear_program_of_basis_pursuit():
    expected = []
    for j in range(X.shape[1]):
        others = np.delete(X, j, axis=1)
        program = linprog(
            np.ones(2 * others.shape[1]), A_eq=np.hstack([others, -others]), b_eq=X[:, j]
        )
        expected.append(program.fun)
    got = SUBSPACE["l1-thresholding"](ROWS)
    np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_l1_thresholding_charges_what_the_others_cannot_express():
    rows, _ = _planted(outliers=1)
    inliers = _unit_columns(rows)[:, :-1]
    outlier = _unit_columns(rows)[:, -1]
    projected = inliers @ np.linalg.lstsq(inliers, outlier, rcond=None)[0]
    scores = l1_thresholding.score(rows, miss_weight=50.0)
    missed = 50.0 * np.linalg.norm(outlier - projected)
    assert scores[-1] == pytest.approx(missed, rel=0.1)
    assert scores[-1] > 5 * scores[:-1].max()


# --- reductions, features, settings -----------------------------------------------------------


@pytest.mark.parametrize("name", SUBSPACE)
def test_scores_do_not_change_when_features_are_embedded_in_many_more(name):
    # More features than samples: the solvers work on other matrices of the same inner products.
    settings = {"dimension": DIMENSION} if name in ("REAPER", "DPCP") else {}
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(150, ROWS.shape[1])))[0]
    before = np.asarray(SUBSPACE[name](ROWS, **settings))
    after = np.asarray(SUBSPACE[name](7.0 * ROWS @ basis.T, **settings))
    np.testing.assert_allclose(after, before, atol=2e-3 * np.abs(before).max())


def test_feature_files_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "features.npz"
    np.savez(path, features=np.arange(12.0).reshape(3, 2, 2), ids=np.array(["a", "b", "c"]))
    loaded = load_features(path)
    np.testing.assert_array_equal(loaded.features, np.arange(12.0).reshape(3, 4))
    assert loaded.ids == ("a", "b", "c")
    np.savez(path, features=np.ones((3, 2)))
    assert load_features(path).ids is None


def _write_text(path):
    path.write_text("no archive")


BAD_FILES = {
    "missing": (lambda path: None, "no such feature file"),
    "text": (_write_text, "not a readable .npz"),
    "npy": (lambda path: np.save(path.open("wb"), np.ones((2, 2))), "expected an .npz"),
    "key": (lambda path: np.savez(path, x=np.ones((2, 2))), "no array named 'features'.*x"),
    "pickle": (
        lambda path: np.savez(path, features=np.array([{}, {}], object)),
        "not a readable .npz",
    ),
    "ids": (
        lambda path: np.savez(path, features=np.ones((2, 2)), ids=np.array(["a"])),
        "1 ids for 2 rows",
    ),
    "nan": (lambda path: np.savez(path, features=np.array([[1.0], [np.nan]])), "row 1 is not"),
    "vector": (lambda path: np.savez(path, features=np.ones(3)), "one row per image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_feature_file_is_named_with_its_fault(tmp_path, name):
    path = tmp_path / "bad.npz"
    write, message = BAD_FILES[name]
    write(path)
    with pytest.raises(DataError, match=f"bad.npz: .*{message}") as caught:
        load_features(path)
    assert "\n" not in str(caught.value)


def test_pixels_and_arrays_become_rows():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(pixel_features(images), images.reshape(2, -1) / 255, rtol=1e-6)
    assert array_features(np.ones((5, 4, 4, 8), np.float32)).shape == (5, 128)
    with pytest.raises(DataError, match="uint8 images"):
        pixel_features(images.astype(np.float32))


BAD_SETTINGS = {
    "CoP": {"norm": 3},
    "REAPER": {"dimension": 20},
    "LRR": {"weight": -1.0},
    "DPCP": {"dimension": 0},
    "R-graph": {"alpha": 0.5},
    "Outlier Pursuit": {"components": 0},
    "l1-thresholding": {"miss_weight": 0.0},
}


@pytest.mark.parametrize("name", SUBSPACE)
def test_bad_settings_are_named(name):
    with pytest.raises(ConfigError, match=next(iter(BAD_SETTINGS[name]))):
        SUBSPACE[name](ROWS, **BAD_SETTINGS[name])


# --- published numbers ------------------------------------------------------------------------


def test_published_numbers_are_fractions():
    named = vars(published).items()
    tables = [value for name, value in named if name.isupper() and isinstance(value, dict)]
    numbers = [number for t in tables for row in t.values() for number in row.values()]
    assert len(numbers) > 80
    assert all(0.3 < number < 1 for number in numbers)


@pytest.mark.parametrize("table", [published.TABLE_2, published.CALTECH_F1])
def test_no_published_f1_is_below_that_of_calling_everything_abnormal(table):
    # Half of the images are outliers.
    assert min(number for row in table.values() for number in row.values()) > 0.666


def test_the_paper_copied_its_competitors_from_sabokrou():
    for method in set(published.TABLE_2) - {"AnoGAN", "Noisy-AnoGAN"}:
        assert published.TABLE_2[method] == published.CALTECH_F1[method]


def test_published_means_over_digits_match_the_printed_means():
    # The OCGAN paper prints these two means of the same rows.
    for method, mean in (("AnoGAN", 0.913), ("Deep SVDD", 0.948)):
        rows = list(published.MNIST_ONE_CLASS[method].values())
        assert len(rows) == 10
        assert np.mean(rows) == pytest.approx(mean, abs=6e-4)
