"""Train and evaluate: `python -m jax_noisy_anogan.train --config FILE.py --workdir DIR`.

Run again, the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jax_noisy_anogan import cli, evaluation, model, parallel, trainer, workdir
from jax_noisy_anogan.config import Config, validate
from jax_noisy_anogan.data import load_dataset, make_split

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the run; created, or continued if it is one")
cli.define_processes()


def run(config: Config, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Everything that a config describes, from records to results; what exists is not made again.

    Returns:
      What `metrics.json` holds.
    """
    parallel.keep_compiled(config.train.compilation_cache_dir)
    with contextlib.ExitStack() as held:

        def open_folder() -> None:
            held.enter_context(workdir.locked(folder))
            workdir.settle_config(folder, config)

        parallel.on_first_process(open_folder)
        dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=progress)
        split = make_split(dataset, config.data)
        parallel.on_first_process(lambda: split.write(folder / "split.json"))
        state = trainer.train(config, folder, dataset, split, progress=progress)
        trained = model.model_of(config, state)
        return evaluation.evaluate(config, folder, dataset, split, trained, progress=progress)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    folder = Path(_WORKDIR.value).expanduser()
    results = run(validate(_CONFIG.value), folder)
    if results:  # only the first process has any
        cli.print_results(results)
        print(f"results: {folder / 'report.html'}, {folder / 'metrics.json'}")


if __name__ == "__main__":
    cli.run(main)
