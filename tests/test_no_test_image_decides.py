"""Map statistics, weights and thresholds come from validation images; test images move none."""

import dataclasses

import numpy as np

from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.evaluation import held_out
from jax_noisy_anogan.scoring.calibration import Calibration
from jax_noisy_anogan.scoring.maps import load_maps
from jax_noisy_anogan.training.state import load_model


def test_fewer_test_images_move_neither_map_statistics_nor_the_calibration(finished_run, tmp_path):
    config, folder = finished_run
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    split = make_split(dataset, config.data)
    fewer = dataclasses.replace(split, test=split.test[::8])
    model = load_model(folder, config)
    found = held_out.measure(config, tmp_path, dataset, fewer, model, progress=False)
    for ours, theirs in zip(found.maps, load_maps(folder / "map_calibration.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.calibration == Calibration.load(folder / "calibration.json")
