"""A memory of normal patches: f(x) of Eq. 3 compared with the nearest one of the training images.

L_D (Eq. 3) compares f(x) with f(G(z_hat)), so it is only as good as G. Here f(x) is compared, place
by place, with the nearest patch among those of normal training images (a core-set, as PatchCore,
Roth et al. 2022, keeps one). f is any function from images to feature maps: D's features, or
`random_features`, or both joined.

Everything that scores is `jax.numpy` without state of its own: it can be compiled, batched and
exported. Choosing the patches runs on the host, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from jax_noisy_anogan.config import ScoreConfig
from jax_noisy_anogan.runtime.files import UNREADABLE, load_npz, save_npz
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.scoring.components import Components
from jax_noisy_anogan.scoring.maps import MapCalibration, check_maps

Features = Float[Array, "batch rows columns features"]
HostFeatures = Float[np.ndarray, "n rows columns features"]

# Patches that a core-set is chosen from, per block: enough to cover a texture, seconds of work.
_CANDIDATES = 20_000
_KERNELS, _KERNEL_SIDE, _SCALES = 12, 5, 3
RANDOM_FEATURES = _KERNELS * _SCALES
_PLACES = 32
# In the file.
_NAMES = ("patches", "scale", "mean", "std", "centre", "axes", "left_mean", "left_std")


class Memory(NamedTuple):
    """Normal patches, and how far normal images usually lie from them.

    Attributes:
      patches: standardised features. Places are compared with the patches of their block only;
        with one block, with all of them.
      scale: what every feature is divided by.
      usual: mean and deviation of the smoothed distances of normal images that lent it no patch,
        per pixel or `[]`.
      components: of whole normal images; None until they are fitted.
    """

    patches: Float[Array, "blocks blocks size features"]
    scale: Float[Array, " features"]
    usual: MapCalibration
    components: Components | None = None

    @property
    def learned(self) -> bool:
        """Whether the features are D's too; otherwise they are random alone."""
        return self.scale.shape[-1] > RANDOM_FEATURES


def joined(levels: Sequence[Features]) -> Features:
    """Features of several resolutions as one, each at the places of the first.

    Coarser ones are interpolated, finer ones averaged.

    Raises:
      ValueError: a finer one whose side is no multiple of the first one's.
    """
    batch, rows, columns, _ = levels[0].shape

    def at_places(level: Features) -> Features:
        if level.shape[1] <= rows:
            return jax.image.resize(level, (batch, rows, columns, level.shape[-1]), "linear")
        factor, rest = divmod(level.shape[1], rows)
        if rest or level.shape[2] != factor * columns:
            raise ValueError(f"features of {level.shape[1:3]} for {rows} x {columns} places")
        return _pooled(level, factor)

    return jnp.concatenate([at_places(level) for level in levels], axis=-1)


def random_features(
    images: UInt8[Array, "batch side side channels"],
    *,
    places: int,
    seed: int = 0,
) -> Features:
    """Untrained features: random projections of 5 x 5 patches, rectified.

    At three scales, each half as fine as the one before; averaged over each of `places` x `places`
    places. Random filters followed by rectifying and pooling are a good part of what a trained
    first layer gives (Jarrett et al. 2009).

    Raises:
      ValueError: the side is no multiple of 4.
    """
    side, channels = images.shape[1], images.shape[-1]
    if side % 2 ** (_SCALES - 1):
        raise ValueError(f"images of {side} x {side}: expected a side that is a multiple of 4")
    x = (images.astype(jnp.float32) - 128.0) / 127.0
    found = []
    for scale in range(_SCALES):
        x = _pooled(x, 2) if scale else x
        kernel = jnp.asarray(_random_kernels(seed + scale, channels))
        edge = _KERNEL_SIDE // 2
        padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="edge")
        y = lax.conv_general_dilated(
            padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found.append(jax.nn.relu(y))
    grid = jnp.zeros((images.shape[0], places, places, 0))
    return joined([grid, *found])


def patch_features(images: UInt8[Array, "batch side side channels"], learned: Features) -> Features:
    """The features of a run: random ones first, then D's, `learned`.

    At half the images' resolution, at most at 32 x 32 places.
    """
    places = min(images.shape[1] // 2, _PLACES)
    return joined([random_features(images, places=places), learned])


def used(memory: Memory, features: Features) -> Features:
    """Those of `patch_features` that the memory keeps."""
    return features[..., : memory.scale.shape[-1]]


def _random_kernels(seed: int, channels: int) -> Float[np.ndarray, "5 5 channels kernels"]:
    """Directions of patches, of length 1. Of NumPy: the same numbers with every version of JAX."""
    shape = (_KERNEL_SIDE, _KERNEL_SIDE, channels, _KERNELS)
    kernels = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return (kernels / np.sqrt(np.square(kernels).sum(axis=(0, 1, 2)))).astype(np.float32)


def _pooled(x: Features, factor: int) -> Features:
    n, rows, columns, width = x.shape
    return x.reshape(n, rows // factor, factor, columns // factor, factor, width).mean(axis=(2, 4))


def build(
    features: HostFeatures, *, size: int, blocks: int = 1, margin: int = 0, seed: int = 0
) -> Memory:
    """A memory of the features of normal training images; what is usual is still to be found.

    Args:
      size: patches per block at most; with fewer at hand all are kept.
      blocks: per side. With aligned parts, a patch is compared only with patches of nearby places:
        those of its block, and of `margin` places around it. 1 compares with patches from anywhere.
      seed: of the candidates, of which a core-set is chosen.

    Raises:
      ValueError: no image, features that are not finite, or blocks that do not divide the places.
    """
    n, rows, columns, width = features.shape
    if n == 0 or not np.isfinite(features).all():
        raise ValueError(f"features of {n} normal images: expected at least one, all finite")
    if rows % blocks or columns % blocks:
        raise ValueError(f"{rows} x {columns} places in {blocks} x {blocks} blocks")
    # A feature that never changes says nothing: beside the others its scale is not zero.
    deviation = features.std(axis=(0, 1, 2))
    scale = np.maximum(deviation, 1e-3 * max(float(np.max(deviation)), 1e-6)) * np.sqrt(width)
    rng = np.random.Generator(np.random.PCG64(seed))
    height, breadth = rows // blocks, columns // blocks
    chosen = []
    for top, left in np.ndindex(blocks, blocks):
        y, x = top * height, left * breadth
        near = features[
            :,
            max(y - margin, 0) : y + height + margin,
            max(x - margin, 0) : x + breadth + margin,
        ].reshape(-1, width)
        if len(near) > _CANDIDATES:
            near = near[np.sort(rng.choice(len(near), _CANDIDATES, replace=False))]
        chosen.append(_core_set(jnp.asarray(near / scale), min(size, len(near))))
    # Blocks at the border have fewer neighbours: the shortest decides.
    kept = min(len(patches) for patches in chosen)
    patches = np.stack([patches[:kept] for patches in chosen]).reshape(blocks, blocks, kept, width)
    unknown = MapCalibration(jnp.zeros(()), jnp.ones(()))
    return Memory(jnp.asarray(patches), jnp.asarray(scale, jnp.float32), unknown)


@jax.jit(static_argnames="size")
def _core_set(candidates: Float[Array, "n features"], size: int) -> Float[Array, "size features"]:
    """Greedy k-centre (Gonzalez 1985): next the candidate farthest from all that are chosen.

    Begins at the one nearest to the mean. No candidate is farther from the result than twice the
    least radius that any `size` of them could reach.
    """

    def squared(patch: Float[Array, " features"]) -> Float[Array, " n"]:
        return jnp.square(candidates - jnp.broadcast_to(patch, candidates.shape)).sum(axis=1)

    def step(k: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        order, nearest = state
        farthest = jnp.argmax(nearest)
        return order.at[k].set(farthest), jnp.minimum(nearest, squared(candidates[farthest]))

    first = jnp.argmin(squared(candidates.mean(axis=0)))
    order = jnp.zeros(size, jnp.int32).at[0].set(first)
    order, _ = lax.fori_loop(1, size, step, (order, squared(candidates[first])))
    return candidates[order]


def distances(memory: Memory, features: Features) -> Float[Array, "batch rows columns"]:
    """Euclidean distance of every place to the nearest patch of its block.

    One image at a time, so that memory is bounded by places times patches.

    Raises:
      ValueError: features of another width, or places that the blocks do not divide.
    """
    blocks, _, _, width = memory.patches.shape
    _, rows, columns, found = features.shape
    if found != width or rows % blocks or columns % blocks:
        raise ValueError(
            f"features of {rows} x {columns} places and width {found}: the memory has "
            f"{blocks} x {blocks} blocks of width {width}"
        )
    patches = jnp.asarray(memory.patches)
    lengths = jnp.square(patches).sum(axis=-1)[:, :, None]

    def of_image(image: Float[Array, "rows columns features"]) -> Float[Array, "rows columns"]:
        places = image / jnp.broadcast_to(memory.scale, image.shape)
        places = places.reshape(blocks, rows // blocks, blocks, columns // blocks, width)
        places = places.transpose(0, 2, 1, 3, 4).reshape(blocks, blocks, -1, width)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2, of which the middle is one matrix product.
        products = jnp.einsum("yxpf,yxsf->yxps", places, patches, precision="highest")
        nearest = (lengths - 2.0 * products).min(axis=-1) + jnp.square(places).sum(axis=-1)
        found = jnp.sqrt(jnp.maximum(nearest, 0.0))
        found = found.reshape(blocks, blocks, rows // blocks, columns // blocks)
        return found.transpose(0, 2, 1, 3).reshape(rows, columns)

    return lax.map(of_image, features)


def distance_map(memory: Memory, features: Features, side: int) -> Float[Array, "batch side side"]:
    """`distances` at the images' resolution, between places linear."""
    found = distances(memory, features)
    return jax.image.resize(found, (found.shape[0], side, side), "linear")


def save(path: Path, memory: Memory) -> None:
    """Write as `.npz`; the components have been fitted."""
    assert memory.components is not None
    centre, axes, left = memory.components
    arrays = (memory.patches, memory.scale, *memory.usual, centre, axes, *left)
    named = zip(_NAMES, arrays, strict=True)
    save_npz(path, **{name: np.asarray(array, np.float32) for name, array in named})


def load(path: Path) -> Memory:
    """Read what `save` wrote.

    Raises:
      CalibrationError: the file is missing, damaged or too large, or its arrays do not fit.
    """
    try:
        arrays = load_npz(path, _NAMES)
        _check(*arrays)
    except UNREADABLE as error:
        raise CalibrationError(
            f"{path} is no memory that can be read ({error}): run "
            f"`python -m jax_noisy_anogan.evaluate --workdir {path.parent}` again"
        ) from error
    patches, scale, mean, std, centre, axes, *left = arrays
    components = Components(centre, axes, MapCalibration(*left))
    return Memory(patches, scale, MapCalibration(mean, std), components)


def of_run(folder: Path, score: ScoreConfig) -> Memory | None:
    """The memory beside a calibration; None where the run has none. Raises what `load` raises."""
    return load(folder / "memory.npz") if score.memory else None


def _check(*arrays: np.ndarray) -> None:
    patches, scale, mean, std, centre, axes, left, spread = arrays
    check_maps(mean, std)
    check_maps(left, spread)
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays):
        raise ValueError("expected finite float32 arrays")
    if patches.ndim != 4 or patches.shape[0] != patches.shape[1] or 0 in patches.shape:
        raise ValueError(f"patches of shape {patches.shape}")
    fits = scale.shape == patches.shape[-1:] and axes.ndim == 2 and centre.shape == axes.shape[1:]
    if not fits or left.ndim != 2:
        raise ValueError(f"shapes {[array.shape for array in arrays]} that do not fit")
    if not (scale > 0).all():
        raise ValueError("a scale that is not positive")
