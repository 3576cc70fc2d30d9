"""Training and search at full width on one accelerator, within a budget of minutes.

    python benchmarks/accelerator.py [--quick] [--json FILE] [--time_budget_s 480]

Per resolution (32 to 1024), float32 and bfloat16 (parameters, norms and the penalty stay float32):
images per second of a training step and of a search iteration; the rate of the convolutions and
products that the plain work needs (`ours`, TFLOP/s) against that of a large matrix product in the
same precision on the same device (`reference`); memory by the compiled program's own analysis
against the device's. A program that does not fit is tried again with rematerialisation and
microbatches; what does not fit in the time either is listed as skipped. At the end MNIST: one digit
trained (`configs/mnist.py`, or the 5,000 digits of `configs/mnist5k.py` without `--mnist_root`) and
10,000 images searched for 500 steps.

`--only 1024 --steps 1` runs a part, also on a CPU:

    python benchmarks/accelerator.py --only 1024 --dtypes float32 --steps 1 --time_budget_s 7200
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import resource
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from programs import Work, program_bytes
from rich.console import Console
from rich.table import Table

from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import validate
from jax_noisy_anogan.scoring.scorer import Scorer

TRAIN_BATCH = {32: 64, 128: 32, 256: 16, 512: 8, 1024: 4}
SEARCH_BATCH = {32: 256, 128: 64, 256: 32, 512: 16, 1024: 4}
SEARCH_STEPS = 10
DTYPES = ("float32", "bfloat16")
QUICK = {"fmap_base": 64, "fmap_max": 8, "latent_size": 16}
# A share of the budget that is kept for MNIST.
MNIST_SHARE = 0.3


def works(options: argparse.Namespace) -> list[Work]:
    """Everything to measure, small before large; with `--quick` at a size for any machine."""
    found = []
    resolutions = (8, 16) if options.quick else tuple(TRAIN_BATCH)
    for resolution, kind, dtype in itertools.product(
        resolutions, ("train", "search"), options.dtypes.split(",")
    ):
        sizes = TRAIN_BATCH if kind == "train" else SEARCH_BATCH
        steps = 1 if kind == "train" else min(options.steps, SEARCH_STEPS)
        work = Work(kind, resolution, 4 if options.quick else sizes[resolution], dtype, steps=steps)
        work = dataclasses.replace(work, **QUICK) if options.quick else work
        if options.only in work.name:
            found.append(work)
    return found


def matrix_rate(dtype: str, size: int) -> float:
    """Flops per second of a product of two square matrices."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def device_bytes() -> int | None:
    """What JAX may use of the device; None where it cannot be known, as on CPUs."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def fitting_program(work: Work, limit: int | None) -> tuple[Work, jax.stages.Compiled]:
    """The work's program, with the settings that save memory if it needs them.

    Raises:
      MemoryError: with them, too, it does not fit.
    """
    smaller = dataclasses.replace(work, rematerialize=True, microbatch=int(work.kind == "train"))
    # On a CPU the plain program at 1024² would compile for long and never fit.
    first = smaller if limit is None and work.resolution >= 512 else work
    for attempt in dict.fromkeys((first, smaller)):
        program = attempt.compile()
        if limit is None or program_bytes(program) <= limit:
            return attempt, program
    raise MemoryError(f"needs {program_bytes(program) / 2**30:.1f} GiB")


def measure(
    work: Work, *, ceiling: float, limit: int | None, steps: int, seconds: float
) -> dict[str, Any]:
    """A row of the table: the work done once to warm up, then at most `steps` times."""
    start = time.perf_counter()
    work, program = fitting_program(work, limit)
    compile_seconds = time.perf_counter() - start
    arguments = work.arguments()
    times: list[float] = []
    for turn in range(steps + (steps > 1)):
        start = time.perf_counter()
        out = jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - start)
        if work.kind == "train":
            arguments = (out[0], *arguments[1:])
        if turn and sum(times) > seconds:
            break
    best = float(np.median(times[1:] or times))
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(out))
    rate = work.flops() / best / 1e12
    return {
        "name": work.name,
        "ours": rate,
        "reference": ceiling / 1e12,
        "ratio": rate / (ceiling / 1e12),
        "images_per_second": work.batch * work.steps / best,
        "gibibytes": program_bytes(program) / 2**30,
        "device_gibibytes": None if limit is None else limit / 2**30,
        "compile_seconds": compile_seconds,
        "runs": len(times),
        "finite": finite,
    }


def mnist(options: argparse.Namespace) -> dict[str, Any]:
    """Train one digit, then search; what it took."""
    folder = Path(__file__).parent.parent / "configs"
    name = "mnist" if options.mnist_root else "mnist5k"
    config = runpy.run_path(str(folder / f"{name}.py"))["get_config"]("smoke" * options.quick)
    if options.mnist_root:
        config.data.root = options.mnist_root
    if options.cache_dir:
        config.data.cache_dir = options.cache_dir
    count, config.search.steps = (40, 10) if options.quick else (10_000, 500)
    config.search.batch_size = 40 if options.quick else 1000
    with tempfile.TemporaryDirectory() as run:
        start = time.perf_counter()
        trained = experiment.train(validate(config), Path(run) / "run", progress=False)
        training = time.perf_counter() - start
        source = trained.dataset.source(trained.dataset.resolution)
        indices = np.resize(trained.split.test, count)
        scorer = Scorer(trained.model, config)
        start = time.perf_counter()
        found = sum(1 for _ in scorer.search(source[int(index)] for index in indices))
        searching = time.perf_counter() - start
    return {
        "name": f"{name} end to end",
        "training_seconds": training,
        "searched_images": found,
        "search_steps": config.search.steps,
        "search_seconds": searching,
        "images_per_second": found / searching,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    device = jax.devices()[0]
    table = Table(title=f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    columns = ("work", "images/s", "TFLOP/s", "of products", "GiB", "of device", "compile s")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        if "ours" not in row:
            continue
        limit = row["device_gibibytes"]
        table.add_row(
            row["name"],
            f"{row['images_per_second']:,.4g}",
            f"{row['ours']:.3g} / {row['reference']:.3g}",
            f"{100 * row['ratio']:.0f} %",
            f"{row['gibibytes']:.2f}",
            "?" if limit is None else f"{100 * row['gibibytes'] / limit:.0f} %",
            f"{row['compile_seconds']:.0f}",
        )
    console.print(table)
    for row in rows:
        if "skipped" in row:
            console.print(f"skipped {row['name']}: {row['skipped']}", highlight=False)
        elif "training_seconds" in row:
            console.print(
                f"{row['name']}: trained in {row['training_seconds']:.0f} s; "
                f"{row['searched_images']:,} images x {row['search_steps']} steps in "
                f"{row['search_seconds']:.0f} s",
                highlight=False,
            )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for any machine")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--time_budget_s", type=float, default=480.0, help="of the whole command")
    parser.add_argument("--steps", type=int, default=20, help="runs per row, at most")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="separated by a comma")
    parser.add_argument("--only", default="", help="works whose name contains this; no MNIST then")
    parser.add_argument("--mnist_root", default="", help="folder of MNIST's four files")
    parser.add_argument("--cache_dir", default="", help="for prepared records")
    options = parser.parse_args(arguments)

    console, rows = Console(), []
    start = time.perf_counter()
    with_mnist = not options.only
    budget = options.time_budget_s * (1.0 - MNIST_SHARE * with_mnist)
    size = 8192 if jax.default_backend() == "gpu" else 256 if options.quick else 2048
    ceilings = {dtype: matrix_rate(dtype, size) for dtype in options.dtypes.split(",")}
    limit, longest = device_bytes(), 0.0

    def left(until: float) -> float:
        return until - (time.perf_counter() - start)

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        told = row.get("skipped") or f"{row['images_per_second']:.4g} images/s"
        console.print(f"[{time.perf_counter() - start:.0f} s] {row['name']}: {told}", markup=False)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))

    for work in works(options):
        # A larger resolution takes longer to compile than anything before it.
        if left(budget) < 1.5 * longest:
            keep({"name": work.name, "skipped": f"{left(budget):.0f} s of the budget are left"})
            continue
        begun = time.perf_counter()
        try:
            keep(
                measure(
                    work,
                    ceiling=ceilings[work.dtype],
                    limit=limit,
                    steps=options.steps,
                    seconds=10.0,
                )
            )
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            keep({"name": work.name, "skipped": str(error).splitlines()[0]})
        longest = max(longest, time.perf_counter() - begun)
    if with_mnist and left(options.time_budget_s) < 0.5 * MNIST_SHARE * options.time_budget_s:
        keep({"name": "MNIST end to end", "skipped": "no time left"})
    elif with_mnist:
        keep(mnist(options))
    show(rows, console)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is None:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        console.print("peak of this process's memory (host):", end=" ")
    else:
        console.print("peak of the device's memory:", end=" ")
    console.print(f"{peak / 2**30:.2f} GiB; {time.perf_counter() - start:.0f} s in all")
    return rows


if __name__ == "__main__":
    main()
