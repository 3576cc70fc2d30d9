"""The folder of one run: its settings, and where everything lies.

`config.json` settings of the run; `choices.json` those that were left to the data; `split.json`
example ids of every part; `checkpoints/`; `metrics.jsonl` training curves; `samples/` drawn images
per phase; `calibration.json`, `map_calibration.npz` and `memory.npz` how scores become decisions;
`evaluation/` latents and terms of the held-out images.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import settings
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.runtime.files import write_text

# Fields that change neither what is trained nor how far.
HARMLESS = (
    "data.cache_dir",
    "data.max_image_pixels",
    "data.on_bad_image",
    "data.root",
    # Memory: the same update but for the order of its sums, where the old one does not fit.
    "growth.microbatch",
    "growth.rematerialize_from",
    "search.",
    "score.",
    "train.checkpoint_every_images",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.sample_images",
    "train.writers",
    "train.compilation_cache_dir",
)
# Of these, what scores and thresholds depend on.
SCORES = ("search.", "score.")
_CHOICES = "choices.json"


def has_trained(workdir: Path) -> bool:
    """Whether a folder holds a checkpoint: from then on its settings and its split stay."""
    return newest_step(workdir) > 0


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def read_choices(workdir: Path) -> dict[str, Any]:
    """Settings that the run left to its data, by name, as (asked for, chosen)."""
    path = workdir / _CHOICES
    try:
        choices = json.loads(path.read_text()) if path.exists() else {}
        known = settings.values(Config())
        for name, (_asked, _chosen) in choices.items():
            known[name]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read: put it back, or use another --workdir"
        ) from error
    return choices


def write_choices(workdir: Path, choices: dict[str, Any]) -> None:
    write_text(workdir / _CHOICES, json.dumps(choices, indent=1) + "\n")


def with_choices(config: Config, choices: dict[str, Any]) -> Config:
    """A copy of `config` with the chosen value wherever it still has the one asked for."""
    for name, (asked, chosen) in choices.items():
        section, _, item = name.partition(".")
        values = getattr(config, section)
        if getattr(values, item) == asked:
            values = dataclasses.replace(values, **{item: chosen})
            config = dataclasses.replace(config, **{section: values})
    return config


def changes_of(workdir: Path, config: Config) -> list[str]:
    """Names of the settings in which `config` differs from that of the run.

    Before its first checkpoint a run keeps nothing: a start that failed may be repeated with other
    settings. Later those in `HARMLESS` may change.

    Raises:
      ConfigError: another setting changed; names all of them with both values.
    """
    path = workdir / "config.json"
    changed = {}
    if path.exists():
        try:
            before = config_lib.load(workdir)
        except config_lib.FormatError:
            raise
        except ConfigError as error:
            raise ConfigError(f"{error}; put it back, or use another --workdir") from error
        changed = config_lib.differences(before, config)
        harmful = {k: v for k, v in changed.items() if not k.startswith(HARMLESS)}
        if harmful and has_trained(workdir):
            fields = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in harmful.items())
            raise ConfigError(
                f"{workdir} was started with other settings ({fields}): run it with its own "
                "settings, or use another --workdir"
            )
    return list(changed)


def settle_config(workdir: Path, config: Config) -> None:
    """Write `config.json`, where `changes_of` allows it.

    Where scores change, `calibration.json` is removed until an evaluation has fitted another:
    scores of the new settings are never judged by thresholds of the old ones.

    Raises:
      ConfigError: see `changes_of`.
    """
    if any(name.startswith(SCORES) for name in changes_of(workdir, config)):
        (workdir / "calibration.json").unlink(missing_ok=True)
    write_text(workdir / "config.json", config_lib.to_json(config))
