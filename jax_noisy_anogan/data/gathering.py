"""Images that a program holds, as a folder in the plain layout: links to files, PNGs of arrays."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jax_noisy_anogan.data.decode import Pixels, decode_array, decode_picture
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import write_bytes

OneImage = str | Path | np.ndarray | Image.Image
Images = str | Path | Sequence[OneImage] | np.ndarray
# These images are in memory already.
_ANY_SIZE = sys.maxsize


def gather(
    folder: Path,
    *,
    normal: Images,
    abnormal: Images = (),
    masks: Images | None = None,
    complete: bool = False,
) -> Path:
    """Arrange images below `folder` as `normal/`, `abnormal/` and `masks/`; return `folder`.

    Nothing is copied: folders and files become links. Arrays and images of Pillow become PNG files.
    The same images give the same tree, and what is there already is not written again; other images
    never take their place.

    Args:
      normal, abnormal: a folder, or images: paths, arrays (uint8 or uint16, `[h, w]` or
        `[h, w, c]`), images of Pillow.
      masks: where the defects of the abnormal images are: of a folder, a folder of files with the
        same names; of a list, one image for each, in their order. Files are white there, and arrays
        and images of Pillow above 0.
      complete: whether all images must be there already, as those of a run that has trained are.

    Raises:
      DataError: something is missing or no image, masks do not belong to the abnormal images, or
        `folder` holds other images.
    """
    if not isinstance(normal, str | Path) and not len(normal):
        raise DataError("normal holds no image: expected a folder or a list of images")
    if masks is not None:
        _check_masks(masks, abnormal)
    _place(folder / "normal", normal, complete)
    _place(folder / "abnormal", abnormal, complete)
    _place(folder / "masks", () if masks is None else masks, complete, are_masks=True)
    return folder


def _check_masks(masks: Images, abnormal: Images) -> None:
    if isinstance(masks, str | Path) and isinstance(abnormal, str | Path):
        return
    if isinstance(masks, str | Path) or isinstance(abnormal, str | Path):
        # Images of a list get new names, which masks in a folder do not have.
        raise DataError(
            "one of masks and abnormal is a folder, and the other a list: expected two folders, or "
            "two lists"
        )
    if len(masks) != len(abnormal):
        raise DataError(f"{len(masks)} masks of {len(abnormal)} abnormal images: expected one each")


def _place(target: Path, images: Images, complete: bool, *, are_masks: bool = False) -> None:
    """Put images into `target`, which is a link where they are a folder."""
    if isinstance(images, str | Path):
        source = Path(images).expanduser().resolve()
        if not source.is_dir():
            raise DataError(f"{images} is no folder: expected one, or a list of images")
        _link(target, source)
        return
    paths = [target / _name(image, number) for number, image in enumerate(images)]
    there = {path.name for path in target.iterdir()} if target.is_dir() else set()
    missing = {path.name for path in paths} - there
    if target.is_symlink() or len(there) + len(missing) > len(paths) or (complete and missing):
        raise _other_images(target)
    if paths:
        target.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, images, strict=True):
        _place_one(path, _white(image) if are_masks else image)


def _white(mask: OneImage) -> OneImage:
    """A mask with white where it is above 0; a file stays as it is."""
    if isinstance(mask, str | Path):
        return mask
    # Of 16 bits, too, the smallest value above 0 becomes white.
    pixels = Pixels(channels=3, max_pixels=_ANY_SIZE, white_level=1)
    if isinstance(mask, Image.Image):
        decoded = decode_picture(mask, pixels)
    else:
        decoded = decode_array(mask, pixels)
    return np.asarray(decoded.image.any(axis=-1))


def _name(image: OneImage, number: int) -> str:
    suffix = _source(image).suffix if isinstance(image, str | Path) else ".png"
    return f"{number:06d}{suffix}"


def _source(image: str | Path) -> Path:
    source = Path(image).expanduser().resolve()
    if not source.is_file():
        raise DataError(f"{image} is no file")
    return source


def _place_one(path: Path, image: OneImage) -> None:
    if isinstance(image, str | Path):
        _link(path, _source(image))
        return
    content = _png(image)
    if not path.exists():
        write_bytes(path, content)
    elif path.read_bytes() != content:
        raise _other_images(path)


def _png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    pixels = _pixels(image) if isinstance(image, Image.Image) else np.asarray(image)
    try:
        grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        Image.fromarray(np.ascontiguousarray(grey)).save(buffer, format="PNG")
    except (TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{type(image).__name__} is no image ({error}): expected uint8 or uint16 of shape "
            "[height, width] or [height, width, channels]"
        ) from error
    return buffer.getvalue()


def _pixels(picture: Image.Image) -> np.ndarray:
    """As a file of it would be read, but 16 bits stay as they are."""
    channels = 1 if Image.getmodebase(picture.mode) == "L" else 3
    decoded = decode_picture(picture, Pixels(channels=channels, max_pixels=_ANY_SIZE))
    if not picture.mode.startswith("I"):
        return decoded.image
    return np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)


def _link(path: Path, source: Path) -> None:
    if path.is_symlink() and path.resolve() == source:
        return
    if path.exists() or path.is_symlink():
        raise _other_images(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source)


def _other_images(path: Path) -> DataError:
    return DataError(f"{path} holds other images: remove it, or use another workdir")
