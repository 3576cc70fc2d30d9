"""Do bfloat16 scores rank images as float32 scores do? One trained run, the same images, twice.

    python benchmarks/precision.py RUN [--images 300] [--steps 30] [--json FILE]

Convolutions and dense products of the search run in either precision; parameters, norms, statistics
and losses stay float32. Prints Spearman's rank correlation of every term over held-out images, half
of them normal (`ours`), beside 0.99 (`reference`), and the AUROC of both. CPUs emulate bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from search_quality import settings_of
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.scoring.scorer import TERMS, Scorer
from jax_noisy_anogan.training import state as state_lib
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import networks_of

WANTED = 0.99


def scores(trained: Model, config: Config, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every term of every image, with the precision that the config names."""
    scorer = Scorer(trained, config)
    latents = [found.latents for found in scorer.search(images)]
    results = list(scorer.measure(zip(images, latents, strict=True)))
    return {term: np.array([result.terms[term] for result in results]) for term in TERMS}


def compare(run: Path, *, images: int, steps: int) -> list[dict[str, Any]]:
    """A row per term."""
    config = settings_of(run)
    config.search = dataclasses.replace(config.search, steps=steps)
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    test = make_split(dataset, config.data).test
    abnormal = make_split(dataset, config.data).is_abnormal[test]
    halves = (test[~abnormal][: images // 2], test[abnormal][: images - images // 2])
    source = dataset.source(dataset.resolution)
    chosen = [source[int(index)] for index in np.concatenate(halves)]
    is_abnormal = np.repeat([False, True], [len(half) for half in halves])

    trained = state_lib.load_model(run, config)
    found = {}
    for dtype in ("float32", "bfloat16"):
        network = dataclasses.replace(config.network, compute_dtype=dtype)
        other = dataclasses.replace(config, network=network)
        phase = make_schedule(config.growth).phases[-1]
        found[dtype] = scores(trained._replace(networks=networks_of(other, phase)), other, chosen)
    rows = []
    for term in TERMS:
        wide, narrow = found["float32"][term], found["bfloat16"][term]
        rank = float(stats.spearmanr(wide, narrow).statistic)
        rows.append(
            {
                "name": f"{term}, {len(chosen)} images, {steps} steps",
                "ours": rank,
                "reference": WANTED,
                "ratio": rank / WANTED,
                "auroc_float32": float(roc_auc_score(is_abnormal, wide)),
                "auroc_bfloat16": float(roc_auc_score(is_abnormal, narrow)),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--images", type=int, default=300, help="half of them normal")
    parser.add_argument("--steps", type=int, default=30, help="of the search")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    options = parser.parse_args(arguments)
    rows = compare(options.run, images=options.images, steps=options.steps)
    print(f"{'term':40} {'Spearman':>9} {'AUROC float32':>14} {'bfloat16':>9}")
    for row in rows:
        print(
            f"{row['name']:40} {row['ours']:>9.4f} {row['auroc_float32']:>14.4f} "
            f"{row['auroc_bfloat16']:>9.4f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
