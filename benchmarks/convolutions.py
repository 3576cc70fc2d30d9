"""3 x 3 convolutions on one CPU core, by this JAX: which form is fast, at which size.

    python benchmarks/convolutions.py [--seconds 2] [--only PART_OF_A_NAME]

Answers three questions about `networks/convolution.py`, in Gflop/s of the plain convolution's work:

- `forward`: XLA's convolution, and neighbours taken as channels of one pixel (few channels only).
- `kernel's gradient`: whole, in pieces of at most 2^16, 2^18 and 2^20 numbers, and as the package
  has it.
- `input's gradient in a loop`: that of autodiff, and the package's, both inside `lax.scan`.

All forms of a line take turns; a figure is the median of CPU times. The process stays on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
from jax import lax
from rich.console import Console
from rich.table import Table

from jax_noisy_anogan.networks import convolution
from jax_noisy_anogan.networks.convolution import conv2d, conv2d_kernel_gradient
from jax_noisy_anogan.runtime.parallel import own_code_options

# Images, side, channels: layers of the shipped configs, and of full width.
CASES = (
    (32, 16, 64),
    (32, 32, 32),
    (32, 32, 64),
    (16, 32, 256),
    (16, 64, 64),
    (8, 128, 32),
    (8, 128, 4),
    (4, 256, 2),
)
PIECES = (2**16, 2**18, 2**20)
ITERATIONS = 4
ALL = 2**62  # numbers: nothing is divided

Form = Callable[..., jax.Array]


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=convolution._NHWC)


def _in_loop(function: Form) -> Form:
    """The gradient by the input, again and again, as in the latent search."""

    def run(x: jax.Array, kernel: jax.Array, _: jax.Array) -> jax.Array:
        def step(cotangent: jax.Array, _: None) -> tuple[jax.Array, None]:
            (gradient,) = jax.vjp(lambda x: function(x, kernel), x)[1](cotangent)
            return cotangent - 1e-3 * gradient, None

        return lax.scan(step, x, None, length=ITERATIONS)[0]

    return run


def _gradient(numbers: int) -> Form:
    """The kernel's gradient in pieces of at most `numbers`, and channels as they are."""

    def run(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        with mock.patch.multiple(convolution, _CACHED_NUMBERS=numbers, FEW_CHANNELS=0):
            return conv2d_kernel_gradient(x, cotangent, kernel)

    return run


def forms() -> Iterator[tuple[str, dict[str, Form], int]]:
    """Question, forms to compare, and how often each does the work of one convolution."""
    yield "forward", {"XLA": lambda x, k, _: plain(x, k), "ours": lambda x, k, _: conv2d(x, k)}, 1
    yield (
        "kernel's gradient",
        {
            "whole": _gradient(ALL),
            **{f"2^{n.bit_length() - 1}": _gradient(n) for n in PIECES},
            "ours": lambda x, k, y: conv2d_kernel_gradient(x, y, k),
        },
        1,
    )
    in_loop = {"XLA": _in_loop(plain), "ours": _in_loop(conv2d)}
    yield "input's gradient in a loop", in_loop, ITERATIONS


def measure(case: tuple[int, int, int], seconds: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Question, and Gflop/s of each form."""
    n, side, channels = case
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(key, (n, side, side, channels)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, channels, channels))
    work = 2 * 9 * n * side * side * channels * channels
    # As training with so few channels is compiled.
    options = own_code_options("cpu") if channels <= convolution.FEW_CHANNELS else None
    for question, compared, times in forms():
        compiled = {
            name: jax.jit(form).lower(x, kernel, y).compile(options)
            for name, form in compared.items()
        }
        took: dict[str, list[float]] = {name: [] for name in compiled}
        end = time.process_time() + seconds
        # The first turn warms up.
        while len(min(took.values(), key=len)) < 2 or time.process_time() < end:
            for name, function in compiled.items():
                start = time.process_time()
                jax.block_until_ready(function(x, kernel, y))
                took[name].append(time.process_time() - start)
        best = {name: statistics.median(spent[1:]) for name, spent in took.items()}
        yield question, {name: times * work / spent / 1e9 for name, spent in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time per line")
    parser.add_argument("--only", default="", help="lines whose name contains this")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for case in CASES:
        name = f"{case[0]} x {case[1]}² x {case[2]}"
        if arguments.only not in name:
            continue
        for question, rates in measure(case, arguments.seconds):
            found.setdefault(question, []).append((name, rates))
    console = Console(width=100)
    console.print(f"jax {jax.__version__}, Gflop/s of one core", highlight=False)
    for question, lines in found.items():
        table = Table(title=question, title_justify="left")
        table.add_column("images x side x channels")
        for form in lines[0][1]:
            table.add_column(form, justify="right")
        for name, rates in lines:
            table.add_row(name, *(f"{rate:.0f}" for rate in rates.values()))
        console.print(table)


if __name__ == "__main__":
    main()
