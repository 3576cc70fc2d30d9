"""Score image files: `python -m jax_noisy_anogan.score --workdir DIR --images PATH... --out DIR`.

Folders are searched for images. Writes `scores.csv` and `scores.parquet`; a file that cannot be
used becomes a row with its error. Run again after an interruption, the same command goes on.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.data import folders
from jax_noisy_anogan.scoring import detector
from jax_noisy_anogan.scoring import files as files_lib
from jax_noisy_anogan.settings import ConfigError

_WORKDIR = cli.define_workdir("Folder of a finished run")
_IMAGES = flags.DEFINE_multi_string(
    "images", None, "Image file or folder; may be repeated, and more may follow", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results", required=True)
_THRESHOLD = flags.DEFINE_float(
    "threshold", None, "Probability above which an image is abnormal, instead of the run's"
)
_HEATMAPS = flags.DEFINE_enum(
    "heatmaps", "abnormal", ["none", "abnormal", "all"], "Which images get an overlay PNG"
)
_MAPS = flags.DEFINE_bool("maps", False, "Also write every map as a 32-bit float TIFF")
cli.define_processes()


def main(arguments: list[str]) -> None:
    if _THRESHOLD.value is not None and not 0.0 <= _THRESHOLD.value <= 1.0:
        raise ConfigError(f"--threshold={_THRESHOLD.value}: expected a probability from 0 to 1")
    files = folders.find_images([*_IMAGES.value, *arguments])
    found = detector.load(_WORKDIR.value)
    summary = files_lib.score_files(
        found,
        files,
        Path(_OUT.value).expanduser(),
        threshold=_THRESHOLD.value,
        heatmaps=_HEATMAPS.value,
        maps=_MAPS.value,
    )
    if summary is not None:
        print(summary)


if __name__ == "__main__":
    cli.run(main)
