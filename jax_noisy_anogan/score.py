"""Score image files: `python -m jax_noisy_anogan.score --workdir DIR --images PATH... --out DIR`.

Folders are searched for images. Writes `scores.csv`, `scores.parquet` and, to look at,
`gallery.html`; a file that cannot be used becomes a row with its error; where none can be used, the
exit code is 66. Run again after an interruption, the same command goes on. With
`--fail-on-abnormal` the exit code is 3 where a file is abnormal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.data import folders
from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.scoring import detector
from jax_noisy_anogan.scoring import files as scoring_files
from jax_noisy_anogan.scoring.calibration import DECISION, require_anomaly
from jax_noisy_anogan.scoring.table import Summary

_WORKDIR = cli.define_workdir("Folder of a finished run")
_IMAGES = flags.DEFINE_multi_string(
    "images", None, "Image file or folder; may be repeated, and more may follow", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results", required=True)
_THRESHOLD = flags.DEFINE_float(
    "threshold", DECISION, "Anomaly above which an image is abnormal; 0.5 is the run's threshold"
)
_CALIBRATION = flags.DEFINE_string(
    "calibration", None, "Folder of `test --recalibrate`, whose thresholds replace the run's"
)
_HEATMAPS = flags.DEFINE_enum(
    "heatmaps", "abnormal", ["none", "abnormal", "all"], "Which images get an overlay PNG"
)
_SET = cli.define_changes()
_CHANGEABLE = ("data.max_image_pixels",)
_MAPS = flags.DEFINE_bool("maps", False, "Also write every map as a 32-bit float TIFF")
_GALLERY = flags.DEFINE_bool("gallery", True, "Also write pages to look at, with thumbnails")
_JSON = flags.DEFINE_bool("json", False, "Print the results as one JSON object, for machines")
_FAIL = flags.DEFINE_bool("fail-on-abnormal", False, "Exit code 3 where a file is abnormal")
cli.define_processes()


class NoUsableImageError(UserError):
    """Every file had an error; the table says which."""

    exit_code = 66  # EX_NOINPUT of sysexits.h


def main(arguments: list[str]) -> None:
    require_anomaly(_THRESHOLD.value, "--threshold")
    for change in _SET.value:
        if change.removeprefix("config.").partition("=")[0] not in _CHANGEABLE:
            raise ConfigError(
                f"--set {change}: score takes {', '.join(_CHANGEABLE)}; the search and scores of a "
                "run are changed by evaluate --set"
            )
    out = user_path(_OUT.value, "--out")
    images = folders.find_images([*_IMAGES.value, *arguments], out=out)
    # Of the three seconds to a first score, a search that is compiled already saves two.
    parallel.keep_compiled_privately()
    found = detector.load(_WORKDIR.value, changes=_SET.value, calibration=_CALIBRATION.value)
    summary = scoring_files.score_files(
        found,
        images.files,
        out,
        threshold=_THRESHOLD.value,
        heatmaps=_HEATMAPS.value,
        maps=_MAPS.value,
        thumbnails=_GALLERY.value,
        progress=not _JSON.value,
    )
    if summary is None:
        return
    page = None
    if _GALLERY.value:
        # The page comes last: nothing of it is needed to load a detector and to score.
        from jax_noisy_anogan.evaluation import gallery

        page = gallery.write_gallery(out, threshold=_THRESHOLD.value)
    if _JSON.value:
        print(json.dumps(_results(summary, _THRESHOLD.value, page)))
    else:
        remarks = (images.remark, page and f"to look at: {page}")
        print(summary, *filter(None, remarks), sep="\n")
    if summary.errors == summary.files:
        raise NoUsableImageError(f"no file could be used, as {summary.first_error}")
    if _FAIL.value and summary.abnormal:
        sys.exit(3)


def _results(summary: Summary, threshold: float, page: Path | None) -> dict[str, Any]:
    """What `--json` prints: counts, and every row without its empty fields."""
    rows = pyarrow.parquet.read_table(summary.table.with_suffix(".parquet")).to_pylist()
    return {
        "threshold": threshold,
        "abnormal": summary.abnormal,
        "normal": summary.files - summary.abnormal - summary.errors,
        "errors": summary.errors,
        "table": str(summary.table),
        "gallery": page and str(page),
        "files": [{k: v for k, v in row.items() if v is not None} for row in rows],
    }


if __name__ == "__main__":
    cli.run(main)
