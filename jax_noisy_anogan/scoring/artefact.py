"""One file that detects, for machines without this package: preprocessing, search, scores, map.

The program takes squares, since its arrays have fixed sizes, and gives back a map of the square.
A copy of `data/frame.py` lies beside it: `fit_square` makes squares of photographs, and
`Frame.place` puts the map back into the photograph's own pixels, as `Detection.map` is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt8

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data import frame
from jax_noisy_anogan.data.dataset import image_resolution
from jax_noisy_anogan.data.frame import scaled_size
from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.model import Model, with_initialisation
from jax_noisy_anogan.runtime.files import write_bytes, write_text
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import ANOMALY, CALIBRATED, DECISION, Calibration
from jax_noisy_anogan.scoring.components import thumbnail, unusual
from jax_noisy_anogan.scoring.maps import MapCalibration, calibrated_map, load_maps
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.scoring.scorer import (
    COMPONENTS,
    LOCAL,
    MEMORY,
    MEMORY_SUM,
    heat_term,
    make_begin,
    make_measure,
    make_search,
    searched_tiles,
    tiles_at_once,
)
from jax_noisy_anogan.scoring.tiles import blend_on_device, tile_positions
from jax_noisy_anogan.training.state import load_model

PLATFORMS = ("cpu", "cuda", "tpu")
ARTEFACT = "detector.stablehlo"
FRAME = "frame.py"

# Of the tiles of images: G(z_hat), what the map is made of and perhaps the
# distances of the memory, and the terms.
_Measured = tuple[
    UInt8[Array, "images tiles h w c"],
    Float[Array, "images tiles h w maps"],
    dict[str, Float[Array, "images tiles"]],
]


def make_detect(
    model: Model,
    config: Config,
    calibration: Calibration,
    maps: MapCalibration,
    memory: Memory | None = None,
    *,
    shape: tuple[int, int],
) -> Callable[[UInt8[Array, "batch height width channels"]], dict[str, Any]]:
    """All of `Detector.score` as one pure function of images that `data.fit` has prepared.

    Tiles of all images are searched and measured in batches of `tiles_at_once`, as `Scorer`
    does, so that an image's score does not depend on how many it comes with.

    Args:
      shape: height and width of the images.

    Returns:
      A function to a dictionary with the names of `Detection`: `score`, `calibrated`,
      `anomaly`, `is_abnormal` of shape `[batch]`, the same for each of `terms`,
      `reconstruction` like the images, and `heat` `[batch, height, width]`. There are no regions,
      whose search is no array code.
    """
    tile = model.networks.resolution
    side = image_resolution(config.data, tile)
    positions = tile_positions(*shape, tile, round(tile * config.score.tile_overlap))
    missing = [(0, max(tile - size, 0)) for size in shape]
    find = _find(model, config, memory)
    statistics = [maps] if memory is None else [maps, memory.usual]

    def locate(
        parts: Float[Array, "tiles tile tile c"],
    ) -> tuple[Float[Array, "height width channels"], list[Float[Array, "height width"]]]:
        whole = blend_on_device(parts, positions, shape) if len(positions) > 1 else parts[0]
        whole = whole[: shape[0], : shape[1]]
        channels = whole.shape[-1] - len(statistics)
        located = [
            calibrated_map(whole[..., channels + k], usual, sigma=config.score.map_sigma)
            for k, usual in enumerate(statistics)
        ]
        return whole[..., :channels], located

    def contrasted(image: UInt8[Array, "height width channels"]) -> Array:
        return local_contrast(image, config.data.local_contrast, side=side)

    def detect(images: UInt8[Array, "batch height width channels"]) -> dict[str, Any]:
        shown = jax.vmap(contrasted)(images)
        images = jnp.pad(shown, ((0, 0), *missing, (0, 0)), mode="reflect")
        tiles = jnp.stack([images[:, y : y + tile, x : x + tile] for y, x in positions], axis=1)
        reconstruction, differences, terms = find(tiles)
        terms = {name: values.max(axis=1) for name, values in terms.items()}
        parts = jnp.concatenate([reconstruction.astype(jnp.float32), differences], axis=-1)
        # One image after another, as `scorer.locate` does: a batch would be added up otherwise.
        whole, located = lax.map(locate, parts)
        terms[LOCAL] = located[0].max(axis=(1, 2))
        if memory is not None:
            terms[MEMORY] = located[1].max(axis=(1, 2))
            terms[MEMORY_SUM] = located[1].mean(axis=(1, 2))
            assert memory.components is not None
            small = jax.vmap(lambda image: thumbnail(image, tile))(shown)
            terms[COMPONENTS] = unusual(memory.components, small).max(axis=(1, 2))
        return {
            "score": terms["score"],
            **_judge(calibration, terms),
            "terms": terms,
            "reconstruction": jnp.clip(jnp.round(whole), 0, 255).astype(jnp.uint8),
            "heat": located[-1] if config.score.map == "memory" else located[0],
        }

    return detect


def export_detector(
    workdir: Path, out: Path, *, photograph: tuple[int, int] | None = None, onnx: bool = False
) -> Path:
    """Write the detector of a finished run into the folder `out`; see the module's docstring.

    Args:
      photograph: height and width of the photographs to come, in their own pixels, for a run that
        keeps their shape (`data.fit=scale`); None otherwise.
      onnx: also write the bare networks; needs the extra `onnx` of this package.

    Returns:
      The artefact's path.

    Raises:
      ConfigError, CheckpointError, CalibrationError: `workdir` is not a finished run; says why.
      ConfigError: `onnx` without its packages, `out` is a file, or `photograph` is missing or not
        wanted.
      OSError: `out` cannot be written.
    """
    config = config_lib.load(workdir)
    calibration = Calibration.load(workdir / "calibration.json")
    maps = load_maps(workdir / "map_calibration.npz")
    memory = memory_lib.of_run(workdir, config.score)
    model = load_model(workdir, config)
    return export_model(
        model, config, calibration, maps, out, memory, photograph=photograph, onnx=onnx
    )


def export_model(
    model: Model,
    config: Config,
    calibration: Calibration,
    maps: MapCalibration,
    out: Path,
    memory: Memory | None = None,
    *,
    photograph: tuple[int, int] | None = None,
    onnx: bool = False,
) -> Path:
    """`export_detector` of the parts of a detector."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: expected a folder, which is created if missing")
    shape = _shape(config, model.networks.resolution, photograph)
    out.mkdir(parents=True, exist_ok=True)
    if onnx:
        export_onnx(model, out)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape, config.data.channels), jnp.uint8)
    detect = jax.jit(make_detect(model, config, calibration, maps, memory, shape=shape))
    exported = jax.export.export(detect, platforms=PLATFORMS)(images)
    saved = bytes(exported.serialize())

    write_bytes(out / ARTEFACT, saved)
    write_text(out / FRAME, inspect.getsource(frame))
    calibration.save(out / "calibration.json")
    manifest = _manifest(config, calibration, exported, shape)
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
    networks, params, stddev = model.networks, model.params, model.statistics.mean("stddev")

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
        write_bytes(out / f"{name}.onnx", graph.SerializeToString())


def _find(
    model: Model, config: Config, memory: Memory | None
) -> Callable[[UInt8[Array, "images tiles h w c"]], _Measured]:
    """Search and measurement of the tiles of any number of images, parameters bound as constants.

    The last batch of tiles is filled up with copies of the first one.
    """
    quiet = dataclasses.replace(config.search, record_curve=False)
    config = dataclasses.replace(config, search=quiet)
    search, measure = make_search(model.networks, config), make_measure(model.networks, config)
    begin = make_begin(model.networks, config)
    if config.search.start != "encoder":  # nothing that is not needed goes into the file
        model = model._replace(params=model.params._replace(encoder=None))
    constants = jax.tree.map(np.asarray, (*with_initialisation(model, config)[1:], memory))
    size, some = tiles_at_once(config.search), searched_tiles(config)

    def in_batches(function: Callable[..., Any], *columns: Array) -> Any:
        count = columns[0].shape[0]
        batches = -(-count // size)

        def batched(rows: Array) -> Array:
            filler = jnp.broadcast_to(rows[:1], (batches * size - count, *rows.shape[1:]))
            return jnp.concatenate([rows, filler]).reshape(batches, size, *rows.shape[1:])

        # Behind a barrier they are to XLA what they are to `Scorer`, values that are not known:
        # it would spend minutes on working out what follows from a large network's parameters.
        found = lax.map(
            lambda rows: function(lax.optimization_barrier(constants), *rows),
            tuple(map(batched, columns)),
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)

    def latents_of(tiles: UInt8[Array, "images tiles h w c"]) -> Float[Array, "n latent"]:
        images, count = tiles.shape[:2]
        every = tiles.reshape(-1, *tiles.shape[2:])
        if not 0 < some < count:
            return in_batches(search, every).latents
        start = in_batches(begin, every)
        _, chosen = lax.top_k(start.loss.reshape(images, count), some)
        chosen = (chosen + count * jnp.arange(images)[:, None]).reshape(-1)
        return start.latents.at[chosen].set(in_batches(search, every[chosen]).latents)

    def find(tiles: UInt8[Array, "images tiles h w c"]) -> _Measured:
        every = tiles.reshape(-1, *tiles.shape[2:])
        reconstruction, maps, terms = in_batches(measure, every, latents_of(tiles))
        chosen = config.score.map if config.score.map in maps else "difference"
        parts = [maps[name] for name in (chosen, "distance") if name in maps]
        found = (reconstruction, jnp.stack(parts, axis=-1), terms)
        return jax.tree.map(lambda leaf: leaf.reshape(*tiles.shape[:2], *leaf.shape[1:]), found)

    return find


def _shape(config: Config, resolution: int, photograph: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that an exported program takes."""
    if config.data.fit == "scale":
        if photograph is None:
            raise ConfigError(
                "this run keeps the shape of photographs (data.fit=scale), and an exported program "
                "has one size: give that of your photographs, as in --photograph=1280x960 (width x "
                "height in pixels)"
            )
        return scaled_size(*photograph, config.data.scale)
    side = image_resolution(config.data, resolution)
    if photograph is not None:
        raise ConfigError(
            f"--photograph is for runs that keep the shape of photographs: this one makes squares "
            f"of {side} x {side} pixels of any (data.fit={config.data.fit})"
        )
    return side, side


def _judge(
    calibration: Calibration, terms: dict[str, Float[Array, " batch"]]
) -> dict[str, Float[Array, " batch"] | Bool[Array, " batch"]]:
    """`calibrated`, `anomaly` and `is_abnormal` of `Calibration`, in float32."""
    mean, std, weights = (
        np.array(values, np.float32)[:, None]
        for values in (calibration.mean, calibration.std, calibration.weights)
    )
    values = jnp.stack([terms[name] for name in calibration.terms])
    standardised = (values - jnp.broadcast_to(mean, values.shape)) / std
    calibrated = jnp.sum(weights * standardised, axis=0) + calibration.intercept
    d = calibrated - calibration.thresholds[CALIBRATED].chosen
    anomaly = DECISION * (1.0 + d / (calibration.scale + jnp.abs(d)))
    above = np.nextafter(np.float32(DECISION), np.float32(1.0))
    return {
        CALIBRATED: calibrated,
        ANOMALY: jnp.where(d > 0, jnp.maximum(anomaly, above), anomaly),
        "is_abnormal": d > 0,
    }


def _manifest(
    config: Config,
    calibration: Calibration,
    exported: jax.export.Exported,
    shape: tuple[int, int],
) -> dict[str, Any]:
    data = config.data
    keeps_shape = data.fit == "scale"
    fit = "scaled" if keeps_shape else "fit_square"
    size = f"{data.scale!r}" if keeps_shape else f'{shape[0]}, "{data.fit}"'
    if data.name in ("mnist", "mnist5k"):
        # As `Detector.prepare` takes digits of 28 x 28.
        pad = "photograph = numpy.pad(photograph, ((2, 2), (2, 2), (0, 0)))"
        lines = ["import numpy", pad, "frame = Frame(28, 28, -2, -2, 32, 32)"]
    else:
        lines = [f'frame = Frame.of(*photograph.shape[:2], "{data.fit}")']
    decides = calibration.thresholds[CALIBRATED].chosen
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "artefact": ARTEFACT,
        "load": [
            "import jax, pathlib",
            f'saved = bytearray(pathlib.Path("{ARTEFACT}").read_bytes())',
            "found = jax.jit(jax.export.deserialize(saved).call)(images)",
        ],
        # Of a photograph with its channels last, after EXIF rotation.
        "photograph": [
            f"from frame import Frame, {fit}",
            *lines,
            f"images = {fit}(photograph, {size})[None]",
            'map = frame.place(found["heat"][0])',
        ],
        "input": {
            "images": exported.in_avals[0].str_short(),
            "height": shape[0],
            "width": shape[1],
            "channels": data.channels,
            "values": "0..255, rows from the top; RGB where there are 3 channels",
            # Of files of more than 8 bits: these become 0 and 255.
            "black_level": data.black_level,
            "white_level": data.white_level,
            "fit": data.fit,
        },
        "outputs": jax.tree.map(lambda aval: aval.str_short(), outputs),
        "terms": list(calibration.terms),
        "thresholds": {
            CALIBRATED: decides,
            ANOMALY: DECISION,
            "map": calibration.thresholds[heat_term(config.score)].quantile,
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
