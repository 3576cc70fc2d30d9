"""The paper's tables and figures: `python -m jax_noisy_anogan.reproduce EXPERIMENT --out DIR`.

Each is printed and written as Markdown, CSV and, where it is a picture, PNG. Finished cells are
kept in DIR: run again, the same command goes on. Run it in the project's folder, or name its
`configs`.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.reproduction import mnist
from jax_noisy_anogan.reproduction.cells import Bench

EXPERIMENTS = {"mnist": mnist.run}

_OUT = flags.DEFINE_string("out", None, "Folder for results, kept cells and runs", required=True)
_QUICK = flags.DEFINE_bool("quick", False, "Shrink every experiment")
_CONFIGS = flags.DEFINE_string("configs", "configs", "Folder of the project's config files")
_CACHE = flags.DEFINE_string("cache_dir", "", "Folder of prepared records")
_ROOTS = {
    name: flags.DEFINE_string(f"{name}_root", "", f"Folder of the source files of {name}")
    for name in ("mnist", "ir_mnist", "caltech256")
}
_DIGITS = flags.DEFINE_list("digits", [], "MNIST: digits to take as normal; all by default")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds of splits and training")


def main(arguments: list[str]) -> None:
    names = list(EXPERIMENTS) if arguments == ["all"] else arguments
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        raise ConfigError(
            f"experiment {' '.join(unknown) or 'missing'}: expected all or some of "
            f"{', '.join(EXPERIMENTS)}"
        )
    bench = Bench(
        out=Path(_OUT.value).expanduser(),
        configs=Path(_CONFIGS.value).expanduser(),
        roots={name: flag.value for name, flag in _ROOTS.items() if flag.value},
        cache_dir=_CACHE.value,
        quick=_QUICK.value,
        options={
            "digits": _numbers("digits", _DIGITS.value),
            "seeds": _numbers("seeds", _SEEDS.value),
        },
    )
    for name in names:
        for result in EXPERIMENTS[name](bench):
            result.write(bench.out)


def _numbers(name: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise ConfigError(f"--{name}={','.join(values)}: expected whole numbers") from error


if __name__ == "__main__":
    cli.run(main)
