"""The benchmark of shorter searches: what it chooses with, and what it reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import search_quality


def test_the_best_rate_is_kept_for_each_start_and_number_of_steps():
    def candidate(start, steps, rate):
        return {"start": start, "steps": steps, "learning_rate": rate}

    candidates = [
        candidate("bank", 5, 0.1),
        candidate("bank", 5, 0.2),
        candidate("prior", 5, 0.1),
        candidate("bank", 9, 0.1),
        candidate("bank", 9, 0.2),
    ]
    got = search_quality.choose(candidates, [0.7, 0.8, 0.6, 0.9, 0.5])
    assert got == [(candidates[1], 0.8), (candidates[2], 0.6), (candidates[3], 0.9)]


def test_parts_are_held_out_and_half_normal(finished_run):
    config, _ = finished_run
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    split = make_split(dataset, config.data)
    validation, test = search_quality.parts_of(dataset, split, 20)
    for part, half in ((validation, 5), (test, 10)):
        assert len(part.images) == 2 * half
        assert part.is_abnormal.sum() == half
    source = dataset.source(dataset.resolution)
    tested = {source[int(index)].tobytes() for index in split.test}
    assert {image.tobytes() for image in test.images} <= tested
    assert not {image.tobytes() for image in validation.images} & {
        image.tobytes() for image in test.images
    }


def test_the_reference_is_compared_with_itself_and_a_shortcut_with_it(finished_run, tmp_path):
    _, run = finished_run
    out = tmp_path / "rows.json"
    arguments = f"--workdir {run} --json {out} --images 24 --starts bank --steps 2 --rates 0.1"
    plot = tmp_path / "curve.png"
    rows = search_quality.main([*arguments.split(), "--reference-steps", "6", "--plot", str(plot)])
    with Image.open(plot) as picture:
        assert picture.size == (600, 360)
    assert json.loads(out.read_text()) == [row._asdict() for row in rows]
    reference, shortcut = rows
    assert (reference.ratio, reference.auroc_difference) == (1.0, 0.0)
    assert reference.rank_correlation == pytest.approx(1.0)
    assert (reference.search["steps"], shortcut.search["steps"]) == (6, 2)
    assert shortcut.search["start"] == "bank"
    assert shortcut.auroc - reference.auroc == pytest.approx(shortcut.auroc_difference)
    assert shortcut.ratio == pytest.approx(shortcut.ours / reference.ours)
    assert np.isfinite([shortcut.calibrated, shortcut.validation_auroc]).all()
