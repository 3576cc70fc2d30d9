"""Thousands of files through the score command: memory over time, and three kills on the way.

    python benchmarks/many_files.py --workdir RUN [--files 5000] [--json FILE]

Draws the files with a seed (PNG, JPEG, BMP and TIFF in turn, grey, RGB and 16-bit, of three sizes),
scores them once undisturbed and once killed (SIGKILL) at three random moments and started again,
and compares both tables but for their times. After a kill other images share a batch, which may
change the last bits of a score: figures may differ by `TOLERANCE` of their size, everything else
not at all. Memory is the resident set of the command, read every second; growth is counted from a
fifth of the way, when everything is compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

KILLS = 3
TOLERANCE = 1e-5
SIZES = (28, 48, 96)
FORMATS = ("png", "jpg", "bmp", "tiff")


def draw_files(folder: Path, count: int, seed: int) -> None:
    """Smoothed noise: nothing that a score depends on matters here."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        side, kind = SIZES[number % len(SIZES)], FORMATS[number % len(FORMATS)]
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        image = Image.fromarray(pixels if number % 2 else pixels[..., 0])
        if kind in ("png", "tiff") and number % 5 == 0:
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        image.save(folder / f"{number:06d}.{kind}")


def command(workdir: Path, images: Path, out: Path) -> list[str]:
    program = [sys.executable, "-m", "jax_noisy_anogan.score", "--workdir", str(workdir)]
    return [*program, "--images", str(images), "--out", str(out), "--heatmaps", "none"]


def undisturbed(arguments: list[str]) -> tuple[list[int], float]:
    """Resident bytes every second, and the seconds that the command took."""
    start, memory = time.monotonic(), []
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory.append(seen.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(1.0)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the command failed: {errors.decode()[-2000:]}")
    return memory, time.monotonic() - start


def killed(arguments: list[str], seconds: float, rng: random.Random) -> list[float]:
    """Start, kill and start again; the moments of the kills, in seconds after each start."""
    moments = []
    for _ in range(KILLS):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = rng.uniform(0.1, 0.25) * seconds
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(moment)
        else:
            raise SystemExit("the command ended before it could be killed: give more --files")
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return moments


def table(out: Path) -> list[dict]:
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def largest_difference(ours: dict, theirs: dict) -> float:
    """Between the figures of two rows, relative to their size; infinite where texts differ."""
    worst = 0.0
    for name, a in ours.items():
        b = theirs[name]
        if isinstance(a, float) and isinstance(b, float):
            worst = max(worst, abs(a - b) / max(abs(a), 1.0))
        elif a != b:
            return math.inf
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        draw_files(root / "images", options.files, options.seed)
        memory, seconds = undisturbed(command(options.workdir, root / "images", root / "whole"))
        again = command(options.workdir, root / "images", root / "killed")
        moments = killed(again, seconds, random.Random(options.seed))
        whole, resumed = table(root / "whole"), table(root / "killed")
        shutil.rmtree(root / "images")

    differences = [largest_difference(a, b) for a, b in zip(whole, resumed, strict=True)]
    warm = memory[len(memory) // 5 :]
    half = len(warm) // 2
    result = {
        "files": options.files,
        "rows": len(resumed),
        "lost": len({r["path"] for r in whole} - {r["path"] for r in resumed}),
        "twice": len(resumed) - len({r["path"] for r in resumed}),
        "rows_not_bit_equal": sum(d > 0 for d in differences),
        "largest_difference": max(differences),
        "kills_after_s": [round(m, 1) for m in moments],
        "seconds": round(seconds, 1),
        "files_per_second": round(options.files / seconds, 1),
        "memory_first_half_mib": round(float(np.median(warm[:half])) / 2**20, 1),
        "memory_second_half_mib": round(float(np.median(warm[half:])) / 2**20, 1),
        "memory_peak_mib": round(max(memory) / 2**20, 1),
    }
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    fine = len(resumed) == options.files and not result["lost"]
    fine = fine and result["largest_difference"] <= TOLERANCE
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
