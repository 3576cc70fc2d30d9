"""Test a finished run on a new labelled folder: `python -m jax_noisy_anogan.test --workdir DIR`.

`--data FOLDER` is arranged as training images are; `--out DIR` gets metrics, table and report. The
run stays as it is. With `--recalibrate` half of every kind of image sets new thresholds, which
`score --calibration DIR` takes, and only the other half is tested. How the folder is laid out may
be said: `--set data.normal_dirs=ok`.
"""

from __future__ import annotations

from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.evaluation import new_data
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.files import user_path

_WORKDIR = cli.define_workdir("Folder of a finished run, which is only read")
_DATA = flags.DEFINE_string("data", None, "Folder of labelled images", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the results", required=True)
_RECALIBRATE = flags.DEFINE_bool(
    "recalibrate", False, "Set new thresholds with half of the images, and test the other half"
)
_SET = cli.define_changes()


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    run, out = user_path(_WORKDIR.value, "--workdir"), user_path(_OUT.value, "--out")
    config = new_data.settings_for(config_lib.load(run), _DATA.value, _SET.value)
    parallel.keep_compiled_privately()
    results = new_data.judge(run, config, out, recalibrate=_RECALIBRATE.value)
    cli.print_results(results)
    print(f"results: {out / 'report.html'}, {out / 'scores.csv'}")
    if _RECALIBRATE.value:
        print(
            f"next: jax-noisy-anogan score --workdir {run} --calibration {out} --images NEW "
            "--out SCORED"
        )


if __name__ == "__main__":
    cli.run(main)
