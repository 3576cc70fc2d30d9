"""One file that detects, for machines without this package: preprocessing, search, scores, map.

`python -m jax_noisy_anogan.export --workdir DIR --out FOLDER` writes

- `detector.stablehlo`: a compiled-on-arrival program for CPUs, CUDA GPUs and TPUs and any batch
  size, its parameters inside;
- `calibration.json`: that of the run;
- `manifest.json`: what goes in and comes out, thresholds, versions, a checksum;
- with `--onnx` also `generator.onnx` and `discriminator.onnx`, the bare networks.

Where it is used, `jax` and `flatbuffers` (which `jax.export` reads its files with) are all that is
needed; no pickle is involved:

    import jax, pathlib
    saved = bytearray(pathlib.Path("FOLDER/detector.stablehlo").read_bytes())
    found = jax.jit(jax.export.deserialize(saved).call)(images)

The first call with a batch size compiles, the next ones only run. JAX promises that a file is read
by versions released up to six months after the one that wrote it, and by older ones of up to three
weeks before. So a run's checkpoint is the archive and the export a product of it: export again
after an upgrade.
"""

from __future__ import annotations

import re

from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.scoring.artefact import export_detector
from jax_noisy_anogan.settings import ConfigError


def main() -> None:
    """Define the flags and run the command."""
    workdir = cli.define_workdir("Folder of a finished run")
    out = flags.DEFINE_string("out", None, "Folder for the artefact; is created", required=True)
    photograph = flags.DEFINE_string(
        "photograph", "", "WIDTHxHEIGHT of the photographs to come, where data.fit=scale keeps it"
    )
    onnx = flags.DEFINE_bool("onnx", False, "Also write generator and discriminator as ONNX")

    def call(arguments: list[str]) -> None:
        cli.no_arguments(arguments)
        source = user_path(workdir.value, "--workdir")
        folder = user_path(out.value, "--out")
        path = export_detector(source, folder, photograph=_size(photograph.value), onnx=onnx.value)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, how to load it: manifest.json")

    cli.run(call)


def _size(text: str) -> tuple[int, int] | None:
    """Height and width, from what stands in `--photograph`."""
    if not text:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise ConfigError(f"--photograph={text}: expected width x height in pixels, as in 1280x960")
    return int(found[2]), int(found[1])


if __name__ == "__main__":
    main()
