"""Quality against cost of shorter latent searches, on the held-out images of a trained run.

    python benchmarks/search_quality.py --workdir DIR [--json FILE] [--plot FILE] [--images N]
      [--tiles N,N] [--single-core]

The reference is the paper's search: Adam at a constant rate of 0.1, 500 steps, from one latent of
the prior. Every shortcut is a setting of `config.search`. For each start (`prior`, `bank`,
`encoder`, where the run has one) and each number of steps, rate and schedule are
chosen by the AUROC of L' on validation images; the table then shows test images, none of which
decided anything. `ratio` is images per second over those of the reference: all searches take turns,
batch by batch, so that other load on the machine falls on each of them. `decisions/s` counts the
pass of G and D that measures what was found, too: all that a decision needs but reading the image.
`--tiles` asks the same of searches of an image's worst tiles alone (`search.tiles`). Values of L'
come from the least loss that a search has seen; `calibrated` is fitted anew for each search, to the
raw terms of the same validation images. `--single-core` counts this process's CPU time on one core
instead of wall time, for machines that others use.

Last, the reference's program is compiled with an empty and with a filled compilation cache
(`train.compilation_cache_dir`).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import STARTS, Config, SearchConfig
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.scorer import Image, Scorer, learned_term
from jax_noisy_anogan.training.state import load_model

REFERENCE: dict[str, Any] = {
    "steps": 500,
    "optimizer": "adam",
    "learning_rate": 0.1,
    "schedule": "constant",
    "start": "prior",
    "restarts": 1,
    "tiles": 0,
    "record_curve": False,
}
clock: Callable[[], float] = time.perf_counter


class Part(NamedTuple):
    """Held-out images of one part, normal and abnormal ones in equal numbers where there are."""

    images: list[Image]
    is_abnormal: Bool[np.ndarray, " n"]


class Found(NamedTuple):
    """Raw terms of a part by one search, and how long that and measuring them took."""

    terms: dict[str, Float[np.ndarray, " n"]]
    seconds: float
    measuring: float


class Row(NamedTuple):
    """A line of the table, all of test images but the first AUROC.

    Attributes:
      validation_auroc: of L', what decided.
      auroc, auroc_difference: of L', and minus that of the reference.
      calibrated: AUROC of the calibrated score.
      rank_correlation: Spearman's, of L' with the reference's.
      ours, reference, ratio: images per second of this search, of the reference, and the quotient.
      decisions: images per second, measured as well.
    """

    name: str
    ours: float
    decisions: float
    reference: float
    ratio: float
    validation_auroc: float
    auroc: float
    auroc_difference: float
    calibrated: float
    rank_correlation: float
    search: dict[str, Any]


def balanced(
    dataset: Dataset,
    indices: Int[np.ndarray, " n"],
    is_abnormal: Bool[np.ndarray, " all"],
    count: int,
) -> Part:
    """At most `count` of the images, half of each kind, by a fixed seed."""
    rng = np.random.default_rng(0)
    kinds = [rng.permutation(indices[is_abnormal[indices] == kind]) for kind in (False, True)]
    chosen = np.concatenate([kind[: count // 2] for kind in kinds])
    source = dataset.source(dataset.resolution)
    return Part([source[int(index)] for index in chosen], is_abnormal[chosen])


def parts_of(dataset: Dataset, split: Split, images: int) -> tuple[Part, Part]:
    """Validation and test images; half as many of the former."""
    held_back = np.concatenate([split.validation_normal, split.validation_known_abnormal])
    return (
        balanced(dataset, held_back, split.is_abnormal, images // 2),
        balanced(dataset, split.test, split.is_abnormal, images),
    )


def settings_of(run: Path) -> Config:
    """The settings of a run without its memory: these benchmarks are about G and D.

    Where the memory's map was shown, it is the default one.
    """
    config = config_lib.load(run)
    shown = "difference" if config.score.map == "memory" else config.score.map
    score = dataclasses.replace(config.score, memory=False, map=shown)
    return dataclasses.replace(config, score=score)


def with_search(config: Config, changes: dict[str, Any]) -> Config:
    search = dataclasses.replace(config.search, **{**REFERENCE, **changes})
    return config_lib.validate(dataclasses.replace(config, search=search))


def find_in_turns(scorers: list[Scorer], images: list[Image]) -> list[Found]:
    """Terms of all images by each search; the searches take turns, one batch each.

    The first of a single image, which compiles, is not counted.
    """
    size = scorers[0].batch_size
    for scorer in scorers:
        (first,) = scorer.search(images[:1])
        list(scorer.measure([(images[0], first.latents)]))
    seconds = [0.0] * len(scorers)
    latents: list[list[Any]] = [[] for _ in scorers]
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        for index, scorer in enumerate(scorers):
            start = clock()
            latents[index] += [found.latents for found in scorer.search(batch)]
            seconds[index] += clock() - start
    results = []
    for scorer, own, spent in zip(scorers, latents, seconds, strict=True):
        start = clock()
        terms = [result.terms for result in scorer.measure(zip(images, own, strict=True))]
        columns = {name: np.array([row[name] for row in terms]) for name in terms[0]}
        results.append(Found(columns, spent, clock() - start))
    return results


def auroc(scores: Float[np.ndarray, " n"], is_abnormal: Bool[np.ndarray, " n"]) -> float:
    return image_metrics(scores, is_abnormal, threshold=0.0).auroc


def choose(
    candidates: list[dict[str, Any]], quality: list[float]
) -> list[tuple[dict[str, Any], float]]:
    """For every start, number of steps and of tiles the candidate of the highest quality."""
    best: dict[tuple[str, int, int], tuple[dict[str, Any], float]] = {}
    for candidate, value in zip(candidates, quality, strict=True):
        key = candidate["start"], candidate["steps"], candidate.get("tiles", 0)
        if key not in best or value > best[key][1]:
            best[key] = candidate, value
    return list(best.values())


def make_row(
    name: str,
    config: Config,
    validation: tuple[Part, Found],
    test: tuple[Part, Found],
    reference: Found,
) -> Row:
    part, found = validation
    terms = [
        {name: values[part.is_abnormal == kind] for name, values in found.terms.items()}
        for kind in (False, True)
    ]
    fitted = calibration_lib.fit(
        *terms,
        rule=config.score.threshold_rule,
        false_positive_rate=0.05,
        learned=learned_term(config.loss),
    ).calibration
    kinds, count = test[0].is_abnormal, len(test[0].images)
    ours, theirs = (f.terms["score"] for f in (test[1], reference))
    mine = auroc(ours, kinds)
    return Row(
        name,
        count / test[1].seconds,
        count / (test[1].seconds + test[1].measuring),
        count / reference.seconds,
        reference.seconds / test[1].seconds,
        auroc(found.terms["score"], part.is_abnormal),
        mine,
        mine - auroc(theirs, kinds),
        auroc(fitted.calibrated(test[1].terms), kinds),
        float(scipy.stats.spearmanr(ours, theirs).statistic),
        dataclasses.asdict(config.search),
    )


def compile_seconds(model: Model, config: Config, images: list[Image]) -> tuple[float, float]:
    """From a new scorer to its first score, of one step, with an empty and with a filled cache."""
    config = with_search(config, {"steps": 1})
    spent, before = [], jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as folder:
        parallel.keep_compiled(folder)
        for _ in range(2):
            jax.clear_caches()
            start = clock()
            scorer = Scorer(model, config)
            list(scorer.measure([(images[0], next(scorer.search(images[:1])).latents)]))
            spent.append(clock() - start)
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    return spent[0], spent[1]


def describe(search: dict[str, Any] | SearchConfig) -> str:
    get = search.get if isinstance(search, dict) else lambda name: getattr(search, name)
    some = f" of {get('tiles')} tiles" if get("tiles") else ""
    return f"{get('start')}, {get('schedule')} {get('learning_rate'):g}, {get('steps')} steps{some}"


def show(rows: list[Row], console: Console, title: str) -> None:
    table = Table(title=title)
    for index, column in enumerate(
        (
            "search",
            "images/s",
            "ratio",
            "decisions/s",
            "AUROC L'",
            "- reference",
            "calibrated",
            "rank corr.",
        )
    ):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.ours:.2f}",
            f"{row.ratio:.1f}",
            f"{row.decisions:.2f}",
            f"{row.auroc:.4f}",
            f"{row.auroc_difference:+.4f}",
            f"{row.calibrated:.4f}",
            f"{row.rank_correlation:.4f}",
        )
    console.print(table)


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Quality against cost: a line per start; the paper's search is a level with its tolerance."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for start in STARTS:
        points = sorted((row.ratio, row.auroc) for row in rows[1:] if row.search["start"] == start)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=f"from the {start}")
    level = rows[0].auroc
    axes.axhline(level, color="0.3", label=f"{rows[0].search['steps']} steps, +- 0.002")
    axes.axhspan(level - 0.002, level + 0.002, color="0.3", alpha=0.15)
    axes.set_xscale("log")
    axes.set(xlabel="images per second over the paper's", ylabel="AUROC of L', test", title=title)
    axes.legend()
    figure.savefig(path, dpi=100)


def keep_to_one_core() -> None:
    """One core and its CPU time; to be called before JAX computes anything."""
    global clock
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = time.process_time


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a trained run")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draws quality against cost")
    parser.add_argument("--images", type=int, default=400, help="test images, half of them normal")
    parser.add_argument("--starts", help="values of search.start; all that the run has by default")
    parser.add_argument("--steps", type=numbers, default=[10, 25, 45, 100], metavar="N,N")
    parser.add_argument("--rates", type=numbers, default=[0.05, 0.1, 0.2], metavar="RATE,RATE")
    parser.add_argument("--tiles", type=numbers, default=[0], metavar="N,N")
    parser.add_argument("--reference-steps", type=int, default=REFERENCE["steps"])
    parser.add_argument("--single-core", action="store_true", help="one core, and its CPU time")
    options = parser.parse_args(arguments)
    if options.single_core:
        keep_to_one_core()
    console = Console()

    plain = with_search(settings_of(options.workdir), {"steps": options.reference_steps})
    dataset = load_dataset(plain.data, resolution=plain.growth.resolution)
    split = make_split(dataset, plain.data)
    validation, test = parts_of(dataset, split, options.images)
    calibration_lib.require_normals(int((~validation.is_abnormal).sum()))
    model = load_model(options.workdir, plain)
    starts = [start for start in STARTS if start != "encoder" or plain.train.encoder]
    if options.starts:
        starts = options.starts.split(",")

    def scorer_of(changes: dict[str, Any]) -> Scorer:
        return Scorer(model, with_search(plain, changes))

    candidates = [
        {
            "start": start,
            "steps": int(steps),
            "schedule": schedule,
            "learning_rate": rate,
            "tiles": int(tiles),
        }
        for start, steps, schedule, rate, tiles in itertools.product(
            starts, options.steps, ("constant", "cosine"), options.rates, options.tiles
        )
        # Without steps there is nothing to choose, and the same latent begins all searches.
        if (steps or (schedule, rate, tiles) == ("constant", options.rates[0], options.tiles[0]))
        and (not tiles or start != "prior")
    ]
    found = [find_in_turns([scorer_of(c)], validation.images)[0] for c in candidates]
    quality = [auroc(f.terms["score"], validation.is_abnormal) for f in found]
    for candidate, value in zip(candidates, quality, strict=True):
        console.print(f"validation: {describe(candidate)}: {value:.4f}", highlight=False)
    chosen = [
        {"start": "prior", "steps": options.reference_steps},
        *(candidate for candidate, _ in choose(candidates, quality)),
    ]
    scorers = [scorer_of(changes) for changes in chosen]
    on_validation = [
        find_in_turns(scorers[:1], validation.images)[0],
        *(found[candidates.index(changes)] for changes in chosen[1:]),
    ]
    on_test = find_in_turns(scorers, test.images)
    rows = [
        make_row(
            describe(scorer.config.search),
            scorer.config,
            (validation, before),
            (test, after),
            on_test[0],
        )
        for scorer, before, after in zip(scorers, on_validation, on_test, strict=True)
    ]
    show(rows, console, f"{options.workdir.name}: {len(test.images)} test images")
    cold, warm = compile_seconds(model, plain, test.images)
    console.print(f"to the first score: {cold:.1f} s, from the compilation cache {warm:.1f} s")
    if options.json:
        values = [row._asdict() for row in rows]
        Path(options.json).write_text(json.dumps(values, indent=1) + "\n")
    if options.plot:
        draw(rows, options.plot, options.workdir.name)
    return rows


if __name__ == "__main__":
    main()
