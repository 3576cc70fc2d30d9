"""One file that detects, for machines without this package: preprocessing, search, scores, map."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import partial_eval
from jaxtyping import Array, Bool, Float, UInt8

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import image_resolution
from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.model import Model, with_guide
from jax_noisy_anogan.runtime.files import _write_bytes, write_text
from jax_noisy_anogan.scoring.calibration import CALIBRATED, Calibration
from jax_noisy_anogan.scoring.maps import MapCalibration, calibrated_map, load_maps
from jax_noisy_anogan.scoring.scorer import LOCAL, make_functions
from jax_noisy_anogan.scoring.tiles import _blend, tile_positions
from jax_noisy_anogan.settings import ConfigError
from jax_noisy_anogan.training.state import load_model

PLATFORMS = ("cpu", "cuda", "tpu")
ARTEFACT = "detector.stablehlo"

# One tile in; what `Detection` calls drawn, what its map is made of, and the terms.
_Measured = tuple[UInt8[Array, "h w c"], Float[Array, "h w"], dict[str, Float[Array, ""]]]
_FindOne = Callable[[UInt8[Array, "h w c"]], _Measured]


def make_detect(
    model: Model, config: Config, calibration: Calibration, maps: MapCalibration
) -> Callable[[UInt8[Array, "batch side side channels"]], dict[str, Any]]:
    """All of `Detector.score` as one pure function of images that `data.fit` has made square.

    Images of a tiled model are cut and blended inside, one image at a time and
    `search.batch_size` tiles at once; those of others are searched together, so that the caller's
    batch decides how much memory is used.

    Returns:
      A function to a dictionary with the names of `Detection`: `score`, `calibrated`,
      `probability`, `is_abnormal` of shape `[batch]`, the same for each of `terms`, `drawn` like
      the images, and `map` `[batch, side, side]`. There is no box, whose search is no array code.
    """
    side, tile = image_resolution(config.data, model.networks.resolution), model.networks.resolution
    positions = tile_positions(side, side, tile, round(tile * config.score.tile_overlap))
    find_tile = _find_tile(model, config)

    def find_tiled(image: UInt8[Array, "side side channels"]) -> _Measured:
        tiles = jnp.stack([image[y : y + tile, x : x + tile] for y, x in positions.tolist()])
        drawn, unusual, terms = lax.map(find_tile, tiles, batch_size=config.search.batch_size)
        parts = jnp.concatenate([drawn.astype(jnp.float32), unusual[..., None]], axis=-1)
        whole = _blend(parts, positions, side)
        worst = {name: values.max() for name, values in terms.items()}
        drawn = jnp.clip(jnp.round(whole[..., :-1]), 0, 255).astype(jnp.uint8)
        return drawn, whole[..., -1], worst

    def detect(images: UInt8[Array, "batch side side channels"]) -> dict[str, Any]:
        images = jax.vmap(lambda image: local_contrast(image, config.data.local_contrast))(images)
        if len(positions) == 1:
            drawn, unusual, terms = jax.vmap(find_tile)(images)
        else:
            drawn, unusual, terms = lax.map(find_tiled, images)
        map = calibrated_map(unusual, maps, sigma=config.score.map_sigma)
        terms = {**terms, LOCAL: map.max(axis=(1, 2))}
        return {
            "score": terms["score"],
            **_judge(calibration, terms),
            "terms": terms,
            "drawn": drawn,
            "map": map,
        }

    return detect


def export_detector(workdir: Path, out: Path, *, onnx: bool = False) -> Path:
    """Write the detector of a finished run into the folder `out`; see the module's docstring.

    Args:
      onnx: also write the bare networks; needs the extra `onnx` of this package.

    Returns:
      The artefact's path.

    Raises:
      ConfigError, CheckpointError, CalibrationError: `workdir` is not a finished run; says why.
      ConfigError: `onnx` without its packages, or `out` is a file.
      OSError: `out` cannot be written.
    """
    config = config_lib.load(workdir)
    calibration = Calibration.load(workdir / "calibration.json")
    maps = load_maps(workdir / "map_calibration.npz")
    return export_model(load_model(workdir, config), config, calibration, maps, out, onnx=onnx)


def export_model(
    model: Model,
    config: Config,
    calibration: Calibration,
    maps: MapCalibration,
    out: Path,
    *,
    onnx: bool = False,
) -> Path:
    """`export_detector` of the parts of a detector."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: expected a folder, which is created if missing")
    out.mkdir(parents=True, exist_ok=True)
    if onnx:
        export_onnx(model, out)
    side = image_resolution(config.data, model.networks.resolution)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, side, side, config.data.channels), jnp.uint8)
    detect = jax.jit(make_detect(model, config, calibration, maps))
    exported = jax.export.export(detect, platforms=PLATFORMS)(images)
    saved = bytes(exported.serialize())

    _write_bytes(out / ARTEFACT, saved)
    calibration.save(out / "calibration.json")
    manifest = _manifest(config, calibration, exported, side)
    manifest["sha256"] = hashlib.sha256(saved).hexdigest()
    write_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return out / ARTEFACT


def export_onnx(model: Model, out: Path) -> None:
    """Write `generator.onnx` (from `z` to `image`) and `discriminator.onnx` (`image` to `logit`).

    Batches of any size; images are float32, `[batch, height, width, channels]`, scaled as
    `data.pixel_mean` and `pixel_std` say: in [-1, 1] by default.

    Raises:
      ConfigError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs more packages ({error}): pip install 'jax-noisy-anogan[onnx]', then "
            "pip install --no-deps 'jax2onnx>=0.17'"
        ) from error
    # It warns of every intermediate value whose type it leaves out of the file.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    networks, params, stddev = model.networks, model.params, model.reference.mean("stddev")

    def generate(z: Float[Array, "batch latent"]) -> Float[Array, "batch h w c"]:
        return networks.generate(params.generator, z)

    def discriminate(x: Float[Array, "batch h w c"]) -> Float[Array, " batch"]:
        return networks.discriminate(params.discriminator, x, stddev=stddev).logits

    out.mkdir(parents=True, exist_ok=True)
    for name, function, shape, inputs, outputs in (
        ("generator", generate, (networks.latent_size,), ["z"], ["image"]),
        ("discriminator", discriminate, networks.image_shape, ["image"], ["logit"]),
    ):
        graph = jax2onnx.to_onnx(
            function,
            [("batch", *shape)],
            model_name=name,
            input_names=inputs,
            output_names=outputs,
        )
        _write_bytes(out / f"{name}.onnx", graph.SerializeToString())


def _find_tile(model: Model, config: Config) -> _FindOne:
    """Search and measurement of a single tile, parameters bound as constants of the program."""
    quiet = dataclasses.replace(config.search, record_curve=False)
    search, measure = make_functions(model.networks, dataclasses.replace(config, search=quiet))
    constants = jax.tree.map(np.asarray, with_guide(model, config)[1:])

    def find_tile(tile: UInt8[Array, "h w c"]) -> _Measured:
        # Behind a barrier they are to XLA what they are to `Scorer`, values that are not known:
        # it would spend minutes on working out what follows from a large network's parameters.
        variables = lax.optimization_barrier(constants)
        found = search(variables, tile[None])
        drawn, measured, terms = jax.tree.map(
            lambda leaf: leaf[0], measure(variables, tile[None], found.latents)
        )
        return drawn, measured[config.score.map], terms

    return _live(find_tile)


def _live(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`function` without steps that no result depends on.

    XLA drops them too, but later: a search computes gradients of kernels that nobody asked for, and
    those cannot be written down for a batch size that is not known yet.
    """

    def live(argument: Array) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(argument)
        wanted = [True] * len(traced.out_avals)
        jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, wanted, instantiate=True)
        closed = jax.extend.core.ClosedJaxpr(jaxpr, traced.consts)
        leaves = jax.extend.core.jaxpr_as_fun(closed)(argument)
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return live


def _judge(
    calibration: Calibration, terms: dict[str, Float[Array, " batch"]]
) -> dict[str, Float[Array, " batch"] | Bool[Array, " batch"]]:
    """`calibrated`, `probability` and `is_abnormal` of `Calibration`, in float32."""
    mean, std, weights = (
        np.array(values, np.float32)[:, None]
        for values in (calibration.mean, calibration.std, calibration.weights)
    )
    values = jnp.stack([terms[name] for name in calibration.terms])
    standardised = (values - jnp.broadcast_to(mean, values.shape)) / std
    calibrated = jnp.sum(weights * standardised, axis=0) + calibration.intercept
    return {
        "calibrated": calibrated,
        "probability": jax.nn.sigmoid(calibrated),
        "is_abnormal": calibrated > calibration.thresholds[CALIBRATED].chosen,
    }


def _manifest(
    config: Config, calibration: Calibration, exported: jax.export.Exported, side: int
) -> dict[str, Any]:
    decides = calibration.thresholds[CALIBRATED].chosen
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "artefact": ARTEFACT,
        "load": [
            "import jax, pathlib",
            f'saved = bytearray(pathlib.Path("{ARTEFACT}").read_bytes())',
            "found = jax.jit(jax.export.deserialize(saved).call)(images)",
        ],
        "input": {
            "images": exported.in_avals[0].str_short(),
            "resolution": side,
            "channels": config.data.channels,
            "values": "0..255, rows from the top; RGB where there are 3 channels",
            "fit": config.data.fit,
        },
        "outputs": jax.tree.map(lambda aval: aval.str_short(), outputs),
        "terms": list(calibration.terms),
        "thresholds": {
            CALIBRATED: decides,
            "probability": float(1.0 / (1.0 + np.exp(-np.clip(decides, -500, 500)))),
            "map": calibration.thresholds[LOCAL].quantile,
        },
        "calibration": "calibration.json",
        "search": dataclasses.asdict(config.search),
        "platforms": list(exported.platforms),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "jax-noisy-anogan")
        }
        | {"calling_convention": exported.calling_convention_version},
    }
