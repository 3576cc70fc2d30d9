"""Images in, latents and scores out, in batches of one shape over all devices.

An image is one tile, or many where the model is a tiled one. Tiles of many images share batches.

Every device searches and measures `tiles_at_once` tiles, filled up where there are fewer. On one
machine a result is therefore the same to the bit alone, among others, in any order
and on any number of devices; so are the terms of the exported detector, whose standardised score is
in float32 (1e-5; 1e-4 with a memory). Another batch size, kind of device or version of JAX adds up
in another order, and the search makes that large: L' of an image was up to 14 % off at 16 instead
of 8 tiles after 100 steps (24 digits, configs/mnist5k.py:smoke), terms that need no search 1e-7.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from jax_noisy_anogan.config import Config, LossConfig, ScoreConfig, SearchConfig
from jax_noisy_anogan.latent_search import Bank, Judgement, search_latents
from jax_noisy_anogan.losses import search_loss
from jax_noisy_anogan.model import (
    DiscriminatorStatistics,
    Model,
    bind,
    initial_latents,
    pixel_scale,
    with_initialisation,
)
from jax_noisy_anogan.networks import NetworkParams, Networks
from jax_noisy_anogan.networks.pixels import PAPER_SCALE, to_byte_images, to_float_images
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.scoring.components import Components, thumbnail, unusual
from jax_noisy_anogan.scoring.maps import (
    MapCalibration,
    attribution,
    calibrated_map,
    pixel_difference,
)
from jax_noisy_anogan.scoring.memory import Features, Memory, distance_map, patch_features, used
from jax_noisy_anogan.scoring.tiles import blend_tiles, cut_tiles, tile_positions

# The largest value of the map of G or D, and those of the memory: they need statistics of maps.
LOCAL, MEMORY, MEMORY_SUM = "local", "memory", "memory_sum"
# The largest value of what the memory's principal components leave.
COMPONENTS = "components"
# The terms of a memory.
REMEMBERED = (MEMORY, MEMORY_SUM, COMPONENTS)

Image = UInt8[np.ndarray, "height width channels"]

# Terms of every image that need no statistics, each growing with abnormality.
TERMS = ("score", "residual", "feature", "abnormality", "discriminator")
_SEARCH_KEY = 4
_LANES = 8
_NOTHING_LEFT_OVER = 24


def tiles_at_once(search: SearchConfig) -> int:
    """The tiles that a device searches: `search.batch_size`, from two on a multiple of eight."""
    size = search.batch_size
    return size if size == 1 else -(-size // _LANES) * _LANES


def _alike_at_every_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of `tiles_at_once` tiles, whose results do not depend on the place of a tile.

    XLA's programs for CPUs take eight numbers at a time, and convolutions 4, 6 or 8 pixels, by the
    processor; what is left over is added up in another order. A last tile that is thrown away takes
    that upon itself where there is something left over.
    """

    def padded(variables: Variables, *columns: Array) -> Any:
        size = columns[0].shape[0]
        if size == 1 or size % _NOTHING_LEFT_OVER == 0:
            return function(variables, *columns)
        longer = (jnp.concatenate([column, column[-1:]]) for column in columns)
        return jax.tree.map(lambda leaf: leaf[:size], function(variables, *longer))

    padded.__name__ = function.__name__
    return padded


def searched_tiles(config: Config) -> int:
    """The tiles of an image that are searched; 0 stands for all."""
    tiled = config.data.tile_image_resolution or config.data.fit == "scale"
    return config.search.tiles if tiled and config.search.steps else 0


def all_terms(score: ScoreConfig) -> tuple[str, ...]:
    """The names of all raw terms of a run."""
    return (*TERMS, LOCAL, *REMEMBERED) if score.memory else (*TERMS, LOCAL)


def measured_terms(score: ScoreConfig) -> tuple[str, ...]:
    """The names of those that need no statistics of validation images."""
    return (*TERMS, COMPONENTS) if score.memory else TERMS


def heat_term(score: ScoreConfig) -> str:
    """The term that is the largest value of the map that is shown."""
    return MEMORY if score.map == "memory" else LOCAL


def trusted_terms(score: ScoreConfig) -> tuple[str, ...]:
    """Those that decide where no defect is known; empty means all.

    No term of G or D joins those of a memory. AUROC of validation normals against simulated
    defects, with networks that were hardly trained: mean of all terms 0.680 and 0.592, of `local`
    and `memory` 0.692 and 0.618, `memory` 0.722 and 0.622 (magnetic tiles and commutators).

    Patches and components err on different images. The same AUROC over two splits of magnetic tiles
    and three of commutators: patches 0.688, components 0.661, both 0.710, and more than either on
    each.
    """
    return (MEMORY, COMPONENTS) if score.memory else ()


def learned_term(loss: LossConfig) -> str:
    """The term that was trained against known abnormal images; "" for plain AnoGAN."""
    return "discriminator" if loss.gamma < 1.0 else ""


class ImageResult(NamedTuple):
    """What the search found for one image.

    Attributes:
      terms: by the names of `measured_terms`: L' of Eq. 24 (`score`), L_R of Eq. 2, L_D of Eq. 3,
        L'_An of Eq. 25, -logit of D(x) (mean over flips with `score.average_flips`), and with a
        memory what its components leave. Of a tiled image the largest over its tiles, but for the
        components, which are of whole images.
      reconstruction: G(z_hat), blended from tiles where there are several.
      difference: |x - G(z_hat)|, averaged over channels.
      attribution: see `maps.attribution`; None unless `score.map` asks for it.
      dense: -logit of every pixel (mean over flips with `score.average_flips`); None unless
        `score.map` asks for it.
      distance: of every pixel to the nearest patch of the memory; None without one.
    """

    terms: dict[str, float]
    reconstruction: Image
    difference: Float[np.ndarray, "height width"]
    attribution: Float[np.ndarray, "height width"] | None = None
    dense: Float[np.ndarray, "height width"] | None = None
    distance: Float[np.ndarray, "height width"] | None = None

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """What the term `local` is made of: attribution or dense, where it is there."""
        chosen = (found for found in (self.dense, self.attribution) if found is not None)
        return next(chosen, self.difference)


class Located(NamedTuple):
    """All raw terms of an image, and the map that is shown, whose maximum is `heat_term`."""

    terms: dict[str, float]
    map: Float[np.ndarray, "height width"]


def locate(
    result: ImageResult, maps: MapCalibration, usual: MapCalibration | None, score: ScoreConfig
) -> Located:
    """What an image's maps say beside those of normal images.

    Args:
      maps: statistics of `ImageResult.map` of normal images.
      usual: those of `ImageResult.distance`, `Memory.usual`; None without a memory.
    """
    map = np.asarray(calibrated_map(result.map, maps, sigma=score.map_sigma))
    terms = {**result.terms, LOCAL: float(map.max())}
    if usual is None or result.distance is None:
        return Located(terms, map)
    far = np.asarray(calibrated_map(result.distance, usual, sigma=score.map_sigma))
    terms |= {MEMORY: float(far.max()), MEMORY_SUM: float(far.mean())}
    return Located(terms, far if score.map == "memory" else map)


class Searched(NamedTuple):
    """What the search found for the tiles of one image.

    Attributes:
      latents: z_hat of every tile.
      curve: L' (Eq. 24) of every tile at every step of the restart that won; None unless
        `search.record_curve` is set.
      loss: L' of every tile; None unless asked for, since without steps it costs more than z_hat.
    """

    latents: Float[np.ndarray, "tiles latent"]
    curve: Float[np.ndarray, "tiles steps"] | None
    loss: Float[np.ndarray, " tiles"] | None = None


class Scorer:
    """Searches and measures images with one model.

    Args:
      config: of the run; its `search`, `loss.gamma`, `network.prior` and tile settings are used.
      mesh: devices of this process; all of them by default.
      memory: what images are compared with, beside G; None for nothing.

    Attributes:
      batch_size: tiles per batch: `tiles_at_once` for every device.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        mesh: Mesh | None = None,
        memory: Memory | None = None,
    ):
        self.mesh = parallel.make_mesh(jax.local_devices()) if mesh is None else mesh
        self.model, self.config = with_initialisation(model, config), config
        self.tile = model.networks.resolution
        self.overlap = round(self.tile * config.score.tile_overlap)
        self.batch_size = tiles_at_once(config.search) * self.mesh.size
        self.memory = memory
        # Handed over once, not with every image.
        self._components = None if memory is None else jax.device_put(memory.components)
        self._variables = parallel.replicate((*self.model[1:], memory), self.mesh)
        search = make_search(model.networks, config)
        measure = make_measure(model.networks, config)
        features = make_features(model.networks, config)
        every, split = parallel.REPLICATED, parallel.SHARDED
        # Each device runs the program of a single one, whatever their number: the same bits.
        compiled = functools.partial(
            parallel.data_parallel, mesh=self.mesh, out_specs=split, own_code=True
        )
        self._search = compiled(search, in_specs=(every, split))
        self._begin = compiled(make_begin(model.networks, config), in_specs=(every, split))
        self._measure = compiled(measure, in_specs=(every, split, split))
        self._features = compiled(features, in_specs=(every, split))

    def search(self, images: Iterable[Image]) -> Iterator[Searched]:
        """z_hat of every tile of every image, image after image; Algorithm 1 of the paper.

        The images' sides are at least the model's resolution, or are reflected up to it. With
        `search.tiles`, of the other tiles what their search would have begun at.
        """
        tiles = map(self.cut, images)
        count = searched_tiles(self.config)
        if count == 0:
            return self._in_batches(self._search, ((cut,) for cut in tiles))
        return self._search_some(tiles, count)

    def _search_some(
        self, images: Iterable[UInt8[np.ndarray, "tiles tile tile channels"]], count: int
    ) -> Iterator[Searched]:
        """The search of each image's `count` tiles whose L' is largest where it begins."""
        seen: deque[np.ndarray] = deque()
        begun: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def every() -> Iterator[tuple[np.ndarray]]:
            for tiles in images:
                seen.append(tiles)
                yield (tiles,)

        def worst() -> Iterator[tuple[np.ndarray]]:
            for start in self._in_batches(self._begin, every()):
                chosen = np.argsort(-start.loss, kind="stable")[:count]
                begun.append((start.latents, chosen))
                yield (seen.popleft()[chosen],)

        for found in self._in_batches(self._search, worst()):
            latents, chosen = begun.popleft()
            latents[chosen] = found.latents
            yield Searched(latents, None)

    def measure(
        self, pairs: Iterable[tuple[Image, Float[np.ndarray, "tiles latent"]]]
    ) -> Iterator[ImageResult]:
        """Terms and difference maps of images whose latents are known; one pass of G and D."""
        shapes: deque[tuple[int, int]] = deque()
        whole: deque[dict[str, Array]] = deque()

        def items() -> Iterator[tuple[np.ndarray, ...]]:
            for image, latents in pairs:
                shapes.append(image.shape[:2])
                whole.append(self._terms_of_whole(image))
                yield self.cut(image), latents

        for reconstruction, maps, terms in self._in_batches(self._measure, items()):
            terms |= whole.popleft()
            yield self._assemble(shapes.popleft(), reconstruction, maps, terms)

    def _terms_of_whole(self, image: Image) -> dict[str, Array]:
        """Terms of an image that is not cut into tiles; on their way, nothing waits for them."""
        if self._components is None:
            return {}
        return {COMPONENTS: _components_term(self._components, thumbnail(image, self.tile)[None])}

    def features(
        self, tiles: Iterable[UInt8[np.ndarray, "tile tile channels"]]
    ) -> Iterator[Float[np.ndarray, "places places features"]]:
        """What a memory keeps patches of, tile after tile."""
        for found in self._in_batches(self._features, ((tile[None],) for tile in tiles)):
            yield found[0]

    def positions(self, height: int, width: int) -> Int[np.ndarray, "tiles 2"]:
        """Top and left of every tile of an image of this size."""
        return tile_positions(height, width, self.tile, self.overlap)

    def cut(self, image: Image) -> UInt8[np.ndarray, "tiles tile tile channels"]:
        """The tiles of an image; one where the model looks at whole images."""
        return cut_tiles(image, self.positions(*image.shape[:2]), self.tile)

    def _assemble(
        self,
        shape: tuple[int, int],
        reconstruction: Any,
        maps: dict[str, Any],
        terms: dict[str, Any],
    ) -> ImageResult:
        positions = self.positions(*shape)
        whole = blend_tiles(reconstruction.astype(np.float32), positions, shape)
        return ImageResult(
            {name: float(terms[name].max()) for name in measured_terms(self.config.score)},
            np.clip(np.rint(whole), 0, 255).astype(np.uint8),
            **{name: blend_tiles(tiles, positions, shape) for name, tiles in maps.items()},
        )

    def _in_batches(
        self, function: Callable[..., Any], items: Iterable[tuple[np.ndarray, ...]]
    ) -> Iterator[Any]:
        """Apply `function` to rows of items that differ in length; one result per item.

        The device works on a batch while the host fills the next one.
        """
        waiting: list[tuple[np.ndarray, ...]] = []
        lengths: list[int] = []
        results: list[Any] = []
        in_flight: tuple[Any, int] | None = None

        def launch(rows: list[tuple[np.ndarray, ...]]) -> tuple[Any, int]:
            padded = rows + rows[-1:] * (self.batch_size - len(rows))
            # Among several processes jit refuses to spread host arrays by itself.
            columns = [
                parallel.shard(np.stack(column), self.mesh) for column in zip(*padded, strict=True)
            ]
            return function(self._variables, *columns), len(rows)

        def land(flight: tuple[Any, int] | None) -> None:
            if flight is None:
                return
            leaves, tree = jax.tree.flatten(jax.device_get(flight[0]))
            results.extend(
                jax.tree.unflatten(tree, [leaf[row] for leaf in leaves]) for row in range(flight[1])
            )

        def finished() -> Iterator[Any]:
            while lengths and len(results) >= lengths[0]:
                count = lengths.pop(0)
                rows, results[:count] = results[:count], []
                yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

        for item in items:
            lengths.append(len(item[0]))
            waiting.extend(zip(*item, strict=True))
            while len(waiting) >= self.batch_size:
                next_flight = launch(waiting[: self.batch_size])
                del waiting[: self.batch_size]
                land(in_flight)
                in_flight = next_flight
                yield from finished()
        last = launch(waiting) if waiting else None
        land(in_flight)
        land(last)
        yield from finished()


@jax.jit
def _components_term(
    components: Components, thumbnails: UInt8[Array, "n s s c"]
) -> Float[Array, " n"]:
    return unusual(components, thumbnails).max(axis=(1, 2))


# Of a model, `model[1:]`, and a memory.
Variables = tuple[NetworkParams, DiscriminatorStatistics, Bank | None, Memory | None]
Tiles = UInt8[Array, "tiles h w c"]
# G(z_hat) in bytes, maps by name, and the terms.
Measurement = tuple[Tiles, dict[str, Float[Array, "tiles h w"]], dict[str, Float[Array, " tiles"]]]


def make_begin(networks: Networks, config: Config) -> Callable[[Variables, Tiles], Searched]:
    """Where the search of a batch of tiles begins, and L' there."""
    search = dataclasses.replace(config.search, steps=0, restarts=1, record_curve=False)
    return make_search(networks, dataclasses.replace(config, search=search), with_loss=True)


def make_search(
    networks: Networks, config: Config, *, with_loss: bool = False
) -> Callable[[Variables, Tiles], Searched]:
    """The search as a pure function of a batch of tiles of the model's resolution."""
    search = config.search
    pixels = pixel_scale(config.data)

    def search_images(variables: Variables, images: Tiles) -> Searched:
        params, statistics, bank, _ = variables
        generate, judge = bind(networks, params, statistics, config)
        found: Any = search_latents(
            generate,
            judge,
            to_float_images(images, pixels),
            jax.random.fold_in(jax.random.key(config.train.seed), _SEARCH_KEY),
            search=search,
            gamma=config.loss.gamma,
            prior=config.network.prior,
            latent_size=networks.latent_size,
            initial=initial_latents(config, networks, params, bank),
        )
        curve = None if found.curve is None else found.curve.total
        return Searched(found.latent, curve, found.loss if with_loss else None)

    return _alike_at_every_place(search_images)


def make_measure(
    networks: Networks, config: Config
) -> Callable[[Variables, Tiles, Float[Array, "tiles latent"]], Measurement]:
    """What G and D say of tiles whose latents are known, as a pure function.

    The maps are `difference`, where `score.map` asks for it `attribution` or `dense`, and where
    there is a memory `distance`.
    """
    search = config.search
    pixels = pixel_scale(config.data)

    def measure_images(
        variables: Variables, images: Tiles, latents: Float[Array, "tiles latent"]
    ) -> Measurement:
        params, statistics, _, memory = variables
        generate, judge = bind(networks, params, statistics, config)
        logits = _logits_of(judge, config)

        def measure_one(image: UInt8[Array, "h w c"], z: Float[Array, " latent"]) -> Any:
            x = to_float_images(image, pixels)
            reconstruction = generate(z)
            judged, judged_reconstruction = judge(x), judge(reconstruction)
            found = search_loss(
                x,
                reconstruction,
                judged.features,
                judged_reconstruction.features,
                judged_reconstruction.normality,
                gamma=config.loss.gamma,
                feature_weight=search.feature_weight,
                reduction=search.reduction,
            )
            logit, dense = logits(x)
            values = (found.total, found.residual, found.feature, found.penalty, -logit)
            terms = dict(zip(TERMS, values, strict=True))
            # In the units of [-1, 1], whatever the networks are shown.
            unit = pixels.std / PAPER_SCALE.std
            maps = {"difference": pixel_difference(x, reconstruction) * unit}
            if config.score.map == "attribution":
                maps["attribution"] = attribution(lambda v: logits(v).image, x, reconstruction)
            if config.score.map == "dense":
                assert dense is not None
                maps["dense"] = -dense
            return to_byte_images(reconstruction, pixels), maps, terms, judged.features

        reconstruction, maps, terms, features = jax.vmap(measure_one)(images, latents)
        if memory is not None:
            own = used(memory, patch_features(images, features))
            maps["distance"] = distance_map(memory, own, images.shape[1])
        return reconstruction, maps, terms

    return _alike_at_every_place(measure_images)


def make_features(networks: Networks, config: Config) -> Callable[[Variables, Tiles], Features]:
    """What a memory keeps patches of, as a pure function: with D's features."""
    pixels = pixel_scale(config.data)

    def features_of(variables: Variables, images: Tiles) -> Features:
        params, statistics, *_ = variables
        _, judge = bind(networks, params, statistics, config)
        judged = jax.vmap(lambda image: judge(to_float_images(image, pixels)).features)(images)
        return patch_features(images, judged)

    return _alike_at_every_place(features_of)


class Logits(NamedTuple):
    """D's logits of an image and of its pixels, as terms and maps take them."""

    image: Float[Array, ""]
    dense: Float[Array, "height width"] | None


def _logits_of(
    judge: Callable[[Array], Judgement], config: Config
) -> Callable[[Float[Array, "h w c"]], Logits]:
    """What D says of an image; with `score.average_flips` the mean over its flips."""

    def judge_once(x: Array) -> Logits:
        judged = judge(x)
        return Logits(judged.logit, judged.dense)

    if not config.score.average_flips:
        return judge_once
    data = config.data
    axes = [axis for axis, shown in ((0, data.flip_vertical), (1, data.flip_horizontal)) if shown]
    flips = [f for count in range(len(axes) + 1) for f in itertools.combinations(axes, count)]

    def logits(x: Array) -> Logits:
        views = jax.vmap(judge_once)(jnp.stack([jnp.flip(x, flip) for flip in flips]))
        if views.dense is None:
            return Logits(views.image.mean(), None)
        back = [jnp.flip(view, flip) for view, flip in zip(views.dense, flips, strict=True)]
        return Logits(views.image.mean(), jnp.stack(back).mean(axis=0))

    return logits
