"""Images in, latents and scores out, in batches of one shape over all devices.

An image is one tile, or many where the model is a tiled one. Tiles of many images share batches;
what a batch holds beside a tile never changes that tile's result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, UInt8

from jax_noisy_anogan.config import Config, LossConfig
from jax_noisy_anogan.latent_search import (
    Judgement,
    search_latents,
)
from jax_noisy_anogan.losses import search_loss
from jax_noisy_anogan.model import Model, _guess, bind, pixel_scale, with_guide
from jax_noisy_anogan.networks import (
    Networks,
)
from jax_noisy_anogan.networks.pixels import PAPER_SCALE, to_byte_images, to_float_images
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.scoring.maps import MapCalibration, calibrated_map, evidence, pixel_difference
from jax_noisy_anogan.scoring.tiles import blend_tiles, cut_tiles, tile_positions

LOCAL = "local"

Image = UInt8[np.ndarray, "height width channels"]

# Terms of every image, each growing with abnormality; `local` needs a map calibration.
TERMS = ("score", "residual", "feature", "penalty", "discriminator")
_SEARCH_KEY = 4


def learned_term(loss: LossConfig) -> str:
    """The term that was trained against known abnormal images; "" for plain AnoGAN."""
    return "discriminator" if loss.gamma < 1.0 else ""


class ImageResult(NamedTuple):
    """What the search found for one image.

    Attributes:
      terms: by the names of `TERMS`: L' of Eq. 24 (`score`), L_R of Eq. 2, L_D of Eq. 3, L'_An of
        Eq. 25, and -logit of D(x) (mean over flips with `score.average_flips`). Of a tiled image
        the largest over its tiles.
      drawn: G(z_hat), blended from tiles where there are several.
      difference: |x - G(z_hat)|, averaged over channels.
      evidence: see `maps.evidence`; None unless `score.map` asks for it.
    """

    terms: dict[str, float]
    drawn: Image
    difference: Float[np.ndarray, "height width"]
    evidence: Float[np.ndarray, "height width"] | None = None

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """What anomaly maps are made of, as `score.map` says."""
        return self.difference if self.evidence is None else self.evidence


class Searched(NamedTuple):
    """What the search found for the tiles of one image.

    Attributes:
      latents: z_hat of every tile.
      curve: L' (Eq. 24) of every tile at every step of the restart that won; None unless
        `search.record_curve` is set.
    """

    latents: Float[np.ndarray, "tiles latent"]
    curve: Float[np.ndarray, "tiles steps"] | None


class Scorer:
    """Searches and measures images with one model.

    Args:
      config: of the run; its `search`, `loss.gamma`, `network.prior` and tile settings are used.
      mesh: devices of this process; all of them by default.
      batch_size: tiles per batch, rounded up to a multiple of the devices; by default that of the
        config.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        mesh: Mesh | None = None,
        *,
        batch_size: int | None = None,
    ):
        self.mesh = parallel.make_mesh(jax.local_devices()) if mesh is None else mesh
        self.model, self.config = with_guide(model, config), config
        self.tile = model.networks.resolution
        self.overlap = round(self.tile * config.score.tile_overlap)
        wanted = config.search.batch_size if batch_size is None else batch_size
        self.batch_size = -(-wanted // self.mesh.size) * self.mesh.size
        self._variables = parallel.replicate(self.model[1:], self.mesh)
        everywhere = NamedSharding(self.mesh, parallel.REPLICATED)
        split = NamedSharding(self.mesh, parallel.SHARDED)
        search, measure = make_functions(model.networks, config)
        self._search = jax.jit(search, in_shardings=(everywhere, split), out_shardings=split)
        self._measure = jax.jit(
            measure, in_shardings=(everywhere, split, split), out_shardings=split
        )

    def search(self, images: Iterable[Image]) -> Iterator[Searched]:
        """z_hat of every tile of every image, image after image; Algorithm 1 of the paper.

        The images' sides are at least the model's resolution, or are reflected up to it.
        """
        items = ((self._cut(image),) for image in images)
        return self._in_batches(self._search, items)

    def measure(
        self, pairs: Iterable[tuple[Image, Float[np.ndarray, "tiles latent"]]]
    ) -> Iterator[ImageResult]:
        """Terms and difference maps of images whose latents are known; one pass of G and D."""
        shapes: list[tuple[int, int]] = []

        def items() -> Iterator[tuple[np.ndarray, ...]]:
            for image, latents in pairs:
                shapes.append(image.shape[:2])
                yield self._cut(image), latents

        for drawn, maps, terms in self._in_batches(self._measure, items()):
            yield self._assemble(shapes.pop(0), drawn, maps, terms)

    def positions(self, height: int, width: int) -> Int[np.ndarray, "tiles 2"]:
        """Top and left of every tile of an image of this size."""
        return tile_positions(height, width, self.tile, self.overlap)

    def _cut(self, image: Image) -> UInt8[np.ndarray, "tiles tile tile channels"]:
        return cut_tiles(image, self.positions(*image.shape[:2]), self.tile)

    def _assemble(
        self, shape: tuple[int, int], drawn: Any, maps: dict[str, Any], terms: dict[str, Any]
    ) -> ImageResult:
        positions = self.positions(*shape)
        whole = blend_tiles(drawn.astype(np.float32), positions, shape)
        return ImageResult(
            {name: float(terms[name].max()) for name in TERMS},
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


def make_functions(
    networks: Networks, config: Config
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two pure functions of scoring, for any batch of tiles of the model's resolution.

    Returns:
      `search(variables, images) -> Searched` and
      `measure(variables, images, latents) -> (drawn, maps, terms)`; `variables` are those of a
      model, `model[1:]`, images are uint8, `drawn` too, `maps` a dictionary with `difference` and,
      where `score.map` asks for it, `evidence`, `terms` one with the names of `TERMS`.
    """
    search, gamma = config.search, config.loss.gamma
    pixels = pixel_scale(config.data)

    def search_images(variables, images):
        params, reference, guide = variables
        generate, judge = bind(networks, params, reference, config)
        found: Any = search_latents(
            generate,
            judge,
            to_float_images(images, pixels),
            jax.random.fold_in(jax.random.key(config.train.seed), _SEARCH_KEY),
            search=search,
            gamma=gamma,
            prior=config.network.prior,
            latent_size=networks.latent_size,
            guess=_guess(config, guide),
        )
        return Searched(found.latent, None if found.curve is None else found.curve.total)

    def measure_images(variables, images, latents):
        params, reference, _ = variables
        generate, judge = bind(networks, params, reference, config)
        verdict = _verdict(judge, config)

        def measure_one(image, z):
            x = to_float_images(image, pixels)
            drawn = generate(z)
            judged, judged_drawn = judge(x), judge(drawn)
            found = search_loss(
                x,
                drawn,
                judged.features,
                judged_drawn.features,
                judged_drawn.normality,
                gamma=gamma,
                feature_weight=search.feature_weight,
                reduction=search.reduction,
            )
            values = (found.total, found.residual, found.feature, found.penalty, -verdict(x))
            terms = dict(zip(TERMS, values, strict=True))
            # In the units of [-1, 1], whatever the networks are shown.
            maps = {"difference": pixel_difference(x, drawn) * (pixels.std / PAPER_SCALE.std)}
            if config.score.map == "evidence":
                maps["evidence"] = evidence(verdict, x, drawn)
            return to_byte_images(drawn, pixels), maps, terms

        return jax.vmap(measure_one)(images, latents)

    return search_images, measure_images


def _verdict(
    judge: Callable[[Array], Judgement], config: Config
) -> Callable[[Float[Array, "h w c"]], Float[Array, ""]]:
    """D's logit of an image, as its term and the evidence take it."""
    if not config.score.average_flips:
        return lambda x: judge(x).logit
    data = config.data
    axes = [axis for axis, shown in ((0, data.flip_vertical), (1, data.flip_horizontal)) if shown]
    flips = [f for count in range(len(axes) + 1) for f in itertools.combinations(axes, count)]

    def verdict(x: Array) -> Array:
        views = jnp.stack([jnp.flip(x, flip) for flip in flips])
        return jax.vmap(lambda view: judge(view).logit)(views).mean()

    return verdict


def terms_of(
    results: Iterable[ImageResult], maps: MapCalibration, config: Config
) -> dict[str, Float[np.ndarray, " n"]]:
    """Every raw term of the images, `local` included."""
    columns: dict[str, list[float]] = {name: [] for name in (*TERMS, LOCAL)}
    for result in results:
        terms = {**result.terms, LOCAL: float(_calibrated_map(result, maps, config).max())}
        for name, value in terms.items():
            columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _calibrated_map(
    result: ImageResult, maps: MapCalibration, config: Config
) -> Float[np.ndarray, "h w"]:
    sigma = config.score.map_sigma
    return np.asarray(calibrated_map(jnp.asarray(result.map), maps, sigma=sigma))
