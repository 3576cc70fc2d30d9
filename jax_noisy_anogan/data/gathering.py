"""Images that a program holds, as a folder in the plain layout: links to files, PNGs of arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import write_bytes

OneImage = str | Path | np.ndarray | Image.Image
Images = str | Path | Sequence[OneImage] | np.ndarray


def gather(
    folder: Path, *, normal: Images, abnormal: Images = (), masks: Images | None = None
) -> Path:
    """Arrange images below `folder` as `normal/`, `abnormal/` and `masks/`; return `folder`.

    Nothing is copied: folders and files become links. Arrays and images of Pillow become PNG files.
    The same images give the same tree, and what is there already is not written again; other images
    never take their place.

    Args:
      normal, abnormal: a folder, or images: paths, arrays (uint8 or uint16, `[h, w]` or
        `[h, w, c]`), images of Pillow.
      masks: of the abnormal images: a folder of files with their names, or one image for each of
        them, in their order; above 0 is defective.

    Raises:
      DataError: something is missing or no image, masks and abnormal images differ in number, or
        `folder` holds other images.
    """
    names = _place(folder / "normal", normal)
    if not names and not isinstance(normal, str | Path):
        raise DataError("normal holds no image: expected a folder or a list of images")
    names = _place(folder / "abnormal", abnormal)
    stems = [Path(name).stem for name in names]
    if not (masks is None or isinstance(masks, str | Path) or len(masks) == len(stems)):
        raise DataError(
            f"{len(masks)} masks of {len(stems)} abnormal images in a list: expected one each"
        )
    _place(folder / "masks", () if masks is None else masks, stems)
    return folder


def _place(target: Path, images: Images, stems: Sequence[str] = ()) -> list[str]:
    """Put images into `target`; returns the names of files, none where it is a link to a folder."""
    if isinstance(images, str | Path):
        source = Path(images).expanduser().resolve()
        if not source.is_dir():
            raise DataError(f"{images} is no folder: expected one, or a list of images")
        _link(target, source)
        return []
    if target.is_symlink():
        raise _other_images(target)
    if len(images):
        target.mkdir(parents=True, exist_ok=True)
    names = [
        _place_one(target, image, stems[number] if stems else f"{number:06d}")
        for number, image in enumerate(images)
    ]
    if target.is_dir() and {path.name for path in target.iterdir()} != set(names):
        raise _other_images(target)
    return names


def _place_one(target: Path, image: OneImage, stem: str) -> str:
    if isinstance(image, str | Path):
        source = Path(image).expanduser().resolve()
        if not source.is_file():
            raise DataError(f"{image} is no file")
        path = target / f"{stem}{source.suffix}"
        _link(path, source)
        return path.name
    path = target / f"{stem}.png"
    content = _png(image)
    if not path.exists():
        write_bytes(path, content)
    elif path.read_bytes() != content:
        raise _other_images(path)
    return path.name


def _png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        if not isinstance(image, Image.Image):
            pixels = np.asarray(image)
            grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
            image = Image.fromarray(np.ascontiguousarray(grey))
        image.save(buffer, format="PNG")
    except (TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{type(image).__name__} is no image ({error}): expected uint8 or uint16 of shape "
            "[height, width] or [height, width, channels]"
        ) from error
    return buffer.getvalue()


def _link(path: Path, source: Path) -> None:
    if path.is_symlink() and path.resolve() == source:
        return
    if path.exists() or path.is_symlink():
        raise _other_images(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source)


def _other_images(path: Path) -> DataError:
    return DataError(f"{path} holds other images: remove it, or use another workdir")
