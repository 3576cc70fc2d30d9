"""Peak memory of training and search at full width, from the compiled programs' own analysis.

    python benchmarks/memory.py [--quick] [--json FILE] [--only TEXT]

Nothing is executed and no array allocated: programs are compiled from shapes, so 1024 x 1024 is
looked at on any machine, for the kind of device that JAX finds there. The peak is that of
arguments, results and temporaries together. On a CPU it is an estimate of an accelerator's: other
convolutions need other workspaces; bfloat16 is computed in float32 there, which costs memory
instead of saving it; and rematerialisation alone saved little there, with 4 % more operations only:
XLA for CPUs seems to merge most recomputed blocks with the first computation. `ours` and
`reference` are GiB with and without the settings, `ratio` is ours / reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import NamedTuple

import jax
from programs import Work, program_bytes
from rich.console import Console
from rich.table import Table

CARDS = (16, 24, 80)
# Of an accelerator's memory, what is left beside JAX's own and the data that wait.
USABLE = 0.9
TRAIN_BATCH = {32: 16, 64: 16, 128: 16, 256: 16, 512: 8, 1024: 4}
SEARCH_BATCH = 8


class Row(NamedTuple):
    """A program; the first four fields are common to all benchmarks of the project."""

    name: str
    ours: float
    reference: float | None
    ratio: float | None
    compile_seconds: float
    fits: list[int]


def works(quick: bool) -> list[list[Work]]:
    """Groups of programs that do the same work, the plain one first."""
    groups = []
    for resolution in (32, 256) if quick else TRAIN_BATCH:
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            for kind, batch in (("train", TRAIN_BATCH[resolution]), ("search", SEARCH_BATCH)):
                plain = Work(kind, resolution, batch, dtype)
                group = [plain, dataclasses.replace(plain, rematerialize=True)]
                if kind == "train":
                    group.append(dataclasses.replace(plain, microbatch=1))
                    group.append(dataclasses.replace(plain, rematerialize=True, microbatch=1))
                groups.append(group)
    return groups


def measure(work: Work, reference: float | None) -> Row:
    start = time.perf_counter()
    # The optimisation of machine code takes minutes and changes no buffer.
    on_cpu = jax.default_backend() == "cpu"
    program = work.compile({"xla_backend_optimization_level": "0"} if on_cpu else None)
    size = program_bytes(program) / 2**30
    return Row(
        work.name,
        size,
        reference,
        None if reference is None else size / reference,
        time.perf_counter() - start,
        [card for card in CARDS if size <= USABLE * card],
    )


def show(rows: list[Row], console: Console) -> None:
    table = Table(title=f"GiB by the analysis of XLA for {jax.devices()[0].device_kind}")
    for index, column in enumerate(("program", "GiB", "/ plain", "fits a card of", "compile s")):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        smallest = f"{row.fits[0]} GiB" if row.fits else "none"
        table.add_row(row.name, f"{row.ours:.2f}", ratio, smallest, f"{row.compile_seconds:.0f}")
    console.print(table)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="32² and 256², float32 only")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args(arguments)

    console, rows = Console(), []
    for group in works(options.quick):
        reference = None
        for work in group:
            if options.only not in work.name:
                continue
            row = measure(work, reference)
            reference = row.ours if work == work.plain else reference
            rows.append(row)
            console.print(f"{row.name}: {row.ours:.2f} GiB", highlight=False)
            if options.json:  # after every row: compiling them all takes long
                with open(options.json, "w") as file:
                    json.dump([row._asdict() for row in rows], file, indent=1)
    show(rows, console)
    return rows


if __name__ == "__main__":
    main()
