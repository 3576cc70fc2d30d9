"""Simulated defects: known abnormal images p_an (Eq. 17) where few or no real ones are known.

A defect is a shape (curve, spot, bar, cloud, section or haze) with other content: a patch of
another normal image, scaled, turned and blended in by Poisson's equation (natural synthetic
anomalies, Schlüter et al. 2022), a texture of smooth noise, or the surface itself, made brighter,
darker, smeared or rough. Its mask holds the pixels that changed visibly; all others keep their
value.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy import fft, ndimage

# A change of fewer levels (of 255) is invisible, however plain the surface.
_LEAST_VISIBLE = 3.0
# Shapes are drawn so many times larger and averaged, for smooth edges.
_FINER = 4
_ATTEMPTS = 8
# Share of an image: a defect that covers more is the surface itself.
_LARGEST = 0.5
# Share of the curves, spots and bars that lie at an edge of the image.
_AT_EDGE = 0.25

Weight = Float[np.ndarray, "height width"]
Surface = Float[np.ndarray, "height width channels"]
Points = Float[np.ndarray, "n 2"]


class Simulated(NamedTuple):
    """A normal image with a defect, or up to three.

    Attributes:
      mask: where the defects are visible: in a pixel or more, and in at most half of them. Outside
        of it the image is the normal one.
    """

    image: UInt8[np.ndarray, "height width channels"]
    mask: Bool[np.ndarray, "height width"]


class Shape(NamedTuple):
    """Where a defect lies: how much of it shows in each pixel of a window, 0 to 1."""

    weight: Weight
    top: int
    left: int


def simulate_defects(
    image: UInt8[np.ndarray, "height width channels"],
    source: UInt8[np.ndarray, "height width channels"],
    rng: np.random.Generator,
) -> Simulated:
    """Put one to three defects on a normal image.

    Args:
      image: a normal image, 0..255, at least 4 x 4 pixels.
      source: another normal image of the same size, which patches are cut from.
      rng: all random choices; the same state gives the same defects.
    """
    surface, patches = image.astype(np.float32), source.astype(np.float32)
    grain = max(float(np.abs(np.diff(surface, axis=0)).mean()), _LEAST_VISIBLE)
    for attempt in range(_ATTEMPTS):
        # What cannot be seen is tried again, stronger.
        strongest = grain * (1 + attempt)
        changed = surface
        for _ in range(1 + int(3 * rng.random() ** 3)):
            changed = _with_defect(changed, patches, strongest * _between(rng, 1.5, 8.0), rng)
        changed = np.rint(np.clip(changed, 0, 255))
        mask = _visible(np.abs(changed - surface).max(axis=-1), grain)
        if 0 < mask.mean() <= _LARGEST:
            break
    else:
        changed, mask = _inverted_pixel(surface, rng)
    return Simulated(np.where(mask[..., None], changed, surface).astype(np.uint8), mask)


def _visible(change: Weight, grain: float) -> Bool[np.ndarray, "height width"]:
    """Pixels that changed visibly beside the grain of the surface, and what they enclose.

    A fine line is visible by its own contrast, another texture by that of its neighbourhood.
    """
    near = ndimage.uniform_filter(change, 3, mode="nearest")
    seen = (change > 2 * grain) | ((near > grain) & (change > grain / 4))
    return seen | ndimage.binary_closing(seen, np.ones((3, 3), bool))


def _inverted_pixel(
    surface: Surface, rng: np.random.Generator
) -> tuple[Surface, Bool[np.ndarray, "height width"]]:
    """The last resort on surfaces that hide everything: one pixel, black or white."""
    height, width = surface.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[int(rng.random() * height), int(rng.random() * width)] = True
    return np.where(surface < 128, np.float32(255), np.float32(0)), mask


def _with_defect(
    surface: Surface, source: Surface, strength: float, rng: np.random.Generator
) -> Surface:
    """One defect of random shape, content, size and place."""
    weight, top, left = _one_of(_SHAPES, rng)(*surface.shape[:2], rng)
    window = np.s_[top : top + weight.shape[0], left : left + weight.shape[1]]
    below = surface[window]
    above = _one_of(_CONTENTS, rng)(below, source, strength, rng)
    mixed = surface.copy()
    mixed[window] = below + weight[..., None] * (above - below)
    return mixed


# ---------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------


def _curve(height: int, width: int, rng: np.random.Generator) -> Shape:
    """A crack or scratch: a line that bends as it goes."""
    side = min(height, width)
    points = 12
    step = _between(rng, 0.08, 0.8) * side / points
    headings = 2 * np.pi * rng.random() + np.cumsum(rng.normal(0, _between(rng, 0.05, 0.6), points))
    path = np.cumsum(step * np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0)
    thickness = max(_between(rng, 0.008, 0.04) * side, 0.75)
    return _drawn(_placed(path, height, width, rng), height, width, rng, thickness=thickness)


def _spot(height: int, width: int, rng: np.random.Generator) -> Shape:
    """A hole or stain: an ellipse with an uneven edge."""
    side = min(height, width)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    waves = sum(
        rng.normal(0, 0.25 / k) * np.cos(k * angles + 6.3 * rng.random()) for k in (2, 3, 4)
    )
    radius = max(_between(rng, 0.012, 0.15) * side, 0.75) * np.maximum(1 + waves, 0.2)
    longer = np.sqrt(_between(rng, 1.0, 4.0))
    outline = np.stack([longer * radius * np.cos(angles), radius / longer * np.sin(angles)], axis=1)
    outline = _turned(outline, 2 * np.pi * rng.random())
    return _drawn(_placed(outline, height, width, rng), height, width, rng)


def _bar(height: int, width: int, rng: np.random.Generator) -> Shape:
    """A rectangle at any angle."""
    side = min(height, width)
    half = [max(_between(rng, *limits) * side, 1.0) / 2 for limits in ((0.05, 0.5), (0.02, 0.2))]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    corners = _turned(corners, 2 * np.pi * rng.random())
    return _drawn(_placed(corners, height, width, rng), height, width, rng)


def _section(height: int, width: int, rng: np.random.Generator) -> Shape:
    """Everything on one side of a line, or between two: a strip that was worked otherwise."""
    side = min(height, width)
    reach = 2.0 * max(height, width)
    depth = reach if rng.random() < 0.5 else _between(rng, 0.1, 0.5) * side
    along = np.linspace(-reach, reach, 32)
    edge = np.cumsum(rng.normal(0, 0.02 * side, 32)) * (rng.random() < 0.5)
    line = np.stack([along, edge - edge.mean()], axis=1)
    outline = np.concatenate([line, line[::-1] + np.array([0, depth])])
    # Parts are mostly worked along their sides.
    turn = 4.0 * rng.random() if rng.random() < 0.3 else int(4 * rng.random())
    outline = _turned(outline, turn * np.pi / 2) + rng.random(2) * (width, height)
    return _drawn(np.clip(outline, -1, (width, height)), height, width, rng)


def _cloud(height: int, width: int, rng: np.random.Generator) -> Shape:
    """A region with holes and islands: smooth noise above a limit."""
    rows, columns = (max(int(_between(rng, 0.15, 0.8) * size), 2) for size in (height, width))
    noise = _smooth_noise(rows, columns, _between(rng, 0.1, 0.5), rng)
    # Fades out towards the window's border, which would show as a straight edge.
    fade = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1])
    weight = np.clip(2 * (noise + 3 * fade - 2), 0, 1)
    top, left = (int(rng.random() * (n - m + 1)) for n, m in ((height, rows), (width, columns)))
    return Shape(weight.astype(np.float32), top, left)


def _haze(height: int, width: int, rng: np.random.Generator) -> Shape:
    """A large stain or shadow without an edge."""
    lines = []
    for size in (height, width):
        middle, spread = rng.random() * size, _between(rng, 0.08, 0.4) * size
        lines.append(np.exp(-0.5 * np.square((np.arange(size) - middle) / spread)))
    return Shape(np.outer(*lines).astype(np.float32), 0, 0)


def _drawn(
    points: Points, height: int, width: int, rng: np.random.Generator, *, thickness: float = 0.0
) -> Shape:
    """The area that points (x, y) enclose, or the line through them if it has a thickness."""
    blur = rng.random() * max(0.02 * min(height, width), 0.5) if rng.random() < 0.5 else 0.0
    margin = 1 + thickness / 2 + 3 * blur
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin) + 1, (width, height)).astype(int)
    fine = Image.new("L", tuple((high - low) * _FINER))
    corners = ((points - low + 0.5) * _FINER).ravel().tolist()
    if thickness:
        ImageDraw.Draw(fine).line(corners, 255, max(round(thickness * _FINER), 1), "curve")
    else:
        ImageDraw.Draw(fine).polygon(corners, 255)
    weight = np.asarray(fine.reduce(_FINER), np.float32) / 255
    return Shape(ndimage.gaussian_filter(weight, blur) if blur else weight, low[1], low[0])


def _placed(points: Points, height: int, width: int, rng: np.random.Generator) -> Points:
    """Moved so that one of the points lies at a random pixel; at the image's edge now and then.

    Chips and cracks of real parts begin at edges.
    """
    at = points[int(rng.random() * len(points))]
    place = rng.random(2)
    if rng.random() < _AT_EDGE:
        axis = int(2 * rng.random())
        place[axis] = np.round(place[axis])
    return points - at + place * (width - 1, height - 1)


def _turned(points: Points, angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


# ---------------------------------------------------------------------------------------------
# Contents
# ---------------------------------------------------------------------------------------------


def _patch(below: Surface, source: Surface, strength: float, rng: np.random.Generator) -> Surface:
    """A part of another image, scaled, turned and blended in; brighter or darker half the time."""
    angle, scale = 2 * np.pi * rng.random(), _between(rng, 0.5, 2.0)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, -sin], [sin, cos]])
    centre = rng.random(2) * source.shape[:2]
    offset = centre - matrix @ (np.array(below.shape[:2]) / 2)
    planes = [
        ndimage.affine_transform(
            source[..., k], matrix, offset, below.shape[:2], order=1, mode="mirror"
        )
        for k in range(source.shape[-1])
    ]
    patch = np.stack(planes, axis=-1)
    shift = rng.choice([0.0, 0.0, -strength, strength]) / 2
    return patch + harmonic(below - patch) + np.float32(shift)


def _tone(below: Surface, source: Surface, strength: float, rng: np.random.Generator) -> Surface:
    """The surface itself, brighter or darker."""
    return below + np.float32(rng.choice([-strength, strength]))


def _contrast(
    below: Surface, source: Surface, strength: float, rng: np.random.Generator
) -> Surface:
    """The surface smeared or roughened, and brighter, darker or as it was."""
    smooth = ndimage.gaussian_filter(below, (*(2 * [0.04 * len(source)]), 0), mode="nearest")
    gain = rng.choice([0.0, _between(rng, 0.2, 3.0)])
    shift = rng.choice([0.0, -strength, strength])
    return smooth + np.float32(gain) * (below - smooth) + np.float32(shift)


def _texture(below: Surface, source: Surface, strength: float, rng: np.random.Generator) -> Surface:
    """The surface under a texture of smooth noise."""
    noise = _smooth_noise(len(below), below.shape[1], _between(rng, 0.03, 0.3), rng)
    return below + strength * noise[..., None].astype(np.float32)


def harmonic(values: Surface) -> Surface:
    """The smoothest surface with these values at the border: its Laplacian vanishes inside.

    What Poisson blending adds to a patch, where `values` is the image minus the patch (Pérez et al.
    2003, Eq. 2 with the patch's gradient as guidance). Solved by sine transforms.
    """
    height, width = values.shape[:2]
    if height < 3 or width < 3:
        return np.broadcast_to(values.mean(axis=(0, 1)), values.shape)
    border = values.copy()
    border[1:-1, 1:-1] = 0
    inside = border[:-2, 1:-1] + border[2:, 1:-1] + border[1:-1, :-2] + border[1:-1, 2:]
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, n - 1) / (n - 1)) for n in (height, width))
    waves = fft.dstn(inside, type=1, axes=(0, 1)) / np.add.outer(rows, columns)[..., None]
    border[1:-1, 1:-1] = fft.idstn(waves, type=1, axes=(0, 1))
    return border


def _smooth_noise(
    height: int, width: int, scale: float, rng: np.random.Generator
) -> Float[np.ndarray, "height width"]:
    """Noise of mean 0 and deviation 1 whose waves are longer than about `scale` of the window."""
    count = [min(max(int(2 / scale), 2), n) for n in (height, width)]
    waves = np.zeros((height, width))
    waves[: count[0], : count[1]] = rng.standard_normal(count)
    waves[0, 0] = 0
    noise = fft.idctn(waves)
    return noise / max(float(noise.std()), 1e-6)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform: small sizes are as frequent as large ones."""
    return float(low * (high / low) ** rng.random())


def _one_of(choices: tuple, rng: np.random.Generator):
    return choices[int(rng.random() * len(choices))]


_SHAPES = (_curve, _curve, _spot, _spot, _bar, _cloud, _section, _haze)
_CONTENTS = (_patch, _patch, _patch, _tone, _tone, _contrast, _contrast, _texture)
