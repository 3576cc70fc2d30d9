"""A whole run, from records to results, as one call."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jax_noisy_anogan import calibration, evaluation, model, parallel, trainer, workdir
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import load_dataset, make_split


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
        calibration.require_normals(len(split.validation_normal))
        parallel.on_first_process(lambda: split.write(folder / "split.json"))
        state = trainer.train(config, folder, dataset, split, progress=progress)
        trained = model.model_of(config, state)
        return evaluation.evaluate(config, folder, dataset, split, trained, progress=progress)
