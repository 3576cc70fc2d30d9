"""Score a run's held-out images again: `python -m jax_noisy_anogan.evaluate --workdir DIR`.

Settings of search and scores may be changed (`--set search.steps=500`) and are kept with the run.
Latents that were found with the same settings are used again. Several processes share the search;
the first one measures, draws and writes.
"""

from __future__ import annotations

from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.training import state as state_lib

_WORKDIR = cli.define_workdir("Folder of a finished run")
_SET = cli.define_changes()
cli.define_processes()


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = user_path(_WORKDIR.value, "--workdir")
    config = config_lib.changed(config_lib.load(folder), _SET.value)
    parallel.keep_compiled_privately()
    with experiment.opened(config, folder) as config:
        trained = state_lib.load_model(folder, config)
        dataset = load_dataset(config.data, resolution=config.growth.resolution)
        split = experiment.split_of(config, folder, dataset)
        results = results_lib.evaluate(config, folder, dataset, split, trained)
    if results:  # only the first process has any
        cli.print_results(results)
        cli.print_next(folder)


if __name__ == "__main__":
    cli.run(main)
