"""Arrays to pictures: sample grids, labelled rows (Fig. 4 and 6), heatmaps, histograms (Fig. 5).

Images come in and go out as uint8; nothing here touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from jax_noisy_anogan.runtime.files import written

DIFFERENCES = "inferno"
HEAT = "turbo"
CONTOUR = (255, 255, 255)
# Longest side of a thumbnail in pixels.
THUMBNAIL = 240
NORMAL_COLOUR, ABNORMAL_COLOUR = "#2f6fb5", "#d1495b"
_OPACITY = 0.75
_PAPER = 255
# Pixels that are blended at once.
_BAND = 2**20
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

Pictures = UInt8[np.ndarray, "n height width channels"]
Picture = UInt8[np.ndarray, "height width channels"]
ColourPicture = UInt8[np.ndarray, "height width 3"]
Map = Float[np.ndarray, "height width"]


def image_grid(images: Pictures, columns: int, *, border: int = 2, scale: int = 1) -> Picture:
    """Images side by side, row after row, on white; each pixel becomes `scale` x `scale`.

    The last row is filled up with white.

    Raises:
      ValueError: there is no image, or `columns` or `scale` is below 1.
    """
    if len(images) == 0 or columns < 1 or scale < 1:
        raise ValueError(
            f"{len(images)} images, columns={columns}, scale={scale}: expected at least 1 of each"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, channels = images.shape
    cells = np.full(
        (rows * columns, height + border, width + border, channels), _PAPER, images.dtype
    )
    cells[: len(images), border:, border:] = images
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
    return np.pad(grid, ((0, border), (0, border), (0, 0)), constant_values=_PAPER)


def rows_of_images(rows: Sequence[Pictures], labels: Sequence[str]) -> ColourPicture:
    """One row of images per label, the label at its left: Fig. 4 and 6 of the paper.

    Small images are enlarged by a whole factor to at least 64 pixels. Grey and RGB rows may be
    mixed; all rows hold equally many images of one size.

    Raises:
      ValueError: rows and labels differ in number, or the rows in their images' number or size.
    """
    sizes = {row.shape[:3] for row in rows}
    if len(rows) != len(labels) or len(sizes) != 1:
        raise ValueError(
            f"{len(rows)} rows of sizes {sorted(sizes)} for {len(labels)} labels: expected one "
            "label per row and equal sizes"
        )
    ((_, height, width),) = sizes
    scale = max(1, -(-64 // max(height, width)))
    strips = [image_grid(as_rgb(row), len(row), border=2, scale=scale) for row in rows]
    pictures = np.concatenate(strips, axis=0)
    font = ImageFont.truetype(str(_FONT), int(np.clip(height * scale / 6, 13, 40)))
    margin = int(max(font.getlength(label) for label in labels)) + 2 * int(font.size)
    sheet = Image.new("RGB", (margin + pictures.shape[1], pictures.shape[0]), "white")
    sheet.paste(Image.fromarray(pictures), (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for number, label in enumerate(labels):
        middle = (number + 0.5) * strips[0].shape[0]
        draw.text((margin - font.size // 2, middle), label, fill="black", font=font, anchor="rm")
    return np.asarray(sheet)


def on_paper(picture: Picture, height: int, width: int) -> Picture:
    """A picture with white at its right and below, up to this size."""
    missing = (height - picture.shape[0], width - picture.shape[1])
    margins = [*((0, more) for more in missing), (0, 0)]
    return np.pad(picture, margins, constant_values=_PAPER)


def as_rgb(images: UInt8[np.ndarray, "*batch channels"]) -> UInt8[np.ndarray, "*batch 3"]:
    """Grey images with their one channel three times; RGB images as they are."""
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def colour(
    values: Float[np.ndarray, "*shape"], *, low: float, high: float, name: str
) -> UInt8[np.ndarray, "*shape 3"]:
    """A map through matplotlib's colour map `name`; values outside `low` to `high` are clipped."""
    table = (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return table[(_relative(values, low, high) * 255).round().astype(np.uint8)]


def difference_image(
    difference: Float[np.ndarray, "*batch height width"], high: float
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """The pixel difference in colour: black where it is 0, nearly white from `high` on.

    With one `high` for all images they can be compared; images in [-1, 1] differ by at most 2.
    """
    return colour(difference, low=0.0, high=high, name=DIFFERENCES)


def overlay(
    image: Picture, map: Map, *, low: float, high: float, contour_at: float | None = None
) -> ColourPicture:
    """A heatmap over an image of the same size; where it is low or nan, the image shows through.

    Args:
      image: grey or RGB.
      low, high: the map's values that become transparent and strongest; the same ones for all
        images that are to be compared.
      contour_at: outline the regions above this value in white; None draws no contour.

    Raises:
      ValueError: image and map differ in size.
    """
    if image.shape[:2] != map.shape:
        raise ValueError(f"an image of {image.shape[:2]} under a map of {map.shape}: same size")
    blended = np.empty((*map.shape, 3), np.uint8)
    rows = max(1, _BAND // map.shape[1])
    for band in (slice(start, start + rows) for start in range(0, len(map), rows)):
        values = np.nan_to_num(map[band], nan=low)
        opacity = _OPACITY * _relative(values, low, high)[..., None]
        heat = colour(values, low=low, high=high, name=HEAT)
        blended[band] = ((1 - opacity) * as_rgb(image[band]) + opacity * heat).round()
    return blended if contour_at is None else outlined(blended, map > contour_at)


def outlined(
    image: Picture,
    mask: Bool[np.ndarray, "height width"],
    *,
    line: tuple[int, int, int] = CONTOUR,
    width: int = 0,
) -> ColourPicture:
    """The image with the regions of `mask` outlined, just outside so that they stay visible.

    Args:
      width: of the line in pixels; 0 chooses it by the image's size.
    """
    width = width or max(1, round(max(mask.shape) / 256))
    around = ndimage.maximum_filter(mask, size=2 * width + 1)
    picture = as_rgb(image).copy()
    picture[around & ~mask] = line
    return picture


def difference_histogram_figure(
    differences_normal: Float[np.ndarray, "*normal"],
    differences_abnormal: Float[np.ndarray, "*abnormal"],
) -> Figure:
    """Fig. 5: how the pixel difference is distributed over the pixels of each class's images.

    Args:
      differences_normal, differences_abnormal: of every pixel, in [0, 2]; one of them may be empty.

    Returns:
      Shares of pixels on a logarithmic axis, so that the few pixels of a defect can be seen.
    """
    both = (differences_normal, differences_abnormal)
    high = max((float(d.max()) for d in both if d.size), default=0.0) or 1.0
    edges = np.linspace(0.0, high, 61)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, differences, line in zip(
        ("normal", "abnormal"), both, (NORMAL_COLOUR, ABNORMAL_COLOUR), strict=True
    ):
        if not differences.size:
            continue
        share = np.histogram(differences, edges)[0] / differences.size
        label = f"{name} (mean {differences.mean():.3f})"
        axes.stairs(share, edges, color=line, linewidth=1.6, label=label)
        axes.stairs(share, edges, color=line, alpha=0.15, fill=True)
    axes.set_yscale("log")
    axes.set_xlabel("pixel difference |x − G(z)|")
    axes.set_ylabel("share of pixels")
    axes.set_xlim(0.0, high)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_png(path: Path, array: UInt8[np.ndarray, "height width *channels"]) -> None:
    """Write a grey (one or no channel) or RGB picture, losslessly."""
    picture = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    with written(path) as file:
        picture.save(file, format="PNG")


def save_thumbnail(path: Path, picture: Picture) -> None:
    """Write a picture as JPEG, no side longer than 240 pixels."""
    small = Image.fromarray(as_rgb(picture))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    with written(path) as file:
        small.save(file, format="JPEG", quality=85)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, with 120 pixels an inch."""
    with written(path) as file:
        figure.savefig(file, format="png", dpi=120)


def save_float_tiff(path: Path, map: Map) -> None:
    """Write a map as one 32-bit float per pixel."""
    with written(path) as file:
        Image.fromarray(np.asarray(map, np.float32)).save(
            file, format="TIFF", compression="tiff_adobe_deflate"
        )


def _relative(
    values: Float[np.ndarray, "*shape"], low: float, high: float
) -> Float[np.ndarray, "*shape"]:
    if not low < high:
        raise ValueError(f"low={low}, high={high}: expected low below high")
    return np.clip((values - low) / (high - low), 0.0, 1.0)
