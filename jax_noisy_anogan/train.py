"""Train and evaluate: `python -m jax_noisy_anogan.train --config FILE.py --workdir DIR`.

Run again, the same command goes on where it was stopped.
"""

from __future__ import annotations

from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan.config import validate
from jax_noisy_anogan.runtime.files import user_path

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the run; created, or continued if it is one")
cli.define_processes()


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = user_path(_WORKDIR.value, "--workdir")
    results = experiment.run(validate(_CONFIG.value), folder)
    if results:  # only the first process has any
        cli.print_results(results)
        cli.print_next(folder)


if __name__ == "__main__":
    cli.run(main)
