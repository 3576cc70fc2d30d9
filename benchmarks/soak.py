"""Memory and file handles over an hour of training and scoring: `python benchmarks/soak.py`.

One process trains a tiny model through all phases, evaluates it, and scores files with it, good and
bad ones, with every picture; then does it again, until the time is up. After each round it prints
its resident memory, open file handles and threads. What the warm-up (the first fifth of the time)
reaches is the measure: the median of the last quarter of the rounds must not lie more than
`RSS_GROWTH` and `HANDLE_GROWTH` above the median of as many rounds after the warm-up. `--json FILE`
also writes the rounds. Exit code 1 says that a bound was passed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    SearchConfig,
    TrainConfig,
    validate,
)
from jax_noisy_anogan.data.folders import find_images
from jax_noisy_anogan.scoring.files import score_files
from jax_noisy_anogan.training.growth import make_schedule

RSS_GROWTH = 0.05
HANDLE_GROWTH = 2
WARM_UP = 0.2
FILES = 200


class Round(NamedTuple):
    """What the process holds after a round, and what it has done until then."""

    seconds: float
    rss_mib: float
    handles: int
    threads: int
    trained: int
    scored: int


def tiny_config(cache: Path) -> Config:
    """Three phases up to 8 x 8 pixels, on digits."""
    return validate(
        Config(
            data=DataConfig(max_test_images=100, cache_dir=str(cache / "records")),
            network=NetworkConfig(fmap_base=32, fmap_max=8, latent_size=8),
            growth=GrowthConfig(
                resolution=8,
                stable_images=2_000,
                fade_images=2_000,
                final_images=2_000,
                minibatch_default=16,
            ),
            search=SearchConfig(steps=10, batch_size=32),
            train=TrainConfig(
                checkpoint_every_images=1_000,
                log_every_steps=10,
                compilation_cache_dir=str(cache / "programs"),
            ),
        )
    )


def write_files(folder: Path, count: int) -> None:
    """Grey, colour, 16-bit and damaged files in turn."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        kind, path = number % 4, folder / f"{number:04d}.png"
        shape = (28, 28, 3) if kind == 1 else (28, 28)
        high, dtype = (65_536, np.uint16) if kind == 2 else (256, np.uint8)
        Image.fromarray(rng.integers(0, high, shape, dtype)).save(path)
        if kind == 3:
            os.truncate(path, path.stat().st_size // 2)


def soak(root: Path, minutes: float, tell: Callable[[Round], object]) -> list[Round]:
    """Work until the time is up."""
    config, images = tiny_config(root), root / "images"
    write_files(images, FILES)
    trained, scored, rounds = 0, 0, []
    start = time.monotonic()
    while time.monotonic() - start < 60 * minutes:
        work = root / "work"
        seeded = dataclasses.replace(config.train, seed=len(rounds))
        experiment.run(dataclasses.replace(config, train=seeded), work / "run", progress=False)
        detector = jax_noisy_anogan.load(work / "run")
        files = find_images([images]).files
        score_files(detector, files, work / "out", heatmaps="all", maps=True, progress=False)
        del detector
        shutil.rmtree(work)
        gc.collect()
        trained += make_schedule(config.growth).total_images
        scored += len(files)
        rounds.append(
            Round(
                round(time.monotonic() - start, 1),
                round(_rss_mib(), 1),
                len(os.listdir("/proc/self/fd")),
                threading.active_count(),
                trained,
                scored,
            )
        )
        tell(rounds[-1])
    return rounds


def growth(rounds: Sequence[Round]) -> tuple[list[Round], list[Round]]:
    """Rounds after the warm-up and at the end, as many of each."""
    steady = [r for r in rounds if r.seconds > WARM_UP * rounds[-1].seconds]
    count = max(1, len(steady) // 4)
    return steady[:count], steady[-count:]


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to work")
    parser.add_argument("--json", type=Path, help="also write the rounds to this file")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    print(" ".join(f"{name:>9}" for name in Round._fields))

    def tell(now: Round) -> None:
        print(" ".join(f"{value:>9}" for value in now), flush=True)
        done.append(now)
        if arguments.json:
            rows = [row._asdict() for row in done]
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")

    done: list[Round] = []
    with tempfile.TemporaryDirectory() as root:
        rounds = soak(Path(root), arguments.minutes, tell)
    first, last = growth(rounds)
    rss, handles, threads = (
        [statistics.median(getattr(r, name) for r in part) for part in (first, last)]
        for name in ("rss_mib", "handles", "threads")
    )
    kept = rss[1] <= rss[0] * (1 + RSS_GROWTH) and handles[1] <= handles[0] + HANDLE_GROWTH
    print(
        f"{len(rounds)} rounds, {rounds[-1].trained:,} images trained, {rounds[-1].scored:,} files "
        f"scored; after the warm-up and at the end: {rss[0]:.1f} and {rss[1]:.1f} MiB (bound "
        f"{rss[0] * (1 + RSS_GROWTH):.1f}), {handles[0]:.0f} and {handles[1]:.0f} handles (bound "
        f"{handles[0] + HANDLE_GROWTH:.0f}), {threads[0]:.0f} and {threads[1]:.0f} threads"
    )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
