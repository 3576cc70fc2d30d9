"""Score a run's held-out images again: `python -m jax_noisy_anogan.evaluate --workdir DIR`.

Settings of search and scores may be changed (`--set search.steps=500`) and are kept with the run.
Latents that were found with the same settings are used again.
"""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan import cli, evaluation, model, workdir
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.data import load_dataset, make_split

_WORKDIR = cli.define_workdir("Folder of a finished run")
_SET = cli.define_changes()


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = Path(_WORKDIR.value).expanduser()
    config = config_lib.changed(config_lib.load(folder), _SET.value)
    with workdir.locked(folder):
        workdir.settle_config(folder, config)
        trained = model.load_model(folder, config)
        dataset = load_dataset(config.data, resolution=config.growth.resolution)
        split = make_split(dataset, config.data)
        cli.print_results(evaluation.evaluate(config, folder, dataset, split, trained))


if __name__ == "__main__":
    cli.run(main)
