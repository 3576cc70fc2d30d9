"""Inspection surfaces drawn with a seed: three textures, four kinds of small defect, exact masks.

A defect changes every pixel of its mask and no other, and covers less than 1 % of the surface.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import fft, ndimage

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.examples import Example, Picture, Source
from jax_noisy_anogan.runtime.files import digest

TEXTURES = ("brushed", "fabric", "speckle")
DEFECTS = ("scratch", "spot", "dent", "fibre")
CLASS_NAMES = ("good", *DEFECTS)
AREA = (0.0005, 0.006)
_SCALE = 1024
# Raised where the same seed draws other pixels, so that none of before are taken for them.
_DRAWING = 2


def synthetic(config: DataConfig, *, resolution: int) -> Source:
    """Flawless and defective surfaces, as many as `data.synthetic` says.

    The kinds of defect take turns. Every surface depends on `synthetic.seed` and its number only;
    it is made at `resolution` unless `synthetic.side` says otherwise.
    """
    made = config.synthetic
    examples = []
    for number in range(made.images + made.abnormal_images):
        turn = number - made.images
        label = 0 if turn < 0 else 1 + turn % len(DEFECTS)
        key = (made.seed, zlib.crc32(made.texture.encode()), number)
        side, channels = made.side or resolution, config.channels or 1
        load = partial(_load, made.texture, label, side, channels, key)
        examples.append(Example(f"{made.texture}/{CLASS_NAMES[label]}/{number:05d}", label, load))
    return Source(
        builder="synthetic",
        class_names=CLASS_NAMES,
        normal_classes=("good",),
        examples=examples,
        fingerprint=digest(
            "synthetic",
            _DRAWING,
            made.texture,
            made.images,
            made.abnormal_images,
            made.seed,
            made.side,
        ),
        has_masks=True,
    )


def draw_surface(
    texture: str, side: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side"]:
    """A flawless surface with values from 60 to 195, so that a defect can go either way."""
    values = _TEXTURES[texture](side, rng)
    return np.clip(128 + values, 60, 195).round().astype(np.uint8)


def draw_defect(
    surface: UInt8[np.ndarray, "side side"], kind: str, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "side side"], Bool[np.ndarray, "side side"]]:
    """The surface with one defect, and the exact mask of the pixels that it changed."""
    side = len(surface)
    area = max(rng.uniform(*AREA) * side**2, 3.0)
    shape = _SHAPES[kind](side, area, rng)
    mask = shape > 0
    contrast = rng.uniform(25, 55) * _SIGNS[kind](rng)
    changed = surface + np.where(
        mask, np.sign(contrast) * np.maximum(np.abs(contrast) * shape, 8), 0
    )
    return np.clip(changed, 0, 255).round().astype(np.uint8), mask


def _load(texture: str, label: int, side: int, channels: int, key: tuple[int, ...]) -> Picture:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    image = draw_surface(texture, side, rng)
    mask = np.zeros((side, side), bool)
    if label:
        image, mask = draw_defect(image, CLASS_NAMES[label], rng)
    return Picture(np.repeat(image[..., None], channels, axis=-1), mask)


def _noise(
    side: int, sigma: tuple[float, float], rng: np.random.Generator
) -> Float[np.ndarray, "side side"]:
    """Gaussian noise of unit variance, smooth over `sigma` pixels of a 1024-pixel surface.

    It has no border: what leaves on one side comes back on the other. In frequencies, because
    hundreds of pixels are smoothed over: 30 times as fast.
    """
    white = rng.standard_normal((side, side), np.float32)
    scaled = [s * side / _SCALE for s in sigma]
    smooth = fft.irfft2(ndimage.fourier_gaussian(fft.rfft2(white), scaled, n=side), s=white.shape)
    return smooth / max(float(smooth.std()), 1e-6)


def _brushed(side: int, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    fine, coarse = _noise(side, (1.0, 90.0), rng), _noise(side, (160.0, 200.0), rng)
    return 11 * fine + 9 * coarse


def _fabric(side: int, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    threads = side / max(4, round(side / 14)) if side < 256 else side / 64
    phase = rng.uniform(0, 2 * np.pi, 2)
    warp = 1.2 * _noise(side, (60.0, 60.0), rng)
    y, x = np.mgrid[:side, :side] * (2 * np.pi / threads)
    horizontal, vertical = np.sin(y + phase[0] + warp * 0.2), np.sin(x + phase[1] + warp * 0.2)
    over = np.sign(np.sin((x + phase[1]) / 2) * np.sin((y + phase[0]) / 2))
    return 16 * np.where(over > 0, horizontal, vertical) + 5 * _noise(side, (1.5, 1.5), rng)


def _speckle(side: int, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    grains = np.tanh(1.5 * _noise(side, (5.0, 5.0), rng))
    return 14 * grains + 6 * _noise(side, (30.0, 30.0), rng)


_TEXTURES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "brushed": _brushed,
    "fabric": _fabric,
    "speckle": _speckle,
}


def _disc(side: int, area: float, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    """Strength 1 in the centre, falling to the rim, of a slightly oblong disc."""
    radius = np.sqrt(area / np.pi)
    oblong, angle = rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
    centre = rng.uniform(radius * 1.4, side - radius * 1.4, 2)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    y, x = y - centre[0], x - centre[1]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    squared = (u * oblong) ** 2 + (v / oblong) ** 2
    return np.clip(1 - squared / radius**2, 0, 1)


def _spot(side: int, area: float, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    return np.minimum(3 * _disc(side, area, rng), 1)


def _line(
    side: int, area: float, bend: float, rng: np.random.Generator
) -> Float[np.ndarray, "side side"]:
    """A quadratic Bézier curve of constant width; `bend` is its sag relative to its length."""
    width = max(1.0, side / 400)
    length = min(area / width, 0.45 * side)
    angle = rng.uniform(0, np.pi)
    along = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([along[1], -along[0]])
    centre = rng.uniform(0.3 * side, 0.7 * side, 2)
    ends = centre - along * length / 2, centre + along * length / 2
    control = centre + across * bend * length * rng.choice((-1, 1))
    t = np.linspace(0, 1, 4 * side)[:, None]
    points = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * control + t**2 * ends[1]
    rows, columns = np.clip(points.round().astype(int), 0, side - 1).T
    free = np.ones((side, side), bool)
    free[rows, columns] = False
    distance = ndimage.distance_transform_edt(free)
    return (distance < width / 2 + 1e-3).astype(np.float32)


_SHAPES: dict[str, Callable[[int, float, np.random.Generator], np.ndarray]] = {
    "scratch": lambda side, area, rng: _line(side, area, rng.uniform(0, 0.05), rng),
    "spot": _spot,
    "dent": _disc,
    "fibre": lambda side, area, rng: _line(side, area, rng.uniform(0.3, 0.8), rng),
}
_SIGNS: dict[str, Callable[[np.random.Generator], float]] = {
    "scratch": lambda rng: 1.0,
    "spot": lambda rng: -1.0,
    "dent": lambda rng: rng.choice((-1.0, 1.0)),
    "fibre": lambda rng: rng.choice((-1.0, 1.0)),
}
