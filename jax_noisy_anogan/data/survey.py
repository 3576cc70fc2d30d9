"""What the files of a data set hold: colours, how much of 16 bits a camera uses, shapes and sizes.

Settings that are left to the data (`data.channels = 0`, `white_level = 0`, `fit = "auto"`,
`scale = 0`) are chosen from it, once, before anything is prepared or trained; a run keeps the
choice.
"""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.decode import Content, content_of
from jax_noisy_anogan.data.examples import BadImageError, Source
from jax_noisy_anogan.data.writing import exclusive, read_json
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest, to_json, user_path, write_text

# Largest values of the depths that cameras have: 8, 10, 12, 14 and 16 bits.
_WHITE_LEVELS = (255, 1023, 4095, 16_383, 65_535)
# Images whose longer side is so many times the shorter one, in the median, are far from square.
FAR_FROM_SQUARE = 1.5
# Tiles of the model's size along the shorter side of the median image, where `scale` is chosen.
_TILES_ACROSS = 2
# Where so many pixels of a photograph, on a side, become one, small defects are lost.
_MUCH_SMALLER = 4.0
# Below so many of 256 levels a picture shows steps instead of shades.
_FEW_LEVELS = 64
_THREADS = 4
_CHUNK = 64


class Measured(NamedTuple):
    """A data config without a setting that is left open.

    Attributes:
      config: with `channels`, `white_level`, `fit` and `scale` chosen where they were open.
      remarks: a line for every choice, and for everything that the settings lose.
      most_pixels: of an image as the networks are shown it.
    """

    config: DataConfig
    remarks: tuple[str, ...]
    most_pixels: int


class Shapes(NamedTuple):
    """Sizes of image files, in pixels.

    Attributes:
      ratio: of the longer to the shorter side, in the median.
      shorter: the shorter side, in the median.
      most_pixels: of the largest image.
    """

    ratio: float = 1.0
    shorter: float = 0.0
    most_pixels: int = 0


def measured(config: DataConfig, source: Source, *, resolution: int) -> Measured:
    """Choose what `config` leaves to the data.

    Data sets without image files are grey. The look at the files is kept in `data.cache_dir`.

    Args:
      resolution: of squares that are prepared; of tiles where images keep their shape.
    """
    if not any(example.path for example in source.examples):
        return Measured(_settled(config, Content(), Shapes(), resolution), (), resolution**2)
    content, shapes = _kept(config, source)
    settled = _settled(config, content, shapes, resolution)
    most_pixels = resolution**2
    if settled.fit == "scale":
        most_pixels = max(most_pixels, round(shapes.most_pixels / settled.scale**2))
    remarks = (
        *_remarks(config, settled, content),
        *_shape_remarks(config, settled, shapes, resolution),
    )
    return Measured(settled, remarks, most_pixels)


def _settled(config: DataConfig, content: Content, shapes: Shapes, resolution: int) -> DataConfig:
    is_open = content.is_sixteen_bit and config.white_level == 0
    if is_open and config.black_level >= max(content.highest, 1):
        raise DataError(
            f"config.data.black_level is {config.black_level}, but values of the 16-bit images of "
            f"{config.root} reach from {content.lowest:,} to {content.highest:,}: expected less"
        )
    white = next(level for level in _WHITE_LEVELS if level >= content.highest)
    fit = config.fit
    if fit == "auto":
        keeps_shape = config.scale or shapes.ratio > FAR_FROM_SQUARE
        fit = "scale" if keeps_shape else "stretch"
    scale = config.scale
    if fit == "scale" and scale == 0:
        scale = round(max(1.0, shapes.shorter / (_TILES_ACROSS * resolution)), 2)
    return dataclasses.replace(
        config,
        channels=config.channels or (3 if content.has_colour else 1),
        white_level=config.white_level or (white if content.is_sixteen_bit else 65_535),
        fit=fit,
        scale=scale,
    )


def _shape_remarks(
    asked: DataConfig, settled: DataConfig, shapes: Shapes, resolution: int
) -> list[str]:
    if settled.fit == "scale" and settled != dataclasses.replace(
        settled, fit=asked.fit, scale=asked.scale
    ):
        return [
            f"data.fit = scale, data.scale = {settled.scale:g}: images whose longer side is "
            f"{shapes.ratio:.2f} times the shorter one (median) keep their shape, and are worked "
            f"on in tiles; {settled.scale:g} pixels of an image become one"
        ]
    remarks = []
    if settled.fit == "stretch" and shapes.ratio > 1.05:
        remarks.append(
            f"images are stretched to squares, by {shapes.ratio:.2f} (median): data.fit = scale, "
            "pad or crop keeps their shape"
        )
    if settled.fit != "scale" and shapes.shorter >= _MUCH_SMALLER * resolution:
        remarks.append(
            f"{shapes.shorter / resolution:.0f} pixels of an image, on a side, become one: what is "
            "smaller is lost; a larger growth.resolution, or data.fit = scale, shows more"
        )
    return remarks


def _remarks(asked: DataConfig, settled: DataConfig, content: Content) -> list[str]:
    remarks = []
    if asked.channels == 0:
        kind = "colour" if content.has_colour else "no colour"
        remarks.append(f"data.channels = {settled.channels}: the images have {kind}")
    elif settled.channels == 1 and content.has_colour:
        remarks.append("the images have colour, which data.channels = 1 takes away")
    if content.is_sixteen_bit:
        black, white = settled.black_level, settled.white_level
        remarks.append(
            f"data.white_level = {white}: values of 16-bit images reach from {content.lowest:,} to "
            f"{content.highest:,}"
        )
        levels = 255 * (min(content.highest, white) - max(content.lowest, black)) / (white - black)
        if levels < _FEW_LEVELS:
            remarks.append(
                f"16-bit images use {levels:.0f} of 256 levels; all with --config.data.black_level="
                f"{content.lowest} --config.data.white_level={max(content.highest, 1)}"
            )
    if 0 < content.high_bytes < _FEW_LEVELS:
        remarks.append(
            f"images with 16 bits in each of several channels reach only "
            f"{256 * content.high_bytes + 255:,} of 65,535, and are read in "
            f"{content.high_bytes + 1} levels: save them with 8 bits per channel"
        )
    return remarks


def _kept(config: DataConfig, source: Source) -> tuple[Content, Shapes]:
    stamp = digest("contents 2", source.fingerprint, config.max_image_pixels)
    cache = user_path(config.cache_dir, "config.data.cache_dir").resolve()
    folder = cache / "contents" / f"{config.name}-{stamp}"
    path = folder / "contents.json"
    if not path.exists():
        with exclusive(folder):
            if not path.exists():
                content, shapes = _look(source, config.max_image_pixels)
                found = {"content": content._asdict(), "shapes": shapes._asdict()}
                write_text(path, to_json(found))
    kept = read_json(path)
    return Content(**kept["content"]), Shapes(**kept["shapes"])


def _look(source: Source, max_pixels: int) -> tuple[Content, Shapes]:
    paths = [example.path for example in source.examples if example.path is not None]
    found, sizes = Content(), []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _CHUNK):
            # Once a colour is found, files whose header says enough are not decoded.
            look = partial(_content, max_pixels=max_pixels, look_for_colour=not found.has_colour)
            contents = pool.map(look, paths[start : start + _CHUNK])
            for one in itertools.chain.from_iterable(contents):
                found = _joined(found, one)
                sizes.append(sorted((one.height, one.width)))
    if not sizes:
        return found, Shapes()
    shorter, longer = np.array(sizes, np.float64).T
    return found, Shapes(
        ratio=float(np.median(longer / shorter)),
        shorter=float(np.median(shorter)),
        most_pixels=int((shorter * longer).max()),
    )


def _content(path: Path, *, max_pixels: int, look_for_colour: bool) -> list[Content]:
    try:
        return [content_of(path, max_pixels=max_pixels, look_for_colour=look_for_colour)]
    except BadImageError as error:
        error.raise_if_unread()
        return []  # the preparation names it


def _joined(first: Content, second: Content) -> Content:
    lowest = [c.lowest for c in (first, second) if c.is_sixteen_bit]
    return Content(
        has_colour=first.has_colour or second.has_colour,
        is_sixteen_bit=first.is_sixteen_bit or second.is_sixteen_bit,
        lowest=min(lowest, default=0),
        highest=max(first.highest, second.highest),
        high_bytes=max(first.high_bytes, second.high_bytes),
    )
