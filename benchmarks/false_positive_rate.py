"""How often fresh normal images are flagged, by number of validation images.

    python benchmarks/false_positive_rate.py --workdir RUN [--repeats 200]

Searches every normal image of a finished run's data set that did not train. Then draws validation
images from them again and again, fits map statistics, calibration and thresholds to these without
known abnormal images, and counts how many of all others lie above: 5 % is what is asked for. Beside
it the same with validation images that are judged by what was fitted to them, as up to version 0.1.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from search_quality import settings_of

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import CALIBRATED
from jax_noisy_anogan.scoring.maps import MapMoments, calibrated_map
from jax_noisy_anogan.scoring.scorer import LOCAL, ImageResult, Scorer
from jax_noisy_anogan.training.state import load_model

COUNTS = (9, 20, 40, 52)
NOMINAL = 0.05


def held_out(config: Config, workdir: Path, images: int) -> list[ImageResult]:
    """What G and D say of normal images that did not train."""
    dataset = load_dataset(config.data, resolution=config.growth.resolution)
    split = make_split(dataset, config.data)
    normal = np.setdiff1d(np.flatnonzero(~split.is_abnormal), split.train_normal)[:images]
    scorer, source = Scorer(load_model(workdir, config), config), dataset.source(dataset.resolution)
    shown = [source[int(index)] for index in normal]
    latents = (found.latents for found in scorer.search(shown))
    return list(scorer.measure(zip(shown, latents, strict=True)))


def rates(
    results: list[ImageResult], chosen: Int[np.ndarray, " n"], sigma: float, *, cross_fit: bool
) -> dict[str, float]:
    """Share of the images that were not chosen above each threshold."""
    moments = MapMoments(sigma=sigma)
    for k in chosen:
        moments.add(results[k].map)
    all_maps = np.stack([result.map for result in results])
    heights = np.asarray(calibrated_map(all_maps, moments.calibration(), sigma=sigma)).max(
        axis=(1, 2)
    )
    terms = {name: np.array([r.terms[name] for r in results]) for name in results[0].terms}
    validation = {name: values[chosen] for name, values in terms.items()}
    own = heights[chosen]
    if cross_fit:
        without = (moments.calibration(without=moments.of(results[k].map)) for k in chosen)
        own = np.array(
            [
                float(np.max(calibrated_map(results[k].map, maps, sigma=sigma)))
                for k, maps in zip(chosen, without, strict=True)
            ]
        )
    validation[LOCAL] = own
    none = dict.fromkeys(validation, np.zeros(0))
    fitted = calibration_lib.fit(validation, none, rule="quantile", false_positive_rate=NOMINAL)
    thresholds = {name: t.chosen for name, t in fitted.calibration.thresholds.items()}
    scores = {**terms, LOCAL: heights}
    scores[CALIBRATED] = fitted.calibration.calibrated(scores)
    if not cross_fit:
        thresholds = {name: plain_quantile(values[chosen]) for name, values in scores.items()}
    fresh: Bool[np.ndarray, " all"] = np.ones(len(results), bool)
    fresh[chosen] = False
    return {
        name: float(np.mean(scores[name][fresh] > thresholds[name])) for name in (LOCAL, CALIBRATED)
    }


def plain_quantile(scores: Float[np.ndarray, " n"]) -> float:
    """The smallest of the scores that at most the nominal share of them exceeds."""
    return float(np.sort(scores)[len(scores) - 1 - int(NOMINAL * len(scores) + 1e-9)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000, help="at most so many normal images")
    options = parser.parse_args(arguments)
    config = settings_of(options.workdir)
    quiet = dataclasses.replace(config.search, record_curve=False)
    results = held_out(dataclasses.replace(config, search=quiet), options.workdir, options.images)
    table = Table("validation normals", "score", "fitted to itself", "cross-fitted", "asked for")
    for count in COUNTS:
        rng = np.random.default_rng(count)
        drawn = [rng.choice(len(results), count, replace=False) for _ in range(options.repeats)]
        found = {
            cross_fit: [
                rates(results, chosen, config.score.map_sigma, cross_fit=cross_fit)
                for chosen in drawn
            ]
            for cross_fit in (False, True)
        }
        for name in (LOCAL, CALIBRATED):
            plain, crossed = (np.array([r[name] for r in found[kind]]) for kind in (False, True))
            table.add_row(
                str(count),
                name,
                f"{plain.mean():.3f}",
                f"{crossed.mean():.3f} ({np.quantile(crossed, 0.05):.2f} to "
                f"{np.quantile(crossed, 0.95):.2f})",
                f"{NOMINAL:.3f}",
            )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{len(results)} normal images that did not train, {options.repeats} draws; in brackets "
        "the middle 90 % of the draws"
    )


if __name__ == "__main__":
    main()
