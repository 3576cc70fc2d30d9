"""One image file in, eight-bit pixels out; every unusable file is a `BadImageError` with a reason.

Whatever a file holds, decoding allocates at most `max_pixels` pixels: the size in the header is
checked first.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageOps, UnidentifiedImageError

from jax_noisy_anogan.data.examples import BadImageError, Picture

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"))
SMALLEST_SIDE = 4
# What Pillow may take a file for, whatever its name says; its parsers of other kinds start programs
# (PostScript) or are hardly ever used. GIF is among them for the sake of its error.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What Pillow's parsers raise on damaged files, beside its own errors (met with mutated files).
_DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


# What Pillow logs as an error, it also raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_image(path: Path, *, channels: int, max_pixels: int) -> Picture:
    """Decode an image file to 0..255 in 1 (grey) or 3 (RGB) channels.

    EXIF rotation is applied; transparent pixels lie over black; 16-bit values are divided by 257;
    palettes, CMYK and the like become RGB first.

    Raises:
      BadImageError: unreadable, damaged, smaller than 4 pixels on a side, above `max_pixels`,
        floating point, or more than one frame.
    """
    with _opened(path, max_pixels) as picture:
        mode = picture.mode
        upright = ImageOps.exif_transpose(picture)
        image = _to_eight_bits(path, upright).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image)
    return Picture(pixels.reshape(*pixels.shape[:2], channels), mode=mode)


def decode_mask(path: Path, *, max_pixels: int) -> Bool[np.ndarray, "height width"]:
    """Decode a mask file: True where it is at least half white.

    Raises:
      BadImageError: as `decode_image`, or no value reaches half although some are not zero (class
        numbers instead of white).
    """
    with _opened(path, max_pixels) as picture:
        values = np.asarray(_to_eight_bits(path, ImageOps.exif_transpose(picture)).convert("L"))
    mask = values >= 128
    if values.any() and not mask.any():
        raise BadImageError(
            str(path), f"mask reaches only {values.max()} of 255: marked pixels must be white"
        )
    return mask


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    with _pillow_alone():
        try:
            with Image.open(path, formats=FORMATS) as picture:
                _check_header(path, picture, max_pixels)
                picture.verify()
            # Pillow closes a verified file: only PNG reads it through, to check the sums that
            # decoding ignores.
            with Image.open(path, formats=FORMATS) as picture:
                _check_header(path, picture, max_pixels)  # the file may be another by now
                picture.load()
                yield picture
        except BadImageError:
            raise
        except UnidentifiedImageError as error:
            raise BadImageError(str(path), "not an image, whatever its name says") from error
        except _DECODING_ERRORS as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise BadImageError(str(path), f"damaged or cut off ({text})") from error


_decoding = 0
_decoding_lock = threading.Lock()
_before = contextlib.ExitStack()


@contextlib.contextmanager
def _pillow_alone() -> Iterator[None]:
    """Pillow without its own limit, which `_check_header` replaces, and without its warnings.

    Both are settings of the whole process, while several threads decode: the first one to come
    changes them, the last one to go puts them back.
    """
    global _decoding
    with _decoding_lock:
        if not _decoding:
            _before.enter_context(warnings.catch_warnings())
            _before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
        _decoding += 1
    try:
        yield
    finally:
        with _decoding_lock:
            _decoding -= 1
            if not _decoding:
                _before.close()


def _check_header(path: Path, picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImageError(
            str(path),
            f"{width} x {height}: more than config.data.max_image_pixels = {max_pixels} pixels",
        )
    if min(width, height) < SMALLEST_SIDE:
        raise BadImageError(
            str(path), f"{width} x {height} pixels: at least {SMALLEST_SIDE} on a side are needed"
        )
    # Cameras write a preview as the second frame of an MPO.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        # To count those of a TIFF, Pillow follows a chain that a hostile file makes endless.
        count = "several" if picture.format == "TIFF" else getattr(picture, "n_frames", 1)
        raise BadImageError(str(path), f"{count} frames: save each as its own file")


def _to_eight_bits(path: Path, picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise BadImageError(
                str(path), f"32-bit values to {values.max()}: save as 8 or 16 bits per channel"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise BadImageError(str(path), "floating-point values: save as 8 or 16 bits per channel")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
    return picture.convert("RGB") if picture.mode not in ("1", "L") else picture
