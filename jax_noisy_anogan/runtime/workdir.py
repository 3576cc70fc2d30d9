"""The folder of one run: its lock, its config, and where everything lies.

`config.json` settings of the run; `split.json` example ids of every part; `checkpoints/`;
`metrics.jsonl` training curves; `samples/` drawn images per phase; `calibration.json` and
`map_calibration.npz` how scores become decisions; `evaluation/` scores of the held-out images.
"""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.runtime.files import write_text
from jax_noisy_anogan.settings import ConfigError

# Fields that change neither what is trained nor how far.
HARMLESS = (
    "data.cache_dir",
    "data.root",
    # Memory: the same update but for the order of its sums, where the old one does not fit.
    "growth.microbatch",
    "growth.rematerialize_from",
    "search.",
    "score.",
    "train.checkpoint_every_images",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.max_rollbacks",
    "train.sample_images",
    "train.tensorboard",
    "train.compilation_cache_dir",
)
# Of these, what scores and thresholds depend on.
SCORES = ("search.", "score.")


def settle_config(workdir: Path, config: Config) -> None:
    """Write `config.json`, or check that a run which is continued keeps its settings.

    Settings in `HARMLESS` may change between starts; the new values are kept. Where they change
    scores, `calibration.json` is removed until an evaluation has come to its end: scores of the new
    settings are never judged by thresholds of the old ones.

    Raises:
      ConfigError: another setting changed; names all of them with both values.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            before = config_lib.load(workdir)
        except ConfigError as error:
            raise ConfigError(
                f"{path} does not hold the run's settings ({error}): put it back, or use another "
                "--workdir"
            ) from error
        changed = config_lib.differences(before, config)
        harmful = {k: v for k, v in changed.items() if not k.startswith(HARMLESS)}
        if harmful:
            fields = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in harmful.items())
            raise ConfigError(
                f"{workdir} was started with other settings ({fields}): run it with its own "
                "settings, or use another --workdir"
            )
        if any(name.startswith(SCORES) for name in changed):
            (workdir / "calibration.json").unlink(missing_ok=True)
    write_text(path, config_lib.to_json(config))
