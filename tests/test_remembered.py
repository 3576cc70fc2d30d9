"""A run with a memory: defects found while G and D know next to nothing, the same everywhere."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import ndimage

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import ConfigError, DataConfig, GrowthConfig, ScoreConfig, SearchConfig
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.data.split_file import read
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.artefact import make_detect
from jax_noisy_anogan.scoring.calibration import Calibration

SIDE = 32


def _surface(rng, defect):
    """Brushed texture; a defect is scratched across it, as dark as bright."""
    noise = rng.normal(size=(SIDE, SIDE))
    along = ndimage.gaussian_filter(noise, (0.5, 4), mode="wrap")
    image = 128 + 25 * along / along.std()
    mask = np.zeros((SIDE, SIDE), bool)
    if defect:
        y, x = rng.integers(4, SIDE - 12, 2)
        mask[y : y + 8, x : x + 6] = True
        image[y : y + 8, x : x + 6] += 60 * (-1) ** np.arange(6)
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one update on drawn textures; no defect is known."""
    root = tmp_path_factory.mktemp("remembered")
    rng = np.random.default_rng(0)
    for kind, count in (("normal", 90), ("abnormal", 20)):
        (root / "photos" / kind).mkdir(parents=True)
        (root / "photos" / "masks").mkdir(exist_ok=True)
        for k in range(count):
            image, mask = _surface(rng, kind == "abnormal")
            Image.fromarray(image).save(root / "photos" / kind / f"{k}.png")
            if mask.any():
                Image.fromarray(mask).save(root / "photos" / "masks" / f"{k}.png")
    config = tiny.config(
        data=DataConfig(
            name="image_folder",
            root=str(root / "photos"),
            cache_dir=str(root / "cache"),
            known_abnormal_fraction=0.0,
            validation_fraction=0.3,
        ),
        loss=config_lib.LossConfig(gamma=1.0),
        growth=GrowthConfig(
            start_resolution=SIDE, resolution=SIDE, final_images=32, minibatch_default=32
        ),
        search=SearchConfig(steps=1, batch_size=8),
        score=ScoreConfig(memory=True, map="memory", yardsticks=False),
        train=config_lib.TrainConfig(sample_images=4),
    )
    results = experiment.run(config, root / "run", progress=False)
    return config, root / "run", results


def _test_rows(folder):
    with open(folder / "scores.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["part"] == "test"]


def test_the_memory_finds_and_locates_what_an_untrained_gan_does_not(run):
    _, _, results = run
    assert results["memory"]["auroc"] > 0.9
    assert results["pixel"]["auroc"] > 0.9
    assert results["memory"]["auroc"] > results["score"]["auroc"] + 0.1


def test_patches_come_from_training_images_and_statistics_from_validation_normals(run):
    config, folder, _ = run
    memory = memory_lib.load(folder / "memory.npz")
    dataset = load_dataset(config.data, resolution=SIDE, progress=False)
    split = read(folder / "split.json", dataset)
    detector = jax_noisy_anogan.load(folder)
    scorer = detector._scorer

    def features(part):
        return np.stack(list(scorer.features(dataset.source(SIDE)[int(k)] for k in part)))

    kept = memory.patches.reshape(-1, memory.scale.shape[0]) * memory.scale
    own = features(split.train_normal)[..., : kept.shape[1]].reshape(-1, kept.shape[1])
    gap = np.square(kept[::50, None] - own).sum(axis=-1).min(axis=1)
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)
    # The term, by its definition, in NumPy.
    normal = features(split.validation_normal)[..., : kept.shape[1]]
    maps = np.asarray(memory_lib.distance_map(memory, jax.numpy.asarray(normal), SIDE))
    maps = ndimage.gaussian_filter(maps, (0, 1, 1))
    np.testing.assert_allclose(memory.usual.mean, maps.mean(axis=0), rtol=1e-3)


def test_components_are_those_of_training_images_and_share_the_decision(run):
    config, folder, _ = run
    memory = memory_lib.load(folder / "memory.npz")
    dataset = load_dataset(config.data, resolution=SIDE, progress=False)
    split = read(folder / "split.json", dataset)
    images = dataset.images(split.train_normal, SIDE)
    contrast = np.stack([local_contrast(image, 1 / 8) for image in images]).astype(float)
    rows = ((contrast - 128) / 127).reshape(len(images), -1)
    np.testing.assert_allclose(memory.components.centre, rows.mean(axis=0), atol=1e-5)
    # As many axes as the images span: nothing is left of them.
    apart = rows - rows.mean(axis=0)
    assert memory.components.axes.shape[0] == len(images) - 1
    left = apart - apart @ memory.components.axes.T @ memory.components.axes
    np.testing.assert_allclose(left, 0.0, atol=1e-2)
    calibration = Calibration.load(folder / "calibration.json")
    share = dict(zip(calibration.terms, calibration.weights, strict=True))
    assert share.pop("memory") == share.pop("components") > 0
    assert not any(share.values())


def test_detector_and_export_say_what_the_evaluation_says(run):
    config, folder, _ = run
    detector = jax_noisy_anogan.load(folder)
    dataset = load_dataset(config.data, resolution=SIDE, progress=False)
    rows = _test_rows(folder)[:6]
    images = [dataset.source(SIDE)[dataset.ids.index(row["id"])] for row in rows]
    found = detector.score(images)
    decides = Calibration.load(folder / "calibration.json").thresholds["memory"].quantile
    for row, ours in zip(rows, found, strict=True):
        assert ours.terms == {name: float(row[name]) for name in ours.terms}
        assert ours.heat.max() == ours.terms["memory"]
        assert (not ours.regions) == (ours.terms["memory"] <= decides)
        assert ours.terms["memory_sum"] == pytest.approx(ours.heat.mean(), abs=1e-5)
    detect = jax.jit(
        make_detect(
            detector._model,
            config,
            detector.calibration,
            detector._maps,
            detector._memory,
            shape=(SIDE, SIDE),
        )
    )
    exported = detect(np.stack(images))
    for name in found[0].terms:
        wanted = [ours.terms[name] for ours in found]
        np.testing.assert_allclose(exported["terms"][name], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        exported["heat"], [ours.heat for ours in found], rtol=1e-3, atol=1e-3
    )


def test_a_run_that_lost_its_memory_says_what_to_do(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "run", ignore=shutil.ignore_patterns("memory.npz"))
    with pytest.raises(jax_noisy_anogan.scoring.calibration.CalibrationError, match="again"):
        jax_noisy_anogan.load(tmp_path / "run")


def test_a_map_of_the_memory_needs_one():
    with pytest.raises(ConfigError, match=r"score.map is 'memory': expected another map"):
        tiny.config(score=ScoreConfig(map="memory"))


def test_without_the_setting_nothing_is_remembered(finished_run):
    config, folder = finished_run
    assert not config.score.memory
    assert not (folder / "memory.npz").exists()
    assert "memory" not in json.loads((folder / "metrics.json").read_text())
    assert dataclasses.asdict(config.score)["map"] == "difference"
