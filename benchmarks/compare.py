"""Training step and search iteration beside the PyTorch twin, on this machine.

    python benchmarks/compare.py [--quick] [--json FILE] [--single-core] [--our-python FILE]

Both sides run in alternation, with the same weights, images, settings and number of threads, in
one process, or with `--our-python` the package in that Python, which may have a JAX that this one
cannot have; what is reported is the median of the ratios of neighbouring runs, so that other load
on the machine falls on both. `ours` and `reference` are images per second (of a search: images
times iterations per second); a ratio above 1 means that the package is faster. Flops are counted
from the twin's convolutions and products, so both sides' share of the machine's measured matrix
rate is a share of the same necessary work. Needs the extra `bench`.

On a machine that others use, wall time says little: with more runnable processes than cores,
PyTorch on two threads was seen to fall behind 20-fold.
`--single-core` keeps the process on one core and counts its own CPU time on both sides instead; a
warning is printed where it should have been used.

The last rows compare searches of the whole 500 steps: peers search one image at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import our_side
import torch
import torch_twin
from our_side import LATENT, Case, Elsewhere, Here, Side, seconds_of
from programs import GAMMA, STDDEV
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.networks import sample_latents
from jax_noisy_anogan.networks.pixels import to_float_images
from jax_noisy_anogan.training.state import ema_decay_for

PEER_STEPS = 500
QUICK = [
    Case("search", 32, 32, 32),
    Case("search", 32, 64, 32),
    Case("train", 32, 32, 32),
    Case("train", 32, 64, 32),
]
FULL = [
    *QUICK,
    Case("search", 32, 64, 32, channels_last=True),
    Case("train", 32, 64, 32, channels_last=True),
    Case("train", 32, 64, 32, penalty_interval=4),
    Case("search", 32, 64, 1),
    Case("search", 32, 64, 128),
    Case("search", 32, 256, 16),
    Case("train", 32, 256, 16),
    Case("search", 64, 64, 16),
    Case("train", 64, 64, 16),
    Case("search", 128, 32, 8),
    Case("train", 128, 32, 8),
    Case("search", 256, 16, 4),
    Case("train", 256, 16, 4),
    # What bounds the rows above: single layers.
    *(
        Case(kind, side, channels, batch)
        for side, channels, batch in ((32, 64, 32), (32, 256, 16), (128, 8, 8), (256, 2, 4))
        for kind in ("conv", "kernel-gradient")
    ),
]


class Row(NamedTuple):
    """A result; the first four fields are common to all benchmarks of the project."""

    name: str
    ours: float
    reference: float
    ratio: float
    ratio_low: float
    ratio_high: float
    compile_seconds: float
    compilations: int
    megabytes: float
    gigaflops_per_image: float
    machine_share: float
    machine_share_reference: float


def twin_of(case: Case) -> torch_twin.Twin:
    networks, params = our_side.build(case)
    return torch_twin.make_twin(networks, params, channels_last=case.channels_last)


def _twin_images(images: Any, case: Case) -> torch.Tensor:
    tensor = torch_twin.to_torch_images(images)
    form = torch.channels_last if case.channels_last else torch.contiguous_format
    return tensor.contiguous(memory_format=form)


def train_twin(case: Case) -> Side:
    networks, _ = our_side.build(case)
    decay = ema_decay_for(10_000, case.batch)
    trainer = torch_twin.Trainer(twin_of(case), OptimConfig(), LossConfig(gamma=GAMMA), decay)
    x, y = (_twin_images(our_side.byte_images(networks, case.batch, seed), case) for seed in (1, 2))

    def run() -> None:
        z = torch.rand(case.batch, LATENT) * 2.0 - 1.0
        trainer.step(x, y, z)

    return Side(run, case.batch)


def search_twin(case: Case) -> Side:
    networks, _ = our_side.build(case)
    twin, search = twin_of(case), SearchConfig(steps=case.steps)
    start = sample_latents(jax.random.key(2), "uniform", (1, LATENT))
    start = torch.from_numpy(np.array(start))
    images = to_float_images(jnp.asarray(our_side.byte_images(networks, case.batch, 1)))
    x = _twin_images(images, case)

    def run() -> None:
        torch_twin.search_latents(twin, x, start, search=search, gamma=GAMMA, stddev=STDDEV)

    return Side(run, case.batch * case.steps)


def layer_twin(case: Case) -> Side:
    x, cotangent, kernel = our_side.layer_arrays(case)
    images, cotangents, weight = (
        torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
        for array, axes in (
            (x, (0, 3, 1, 2)),
            (cotangent, (0, 3, 1, 2)),
            (kernel, (3, 2, 0, 1)),
        )
    )

    def run() -> None:
        if case.kind == "conv":
            torch.conv2d(images, weight, padding=1)
        else:
            torch.nn.grad.conv2d_weight(images, weight.shape, cotangents, padding=1)

    return Side(run, case.batch)


TWINS: dict[str, Callable[[Case], Side]] = {
    "train": train_twin,
    "search": search_twin,
    "conv": layer_twin,
    "kernel-gradient": layer_twin,
}


def alternate(
    ours: Callable[[], Any], reference: Callable[[], Any], *, trials: int, seconds: float
) -> list[tuple[float, float]]:
    """Pairs of neighbouring run times, after one run of each that is not counted.

    Every second pair runs in the opposite order. Ends after `trials` pairs, or after `seconds` when
    at least three are done.
    """
    ours(), reference()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < trials and (len(pairs) < 3 or time.perf_counter() < end):
        if len(pairs) % 2:
            second = seconds_of(reference)
            pairs.append((seconds_of(ours), second))
        else:
            first = seconds_of(ours)
            pairs.append((first, seconds_of(reference)))
    return pairs


def summarise(pairs: list[tuple[float, float]]) -> tuple[float, float, tuple[float, float, float]]:
    """Median seconds of both sides; quartiles (25, 50, 75 %) of reference / ours."""
    ratios = np.array([reference / ours for ours, reference in pairs])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    return ours, reference, (float(low), float(middle), float(high))


def matrix_rate(size: int = 2048, trials: int = 7) -> float:
    """Flops per second of the better of both sides' matrix product: the machine's ceiling."""
    ones = np.ones((size, size), np.float32)
    a, b = jnp.asarray(ones), torch.from_numpy(ones)
    product = jax.jit(jnp.matmul)
    pairs = alternate(
        lambda: jax.block_until_ready(product(a, a)), lambda: b @ b, trials=trials, seconds=10
    )
    return 2.0 * size**3 / min(map(min, pairs))


class FlopCounter(TorchDispatchMode):
    """Adds up the operations of convolutions and products.

    PyTorch's own `FlopCounterMode` tracks modules with hooks that `autograd.grad`, which R1 needs,
    refuses; its formulas are the ones used here.
    """

    total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations in the convolutions and products of a PyTorch run."""
    with FlopCounter() as counter:
        run()
    return float(counter.total)


def measure(
    case: Case, package: Here | Elsewhere, *, ceiling: float, trials: int, seconds: float
) -> Row:
    (ours, program), twin = package.side(case), TWINS[case.kind](case)
    flops, before = count_flops(twin.run), package.compilations
    pairs = alternate(ours.run, twin.run, trials=trials, seconds=seconds)
    ours_seconds, twin_seconds, (low, ratio, high) = summarise(pairs)
    return Row(
        case.name,
        ours.images / ours_seconds,
        twin.images / twin_seconds,
        ratio,
        low,
        high,
        program.seconds,
        1 + package.compilations - before,
        program.megabytes,
        flops / twin.images / 1e9,
        flops / ours_seconds / ceiling,
        flops / twin_seconds / ceiling,
    )


def measure_peers(package: Here | Elsewhere, *, ceiling: float, seconds: float) -> Row:
    """64 images in one batch against the way of the peers: one image after the other.

    Both are searched for `PEER_STEPS`; `ours` and `reference` are whole images per second. The
    reference is the twin at batch 1, which is kinder than peers that rebuild graphs or re-run D(x).
    """
    case = Case("search", 32, 64, 64, steps=PEER_STEPS)
    ours, program = package.side(case)
    alone = search_twin(dataclasses.replace(case, batch=1))
    flops, before = count_flops(alone.run), package.compilations
    pairs = alternate(ours.run, alone.run, trials=3, seconds=seconds)
    pairs = [(mine / case.batch, theirs) for mine, theirs in pairs]
    ours_seconds, twin_seconds, (low, ratio, high) = summarise(pairs)
    return Row(
        f"search 32² fmap 64, {PEER_STEPS} steps: batch {case.batch} / one at a time",
        1.0 / ours_seconds,
        1.0 / twin_seconds,
        ratio,
        low,
        high,
        program.seconds,
        1 + package.compilations - before,
        program.megabytes,
        flops / 1e9,
        flops / ours_seconds / ceiling,
        flops / twin_seconds / ceiling,
    )


def show(rows: list[Row], jax_version: str, ceiling: float, console: Console) -> None:
    table = Table(
        title=f"images/s, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"JAX {jax_version}; matrix products reach {ceiling / 1e9:.0f} Gflop/s"
    )
    columns = "name,ours,twin,ratio,quartiles,compile s,programs,MiB,Gflop/image,% peak,twin %"
    for index, column in enumerate(columns.split(",")):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.ours:,.4g}",
            f"{row.reference:,.4g}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f}-{row.ratio_high:.2f}",
            f"{row.compile_seconds:.1f}",
            str(row.compilations),
            f"{row.megabytes:,.0f}",
            f"{row.gigaflops_per_image:.3g}",
            f"{100 * row.machine_share:.0f}",
            f"{100 * row.machine_share_reference:.0f}",
        )
    console.print(table)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the four settings at 32² only")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument(
        "--single-core", action="store_true", help="one core, and its CPU time instead of wall time"
    )
    parser.add_argument(
        "--our-python", metavar="FILE", help="runs the package's side: a Python with another JAX"
    )
    parser.add_argument("--trials", type=int, default=15, help="pairs of runs per row")
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time per row")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args(arguments)

    console, rows = Console(), []
    if options.single_core:
        our_side.keep_to_one_core()
        torch.set_num_threads(1)
    elif os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        console.print(
            "The machine is busy: wall times will mislead, use --single-core", style="red"
        )
    package: Here | Elsewhere = Here()
    if options.our_python:
        package = Elsewhere(options.our_python, single_core=options.single_core)
    ceiling = matrix_rate()
    for case in QUICK if options.quick else FULL:
        if options.only in case.name:
            row = measure(
                case, package, ceiling=ceiling, trials=options.trials, seconds=options.seconds
            )
            rows.append(row)
            spread = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
            console.print(f"{row.name}: {row.ratio:.2f} ({spread})", highlight=False)
    if not options.quick and options.only in "peers":
        rows.append(measure_peers(package, ceiling=ceiling, seconds=options.seconds))
    package.close()
    show(rows, package.jax_version, ceiling, console)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([row._asdict() for row in rows], file, indent=1)
    return rows


if __name__ == "__main__":
    main()
