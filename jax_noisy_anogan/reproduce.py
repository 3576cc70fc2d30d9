"""The paper's tables and figures: `python -m jax_noisy_anogan.reproduce EXPERIMENT --out DIR`.

EXPERIMENT is one or more of table1, table2, mnist, deep-sad, figure1, figure3, figure4, figure5,
figure6, or all; or objective, which is no part of all. Each is printed and written as Markdown, CSV
and PNG. --size says how much is computed: quick, an hour of two cores; night, a night of them;
full, for a GPU. Finished cells are kept in DIR: run again, the same command goes on.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType

from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.reproduction import deep_sad_sweeps as deep_sad
from jax_noisy_anogan.reproduction import (
    figure1,
    figure3,
    figure4,
    figure5,
    figure6,
    objective_table,
    runner,
    table1,
    table2,
)
from jax_noisy_anogan.reproduction import mnist_table as mnist
from jax_noisy_anogan.reproduction.cells import SIZES, Bench, Cell
from jax_noisy_anogan.runtime.files import user_path

# `cells(bench)` lists what is to compute, `results(bench)` makes tables of what is computed.
EXPERIMENTS: dict[str, ModuleType] = {
    "table1": table1,
    "figure3": figure3,
    "figure6": figure6,
    "mnist": mnist,
    "figure1": figure1,
    "figure4": figure4,
    "figure5": figure5,
    "deep-sad": deep_sad,
    "table2": table2,
    "objective": objective_table,
}
# A choice of this package and no table of the paper: `all` leaves it out.
_APART = "objective"
ROOTS = ("mnist", "ir_mnist", "caltech256")

_OUT = flags.DEFINE_string("out", None, "Folder for results, kept cells and runs", required=True)
_SIZE = flags.DEFINE_enum("size", "full", SIZES, "An hour or a night of two cores, or for a GPU")
_QUICK = flags.DEFINE_bool("quick", False, "The same as --size quick")
_CELLS = flags.DEFINE_string("cells", "", "Folder of kept cells; OUT/cells without it")
_CONFIGS = flags.DEFINE_string("configs", "", "Folder of config files; else the package's")
_CACHE = flags.DEFINE_string("cache_dir", "", "Folder of prepared records")
_FOLDERS = {
    name: flags.DEFINE_string(f"{name}_root", "", f"Folder of the source files of {name}")
    for name in ROOTS
}
_DIGITS = flags.DEFINE_list("digits", [], "MNIST: digits to take as normal")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds of splits and training; repeats of Table 2")
_FEATURES = flags.DEFINE_string(
    "features",
    "",
    "Table 2: an .npz of `features` and `ids`, such as VGG-16's, for subspace methods; else pixels",
)
_BUDGET = flags.DEFINE_float(
    "time_budget_s", 0.0, "Stop after so long with exit code 75; the same command goes on"
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "Cells at once; 0: two on CPUs, else one")
_WORKER = flags.DEFINE_integer("worker", 0, "Number of this process among them; others: no tables")


def main(arguments: list[str]) -> None:
    bench = Bench(
        out=user_path(_OUT.value, "--out"),
        configs=user_path(_CONFIGS.value, "--configs") if _CONFIGS.value else None,
        roots={name: flag.value for name, flag in _FOLDERS.items() if flag.value},
        cache_dir=_CACHE.value,
        size="quick" if _QUICK.value else _SIZE.value,
        options={
            "digits": _numbers("digits", _DIGITS.value),
            "seeds": _numbers("seeds", _SEEDS.value),
        },
        features=_FEATURES.value,
        cells=user_path(_CELLS.value, "--cells") if _CELLS.value else None,
    )
    chosen = experiments(arguments, bench)
    listed = cells_of(chosen, bench)
    processes = _PROCESSES.value or runner.default_processes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(runner.within(_BUDGET.value))
        if _WORKER.value:
            runner.settle(processes, _WORKER.value)
            runner.compute(bench, listed, processes)
            return
        # Tables are written in any case: of what there is.
        stack.callback(lambda: write(chosen, bench))
        stack.enter_context(runner.helpers(processes))
        runner.settle(processes, 0)
        if others := bench.of_other_settings(listed):
            text = (
                f"{others} cells in {bench.folder} were made with other settings: they are not used"
            )
            print(text, file=sys.stderr)
        print(runner.outlook(bench, listed, processes), file=sys.stderr, flush=True)
        runner.compute(bench, listed, processes)


def experiments(names: list[str], bench: Bench) -> list[ModuleType]:
    """The modules of the experiments asked for; `all` leaves out Table 2 without its data, and
    what is not the paper's.

    Raises:
      ConfigError: one is unknown, or none is named.
    """
    unknown = [name for name in names if name not in (*EXPERIMENTS, "all")]
    if unknown or not names:
        raise ConfigError(
            f"experiment {' '.join(unknown) or 'missing'}: expected all or some of "
            f"{', '.join(EXPERIMENTS)}"
        )
    if "all" not in names:
        return [module for name, module in EXPERIMENTS.items() if name in names]
    left_out = [_APART]
    if not table2.available(bench):
        left_out.append("table2")
        print("table2 is left out: it needs --caltech256_root", file=sys.stderr)
    return [module for name, module in EXPERIMENTS.items() if name not in left_out]


def cells_of(modules: list[ModuleType], bench: Bench) -> list[Cell]:
    """All cells, and those that they need, each once, in the order to compute."""
    listed: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for before in cell.after:
            add(before)
        listed.setdefault(cell.name, cell)

    for module in modules:
        for cell in module.cells(bench):
            add(cell)
    return sorted(listed.values(), key=lambda cell: cell.late)


def write(modules: list[ModuleType], bench: Bench) -> None:
    """Print and write the tables of what is computed."""
    for module in modules:
        for result in module.results(bench):
            result.write(bench.out)


def _numbers(name: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise ConfigError(f"--{name}={','.join(values)}: expected whole numbers") from error


if __name__ == "__main__":
    cli.run(main)
