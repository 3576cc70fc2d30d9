"""One image in, eight-bit pixels out: a file, a Pillow image or an array, by one set of rules.

Every unusable image is a `BadImageError` with a reason. Whatever a file holds, decoding allocates
at most `max_pixels` pixels: the size in the header is checked first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError, _imaging

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.examples import BadImageError, Picture

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp"),
        *(".gif", ".pbm", ".pgm", ".ppm", ".pnm"),
    )
)
SMALLEST_SIDE = 4
# What Pillow may take a file for, whatever its name says; its parsers of other kinds start programs
# (PostScript) or are hardly ever used.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_GREY = ("1", "L", "LA", "La", *_SIXTEEN_BIT)
_COLOURS = ("P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
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


class Pixels(NamedTuple):
    """How pixels are read; a run keeps these settings, so that scoring reads as training did.

    Attributes:
      channels: 1 (grey) or 3 (RGB).
      max_pixels: larger images are refused.
      black_level, white_level: values of 16-bit images that become 0 and 255. What lies beyond
        them becomes 0 or 255 too.
    """

    channels: int
    max_pixels: int
    black_level: int = 0
    white_level: int = 65_535

    @classmethod
    def of(cls, config: DataConfig) -> Pixels:
        """As a config asks for; what it leaves to be measured is grey and of full range."""
        return cls(
            channels=config.channels or 1,
            max_pixels=config.max_image_pixels,
            black_level=config.black_level,
            white_level=config.white_level or 65_535,
        )


def decode_image(path: Path, pixels: Pixels) -> Picture:
    """Decode an image file.

    EXIF rotation is applied; transparent pixels lie over black; palettes, CMYK and the like become
    RGB first.

    Raises:
      BadImageError: missing, unreadable, damaged, smaller than 4 pixels on a side, above
        `max_pixels`, floating point, or more than one frame.
    """
    with _opened(path, pixels.max_pixels) as picture:
        return _decoded(str(path), picture, pixels)


def decode_picture(picture: Image.Image, pixels: Pixels) -> Picture:
    """Decode an image that Pillow has opened or made, as `decode_image` decodes its file."""
    name = str(getattr(picture, "filename", "")) or f"an image of Pillow, mode {picture.mode}"
    with _pillow_alone(), _errors_of(name):
        _check_header(name, picture, pixels.max_pixels)
        if isinstance(picture, ImageFile.ImageFile):
            filename, picture.filename = picture.filename, ""  # why: see `_opened`
            try:
                picture.load()
            finally:
                picture.filename = filename
        return _decoded(name, picture, pixels)


def decode_array(array: np.ndarray, pixels: Pixels) -> Picture:
    """Decode the pixels of one image, as `decode_image` decodes a file of them.

    Args:
      array: `[height, width]` or `[height, width, channels]` with 1 (grey), 3 (RGB) or 4 (RGBA)
        channels of uint8; uint16 and bool are taken with 1 channel.
    """
    grey = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not colour and not (grey.ndim == 2 and grey.dtype in (np.uint8, np.uint16, np.bool_)):
        raise BadImageError(
            "image array",
            f"{array.dtype} of shape {array.shape}: expected uint8 of shape [height, width] or "
            "[height, width, channels] with 1, 3 or 4 channels, or uint16 or bool with one",
        )
    name = f"image array of shape {array.shape}"
    if min(grey.shape[:2]) < SMALLEST_SIDE:
        raise BadImageError(name, f"expected at least {SMALLEST_SIDE} pixels on a side")
    return decode_picture(Image.fromarray(np.ascontiguousarray(grey)), pixels)


def _decoded(name: str, picture: Image.Image, pixels: Pixels) -> Picture:
    mode, beyond = picture.mode, False
    upright = ImageOps.exif_transpose(picture)
    if mode in _SIXTEEN_BIT:
        values = _sixteen_bits(name, upright)
        beyond = bool(values.max() > pixels.white_level)
        image = Image.fromarray(_scaled(values, pixels.black_level, pixels.white_level))
    else:
        image = _eight_bits(name, upright)
    array = np.asarray(image.convert("L" if pixels.channels == 1 else "RGB"))
    return Picture(array.reshape(*array.shape[:2], pixels.channels), mode=mode, beyond_white=beyond)


def _scaled(
    values: Int[np.ndarray, "height width"], black: int, white: int
) -> UInt8[np.ndarray, "height width"]:
    """Values from `black` to `white` as 0 to 255, rounded to the nearest (halves upwards)."""
    room = white - black
    above = np.clip(values - black, 0, room)
    return ((above * 510 + room) // (2 * room)).astype(np.uint8)


class Content(NamedTuple):
    """What an image holds, whatever its format could hold.

    Attributes:
      has_colour: whether red, green and blue differ anywhere.
      lowest, highest: values of a 16-bit image; 0 of others.
      is_sixteen_bit: whether these two mean anything.
      high_bytes: largest upper byte of an image with 16 bits per channel and several channels, of
        which Pillow keeps the upper bytes only; 0 of others.
      height, width: in pixels, after EXIF rotation; 0 of several images.
    """

    has_colour: bool = False
    is_sixteen_bit: bool = False
    lowest: int = 0
    highest: int = 0
    high_bytes: int = 0
    height: int = 0
    width: int = 0


def content_of(path: Path, *, max_pixels: int, look_for_colour: bool = True) -> Content:
    """Look at what an image file holds; only where the header leaves that open are pixels decoded.

    Raises:
      BadImageError: see `decode_image`.
    """
    with _opened(path, max_pixels, load=False) as picture:
        height, width = picture.size if _lies_on_its_side(picture) else picture.size[::-1]
        content = Content(height=height, width=width)
        sixteen = _has_sixteen_bit_channels(picture)
        if picture.mode in _SIXTEEN_BIT:
            values = _sixteen_bits(str(path), picture)
            return content._replace(
                is_sixteen_bit=True, lowest=int(values.min()), highest=int(values.max())
            )
        if picture.mode in _GREY and not sixteen:
            return content
        if not (look_for_colour or sixteen):
            return content
        colours = np.asarray(_eight_bits(str(path), picture).convert("RGB"))
        return content._replace(
            has_colour=bool((colours != colours[..., :1]).any()),
            high_bytes=int(colours.max()) if sixteen else 0,
        )


def _lies_on_its_side(picture: Image.Image) -> bool:
    """Whether EXIF rotation exchanges height and width."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return False  # it may stand behind the pixels, which all would have to be decoded for it
    return picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def _has_sixteen_bit_channels(picture: Image.Image) -> bool:
    """Whether an image that is not loaded yet has several channels of 16 bits each."""
    if picture.mode in _SIXTEEN_BIT:
        return False
    return any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def decode_mask(path: Path, *, max_pixels: int) -> Bool[np.ndarray, "height width"]:
    """Decode a mask file: True where it is at least half white.

    Raises:
      BadImageError: as `decode_image`, or no value reaches half although some are not zero (class
        numbers instead of white, of which grey of 8 bits would keep nothing).
    """
    with _opened(path, max_pixels) as picture:
        is_deep = picture.mode in _SIXTEEN_BIT
        upright = ImageOps.exif_transpose(picture)
        if is_deep:
            values, white = _sixteen_bits(str(path), upright), 65_535
            mask, highest = values > white // 2, values.max()
        else:
            image, white = _eight_bits(str(path), upright), 255
            mask, highest = np.asarray(image.convert("L")) > white // 2, np.asarray(image).max()
    if highest and not mask.any():
        raise BadImageError(
            str(path),
            f"a mask without a white pixel, values reach {highest} of {white}: marked pixels must "
            "be white",
        )
    return mask


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int, *, load: bool = True) -> Iterator[Image.Image]:
    # Pillow maps a file that it opens itself into memory, where a TIFF that EXIF rotation lays on
    # its side is read with height for width.
    with _pillow_alone(), _errors_of(str(path)), open(path, "rb") as file:
        with Image.open(file, formats=FORMATS) as picture:
            _check_header(str(path), picture, max_pixels)
            picture.verify()
        # A verified image cannot be decoded: only PNG reads it through, to check the sums that
        # decoding ignores.
        with Image.open(file, formats=FORMATS) as picture:
            _check_header(str(path), picture, max_pixels)  # the file may be another by now
            if load:
                picture.load()
            yield picture


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as a `BadImageError` with the reason."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(name, "not an image, whatever its name says") from error
    except FileNotFoundError as error:
        raise BadImageError(name, "does not exist") from error
    except OSError as error:
        # Pillow's own, or a place in the file that no file can have.
        if error.errno in (None, errno.EINVAL):
            raise BadImageError(name, _damage(error)) from error
        raise BadImageError(name, f"cannot be read: {error.strerror}") from error
    except _DECODING_ERRORS as error:
        raise BadImageError(name, _damage(error)) from error


def _damage(error: Exception) -> str:
    return f"damaged or cut off ({' '.join(str(error).split()) or type(error).__name__})"


_decoding = 0
_decoding_lock = threading.Lock()
_before = contextlib.ExitStack()


@contextlib.contextmanager
def _pillow_alone() -> Iterator[None]:
    """Pillow without its own limit, which `_check_header` replaces, and without anything printed.

    These are settings of the whole process, while several threads decode: the first one to come
    changes them, the last one to go puts them back.
    """
    global _decoding
    with _decoding_lock:
        if not _decoding:
            _before.enter_context(warnings.catch_warnings())
            _before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
            _before.enter_context(_libtiff_silent())
        _decoding += 1
    try:
        yield
    finally:
        with _decoding_lock:
            _decoding -= 1
            if not _decoding:
                _before.close()


@contextlib.contextmanager
def _libtiff_silent() -> Iterator[None]:
    """Libtiff without its handlers, which write to descriptor 2, piece by piece, past Python.

    Pillow raises an error for what they would print. Where libtiff is built into Pillow out of
    reach, nothing changes.
    """
    pillow = ctypes.CDLL(_imaging.__file__)  # finds what it is linked with, too
    with contextlib.ExitStack() as before:
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            with contextlib.suppress(AttributeError):
                set_handler = pillow[name]
                set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
                before.callback(set_handler, set_handler(None))
        yield


def _check_header(name: str, picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImageError(
            name,
            f"{width} x {height}: more than data.max_image_pixels = {max_pixels} pixels (raise it "
            f"with --config.data.max_image_pixels={width * height}, for a run with --set "
            f"data.max_image_pixels={width * height})",
        )
    if min(width, height) < SMALLEST_SIDE:
        raise BadImageError(
            name, f"{width} x {height} pixels: at least {SMALLEST_SIDE} on a side are needed"
        )
    # Cameras write a preview as the second frame of an MPO.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        # To count those of a TIFF, Pillow follows a chain that a hostile file makes endless.
        count = "several" if picture.format == "TIFF" else getattr(picture, "n_frames", 1)
        raise BadImageError(name, f"{count} frames: save each as its own file")


def _sixteen_bits(name: str, picture: Image.Image) -> Int[np.ndarray, "height width"]:
    values = np.asarray(picture).astype(np.int64)
    largest = np.max(values)
    if np.min(values) < 0 or largest > 65_535:
        raise BadImageError(name, f"32-bit values to {largest}: save as 8 or 16 bits per channel")
    return values


def _eight_bits(name: str, picture: Image.Image) -> Image.Image:
    """An image of at most 8 bits per channel as grey or RGB."""
    if picture.mode == "F":
        raise BadImageError(name, "floating-point values: save as 8 or 16 bits per channel")
    if picture.mode not in (*_GREY, *_COLOURS):
        raise BadImageError(name, f"colours of the kind {picture.mode}: save as grey or RGB")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
    return picture.convert("RGB") if picture.mode not in ("1", "L") else picture
