"""Score a run's held-out images again: `python -m jax_noisy_anogan.evaluate --workdir DIR`.

Settings of search and scores may be changed (`--set search.steps=500`) and are kept with the run.
Latents that were found with the same settings are used again. Several processes share the search;
the first one measures, draws and writes.
"""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.data import load_dataset, make_split
from jax_noisy_anogan.evaluation import results
from jax_noisy_anogan.training import encoder, state

_WORKDIR = cli.define_workdir("Folder of a finished run")
_SET = cli.define_changes()
cli.define_processes()


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = Path(_WORKDIR.value).expanduser()
    config = config_lib.changed(config_lib.load(folder), _SET.value)
    with experiment.opened(config, folder):
        trained = state.load_model(folder, config)
        dataset = load_dataset(config.data, resolution=config.growth.resolution)
        split = make_split(dataset, config.data)
        trained = encoder.fit(config, folder, dataset, split, trained)
        cli.print_results(results.evaluate(config, folder, dataset, split, trained))


if __name__ == "__main__":
    cli.run(main)
