"""Figure 3 on 2-D data: the known optimum, the counting, and a short training."""

import dataclasses
import importlib.util
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan import reproduce
from jax_noisy_anogan.config import Config, ConfigError, OptimConfig
from jax_noisy_anogan.reproduction import figure3, ring, runner
from jax_noisy_anogan.reproduction.cells import Bench
from jax_noisy_anogan.reproduction.ring import RingConfig

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "toy2d.py"


def _config_file():
    spec = importlib.util.spec_from_file_location("toy2d_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _normal_density(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2.0 * np.pi))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gammas": (0.5, 0.1)}, "config.gammas is (0.5, 0.1): expected 1.0 among them"),
        ({"gammas": (1.0, 0.0)}, "config.gammas is 0.0: expected above 0.0"),
        ({"gammas": (1.0, 1.0)}, "each once"),
        ({"objectives": ()}, "config.objectives is (): expected at least one"),
        ({"objectives": ("wgan_gp",)}, "expected one of equation_15, equation_18"),
        ({"contamination": 1.0}, "config.contamination is 1.0"),
        ({"mode_std": 0.3}, "config.mode_std is 0.3: expected above 0 and at most 0.255"),
        ({"steps": 0}, "config.steps is 0: expected at least 1"),
        ({"steps": "many"}, "config.steps is 'many': expected a value of type int"),
        ({"prior": "beta"}, "config.prior is 'beta'"),
        ({"optim": OptimConfig(b1=1.0)}, "config.optim.b1 is 1.0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(changes, message):
    with pytest.raises(ConfigError) as error:
        ring.validate_ring(dataclasses.replace(RingConfig(), **changes))
    assert message in str(error.value)


def test_configs_of_images_and_unknown_variants_are_refused():
    with pytest.raises(ConfigError, match="returned Config: expected"):
        ring.validate_ring(Config())
    with pytest.raises(ConfigError, match="variant 'big'"):
        _config_file().get_config("big")


def test_optimum_is_equation_23_where_that_is_a_density():
    x = np.linspace(-12.0, 12.0, 4001)
    # p_an lies below p_d / (1 - gamma) everywhere, so nothing needs clipping.
    p_an = _normal_density(x, 1.0, 1.0)
    p_d = 0.5 * _normal_density(x, -2.0, 1.5) + 0.5 * p_an
    gamma = 0.6
    expected = p_d / gamma - (1.0 - gamma) / gamma * p_an
    assert expected.min() > 0.0
    found = ring.optimal_density(p_d, p_an, gamma, x[1] - x[0])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_clipped_optimum_minimises_the_divergence_of_equation_18():
    random = np.random.default_rng(0)
    x = np.linspace(-8.0, 8.0, 400)
    cell = x[1] - x[0]
    p_an = _normal_density(x, 1.0, 0.7)
    p_d = 0.8 * _normal_density(x, -1.0, 1.0) + 0.2 * p_an
    gamma = 0.3
    optimum = ring.optimal_density(p_d, p_an, gamma, cell)
    assert (p_d - (1.0 - gamma) * p_an).min() < 0.0
    assert optimum.min() == 0.0
    np.testing.assert_allclose(optimum.sum() * cell, 1.0, atol=1e-12)

    def divergence(p_g):
        p_n = gamma * p_g + (1.0 - gamma) * p_an
        middle = 0.5 * (p_d + p_n)
        return 0.5 * cell * np.sum(p_d * np.log(p_d / middle) + p_n * np.log(p_n / middle))

    plainly_clipped = np.maximum(0.0, p_d - (1.0 - gamma) * p_an)
    others = [p_d, _normal_density(x, -1.0, 1.0), plainly_clipped / (plainly_clipped.sum() * cell)]
    for scale in (0.01, 0.1):
        for _ in range(20):
            bent = optimum * np.exp(scale * random.normal(size=x.shape))
            others.append(bent / (bent.sum() * cell))
    assert all(divergence(optimum) < divergence(other) for other in others)


@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.5, 0.1])
def test_optimum_on_the_ring_keeps_the_share_that_disjoint_modes_give(gamma):
    config = RingConfig(contamination=0.15)
    mixture = ring.make_mixture(config)
    points, mass = ring.optimal_mass(mixture, gamma, side=300)
    shares = ring.mode_shares(points, mixture, mass)
    # (0.15 - (1 - gamma)) / gamma of Eq. 23, or nothing; of each mode 1 - exp(-9 / 2) is within 3
    # standard deviations.
    abnormal = max(0.0, 0.15 - (1.0 - gamma)) / gamma
    expected = np.array([(1.0 - abnormal) / 7] * 7 + [abnormal]) * (1.0 - np.exp(-4.5))
    np.testing.assert_allclose(shares[:-1], expected, atol=1e-3)
    np.testing.assert_allclose(shares.sum(), 1.0, atol=1e-6)


def test_points_belong_to_the_nearest_mode_within_three_deviations():
    mixture = ring.make_mixture(RingConfig(modes=4, radius=1.0, mode_std=0.1))
    points = np.array([[1.0, 0.29], [1.31, 0.0], [0.05, 1.0], [-1.0, 0.1], [0.0, 0.0]])
    # The ring starts at a right angle and ends with the abnormal mode at (1, 0).
    np.testing.assert_array_equal(ring.nearest_modes(points, mixture), [3, 4, 0, 1, 4])
    np.testing.assert_allclose(
        ring.mode_shares(points, mixture), [0.2, 0.2, 0.0, 0.2, 0.4], atol=1e-12
    )
    assert ring.mode_shares(np.random.default_rng(0).normal(size=(999, 2)), mixture).sum() == (
        pytest.approx(1.0)
    )


def test_a_row_says_no_when_a_normal_mode_is_lost():
    config = RingConfig(modes=3, radius=2.0, gammas=(0.5, 1.0), seeds=2, contamination=0.2)
    plain = [0.4, 0.4, 0.2, 0.0]
    kept, lost = [0.5, 0.49, 0.01, 0.0], [0.9, 0.09, 0.01, 0.0]
    (row, _) = ring.summarize(config, "equation_18", np.array([[kept, kept], [plain, plain]]))
    assert (row.covered, row.subtracted) == (2, True)
    assert row.ratio == pytest.approx(0.05)
    # p_g* has no abnormal mass at this gamma: half of the rest is on each of the normal modes.
    assert (row.abnormal, row.abnormal_std, row.outside) == pytest.approx((0.01, 0.0, 0.0))
    assert row.weakest == pytest.approx(0.49 / (0.5 * (1.0 - np.exp(-4.5))), rel=1e-3)
    (row, _) = ring.summarize(config, "equation_18", np.array([[kept, lost], [plain, plain]]))
    assert (row.covered, row.subtracted) == (1, False)


def test_training_subtracts_the_abnormal_mode_and_the_table_says_so(tmp_path, capsys):
    configs = tmp_path / "configs"
    configs.mkdir()
    short = (
        "import dataclasses, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('whole', {str(CONFIG)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "def get_config(name=''):\n"
        "    changes = dict(gammas=(1.0, 0.1), objectives=('equation_18',))\n"
        "    return dataclasses.replace(module.get_config(name), **changes)\n"
    )
    (configs / "toy2d.py").write_text(short)
    bench = Bench(out=tmp_path / "out", configs=configs, size="quick")
    runner.compute(bench, figure3.cells(bench))
    reproduce.write([figure3], bench)
    config = _config_file().get_config("smoke")
    (table,) = figure3.results(bench)
    plain, subtracted = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    # The plain GAN must generate the contamination, or nothing would be shown.
    assert plain["abnormal mass"] > 0.5 * config.contamination
    assert int(plain["normal modes generated"][0]) >= config.modes - 2
    assert subtracted["abnormal mass"] <= 0.1 * plain["abnormal mass"]
    ratio = subtracted["abnormal mass"] / plain["abnormal mass"]
    assert subtracted["relative to gamma = 1"] == pytest.approx(ratio)
    assert (plain["gamma"], subtracted["gamma"]) == ("1", "0.1")
    for row in (plain, subtracted):
        assert row["outside all modes"] < 0.4
        assert row["optimum p_g*"] == pytest.approx(0.15 * (row is plain), abs=2e-3)
    assert f"{config.steps:,} steps" in table.markdown()
    assert (bench.out / "figure3.md").read_text() in capsys.readouterr().out
    with Image.open(bench.out / "figure3.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10.0


def test_figure_3_reads_the_project_s_config(tmp_path):
    for size, steps in (("full", 3000), ("night", 3000), ("quick", 1000)):
        bench = Bench(out=tmp_path, size=size)
        (cell,) = figure3.cells(bench)
        assert cell.settings["steps"] == steps


def test_a_wrong_setting_of_figure_3_is_one_line_before_anything_is_trained(tmp_path):
    (tmp_path / "toy2d.py").write_text(
        "from jax_noisy_anogan.reproduction.ring import RingConfig\n"
        "def get_config(name=''):\n    return RingConfig(gammas=(0.5,))\n"
    )
    given = ["figure3", "--processes=1", f"--configs={tmp_path}", "--out", tmp_path / "out"]
    done = commands.command("reproduce", *given, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "reproduce: config.gammas is (0.5,): expected 1.0 among them, which the others are "
        "compared with"
    ]
