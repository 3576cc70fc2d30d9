"""The benchmark of shorter searches, and others that ask what G and D of a run say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import ScoreConfig
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import false_positive_rate
import precision
import search_quality


@pytest.fixture
def run_with_memory(finished_run, tmp_path):
    """The finished run as one that keeps a memory, which is not there."""
    config, run = finished_run
    shutil.copytree(run, tmp_path / "run")
    remembering = dataclasses.replace(config, score=ScoreConfig(memory=True, map="memory"))
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(remembering))
    return tmp_path / "run"


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


def test_the_reference_is_compared_with_itself_and_a_shortcut_with_it(run_with_memory, tmp_path):
    run = run_with_memory
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


def test_g_and_d_of_a_run_with_a_memory_are_judged_without_it(run_with_memory, monkeypatch, capsys):
    seen = []

    def noting(_, config, images):
        seen.append((config.score.memory, config.score.map))
        return dict.fromkeys(precision.TERMS, np.arange(len(images)))

    # What it computes is tested with the programs; here no program need be compiled for it.
    monkeypatch.setattr(precision, "scores", noting)
    precision.compare(run_with_memory, images=8, steps=1)
    assert seen == [(False, "difference")] * 2
    monkeypatch.setattr(false_positive_rate, "COUNTS", (9,))
    false_positive_rate.main(f"--workdir {run_with_memory} --repeats 1 --images 16".split())
    assert "16 normal images that did not train, 1 draws" in capsys.readouterr().out
