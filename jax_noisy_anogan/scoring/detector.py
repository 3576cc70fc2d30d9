"""A trained run as an object that scores images: `jax_noisy_anogan.load(workdir).score(images)`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Bool, Float, UInt8

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data.dataset import image_resolution
from jax_noisy_anogan.data.decode import Pixels, decode_array, decode_image, decode_picture
from jax_noisy_anogan.data.examples import Picture
from jax_noisy_anogan.data.frame import Frame
from jax_noisy_anogan.data.mnist import pad_to_32
from jax_noisy_anogan.data.preprocess import prepared
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime.files import user_path
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import (
    DECISION,
    Calibration,
    CalibrationError,
    require_anomaly,
    stamp,
)
from jax_noisy_anogan.scoring.maps import MapCalibration, load_maps
from jax_noisy_anogan.scoring.regions import Box, Region, Regions, find_regions
from jax_noisy_anogan.scoring.scorer import ImageResult, Scorer, heat_term, locate
from jax_noisy_anogan.scoring.thresholds import decide
from jax_noisy_anogan.training.state import load_model

# In larger photographs regions are looked for in blocks of pixels, and pictures are smaller.
MOST_PIXELS = 2**24
# Of another camera's files; everything else was there when thresholds were set.
_CHANGEABLE = ("data.max_image_pixels", "data.black_level", "data.white_level")

Image = UInt8[np.ndarray, "height width channels"]
OneImage = str | Path | PIL.Image.Image | np.ndarray


class Prepared(NamedTuple):
    """A photograph as the networks see it.

    Attributes:
      image: the picture, brought to the form that the networks were trained with.
      frame: which section of the photograph it shows.
    """

    image: Image
    frame: Frame


class Detection(NamedTuple):
    """What is found in one photograph. Places are in its own pixels, after EXIF rotation.

    Where `data.fit` is "crop", nothing is known of what was cut away: the map is nan there, and no
    region reaches into it. Where it is "pad", the map ends with the photograph, while `local` is
    the maximum of `heat`, the padding included.

    Attributes:
      score: the paper's L' (Eq. 24) at z_hat.
      calibrated: the calibrated score, a logit.
      anomaly: the calibrated score from 0 to 1; above 0.5 where `is_abnormal` at the run's
        threshold.
      is_abnormal: the decision at the run's threshold, or at the one given instead.
      terms: every raw term by name, `score` included.
      image: the picture of it that the networks saw.
      reconstruction: G(z_hat), in the pixels of `image`.
      heat: standard deviations above what is usual for normal images, in the pixels of `image`.
      frame: the photograph's size, and which section of it `image` shows.
      map_threshold: as `Detector.map_threshold`.
      regions: where `map` exceeds `map_threshold`, the largest first; the first 100 of them. In a
        photograph of more than 16 million pixels they are looked for in blocks of pixels, of which
        their boxes and areas are multiples.
      region_count: of all regions.
    """

    score: float
    calibrated: float
    anomaly: float
    is_abnormal: bool
    terms: dict[str, float]
    image: Image
    reconstruction: Image
    heat: Float[np.ndarray, "rows columns"]
    frame: Frame
    map_threshold: float
    regions: tuple[Region, ...]
    region_count: int

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """`heat` in pixels of the photograph, between its own pixels linear; made at each call."""
        return self.frame.place(self.heat)

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Where `map` exceeds `map_threshold`."""
        return self.map > self.map_threshold

    @property
    def box(self) -> Box | None:
        """Around the largest region; None if there is none."""
        return self.regions[0].box if self.regions else None


class Detector:
    """Scores images with a trained model; make one with `load`.

    Attributes:
      config: of the run.
      calibration: thresholds and weights.
      map_threshold: maps above it are shown as defective; it is the threshold of the term that is
        the map's highest value, `local` or `memory`.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        calibration: Calibration,
        maps: MapCalibration,
        memory: memory_lib.Memory | None = None,
        *,
        mesh: Mesh | None = None,
    ):
        self.config, self.calibration = config, calibration
        self.map_threshold = calibration.thresholds[heat_term(config.score)].quantile
        self._maps, self._memory = maps, memory
        self._scorer = Scorer(model, config, mesh, memory)
        self._model = self._scorer.model

    @property
    def resolution(self) -> int:
        """Side of the images that are searched; others are brought to it first."""
        return image_resolution(self.config.data, self.config.growth.resolution)

    def score(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        threshold: float = DECISION,
    ) -> list[Detection]:
        """Search, score and judge images.

        Args:
          images: one image or several, of any size: paths of image files, images of Pillow, or
            arrays: uint8 (0..255), uint16 or bool, `[h, w]` or `[h, w, channels]` with 1 (grey),
            3 (RGB) or 4 (RGBA) channels, or many of one size as `[n, h, w]` or `[n, h, w, c]`.
          threshold: the anomaly above which an image is abnormal; 0.5 is the run's threshold.

        Returns:
          One detection per image, also of a single one.

        Raises:
          BadImageError: an image cannot be used; names a file.
          DataError: `images` is neither one image nor several.
          ConfigError: the threshold is not from 0 to 1.
        """
        require_anomaly(threshold, "threshold")
        return list(self.stream(map(self.prepare, _several(images)), threshold=threshold))

    def prepare(self, image: OneImage) -> Prepared:
        """Read a photograph and bring it to the form that the networks were trained with.

        Raises:
          BadImageError: it cannot be used.
        """
        data = self.config.data
        picture = _decoded(image, Pixels.of(data))
        if picture.beyond_white:
            logging.log_first_n(
                logging.WARNING,
                "values above data.white_level = %d, which the run's own images never reach, are "
                "taken for white; the first image of this kind: %s",
                1,
                data.white_level,
                image if isinstance(image, str | Path) else "not a file",
            )
        pixels = picture.image
        height, width = pixels.shape[:2]
        frame = Frame.of(height, width, data.fit)
        if data.name in ("mnist", "mnist5k") and pixels.shape == (28, 28, 1):
            pixels = pad_to_32(pixels[..., 0])
            frame = Frame(28, 28, top=-2, left=-2, rows=32, columns=32)
        return Prepared(prepared(pixels, self.resolution, data), frame)

    def stream(
        self,
        images: Iterable[Prepared],
        *,
        threshold: float = DECISION,
    ) -> Iterator[Detection]:
        """Score any number of prepared photographs in bounded memory, in their order.

        Args:
          images: what `prepare` returns.
          threshold: the anomaly above which an image is abnormal; 0.5 is the run's threshold.
        """
        require_anomaly(threshold, "threshold")
        held: deque[Prepared] = deque()
        measured: deque[Prepared] = deque()

        def pictures() -> Iterator[Image]:
            for shown in images:
                held.append(shown)
                yield shown.image

        def found() -> Iterator[tuple[Image, np.ndarray]]:
            for searched_tiles in self._scorer.search(pictures()):
                measured.append(held.popleft())
                yield measured[-1].image, searched_tiles.latents

        for result in self._scorer.measure(found()):
            yield self._detection(measured.popleft(), result, threshold)

    def _detection(self, shown: Prepared, result: ImageResult, threshold: float) -> Detection:
        usual = None if self._memory is None else self._memory.usual
        terms, heat = locate(result, self._maps, usual, self.config.score)
        regions = _regions(heat, shown.frame, self.map_threshold)
        row = {name: np.array([value]) for name, value in terms.items()}
        calibrated = self.calibration.calibrated(row)
        anomaly = self.calibration.to_anomaly(calibrated)
        return Detection(
            score=terms["score"],
            calibrated=float(calibrated[0]),
            anomaly=float(anomaly[0]),
            is_abnormal=bool(decide(anomaly, threshold)[0]),
            terms=terms,
            image=shown.image,
            reconstruction=result.reconstruction,
            heat=heat,
            frame=shown.frame,
            map_threshold=self.map_threshold,
            regions=regions.largest,
            region_count=regions.total,
        )


def load(
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    changes: Sequence[str] = (),
    calibration: str | Path | None = None,
) -> Detector:
    """The detector of a run that `jax_noisy_anogan.train` has finished.

    Args:
      workdir: the run's folder.
      mesh: devices to use; all of this process by default.
      changes: settings of the run that are changed, as in "data.max_image_pixels=200000000".
      calibration: a folder that `test --recalibrate` has written, whose thresholds judge instead.

    Raises:
      ConfigError, CheckpointError, CalibrationError: the folder is not a finished run, or a change
        needs other thresholds; says why.
    """
    folder = user_path(workdir, "workdir")
    for change in changes:
        if change.removeprefix("config.").partition("=")[0] not in _CHANGEABLE:
            raise ConfigError(
                f"{change}: the thresholds of a run hold for its own settings, of which "
                f"{', '.join(_CHANGEABLE)} may be changed here, and those of search and scores by "
                "`python -m jax_noisy_anogan.evaluate --set`"
            )
    config = config_lib.changed(config_lib.load(folder), changes)
    source = folder if calibration is None else user_path(calibration, "calibration")
    found = Calibration.load(source / "calibration.json")
    maps = load_maps(source / "map_calibration.npz")
    model = load_model(folder, config)
    if calibration is not None:
        _require_made_for(model, config, source)
    memory = memory_lib.of_run(source, config.score)
    return Detector(model, config, found, maps, memory, mesh=mesh)


def _require_made_for(model: Model, config: Config, folder: Path) -> None:
    path = folder / "split.json"
    try:
        made_for = json.loads(path.read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalibrationError(
            f"{path} cannot be read, and says which run the calibration was made for: name a "
            "folder that `jax-noisy-anogan test --recalibrate` has written"
        ) from error
    if made_for != stamp(model, config):
        raise CalibrationError(
            f"{folder} is a calibration of another run, or of other settings of its search and "
            "scores: use `test --recalibrate` with this one"
        )


def _regions(heat: np.ndarray, frame: Frame, threshold: float) -> Regions:
    """The regions of a photograph, in blocks of pixels where it is large."""
    step = frame.step(MOST_PIXELS)
    found = find_regions(frame.place(heat, step=step), threshold)
    return found.scaled(step, frame.height, frame.width)


def _several(images: OneImage | Iterable[OneImage]) -> Iterable[OneImage]:
    """The images, also where only one is given."""
    if isinstance(images, str | Path | PIL.Image.Image):
        return [images]
    shape = getattr(images, "shape", None)
    if shape is None:
        if not isinstance(images, Iterable):
            raise DataError(f"{type(images).__name__} is no image: expected one image, or several")
        return images
    array = np.asarray(images)
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4)):
        return [array]
    if array.ndim == 3 and shape[0] in (3, 4):
        raise DataError(
            f"an array of shape {shape} may be one image with its channels first or {shape[0]} "
            "grey images: expected channels last, or a list of images"
        )
    if array.ndim not in (3, 4):
        raise DataError(f"an array of shape {shape}: expected [h, w], [h, w, c] or a list of them")
    return list(array)


def _decoded(image: OneImage, pixels: Pixels) -> Picture:
    if isinstance(image, str | Path):
        return decode_image(Path(image), pixels)
    if isinstance(image, PIL.Image.Image):
        return decode_picture(image, pixels)
    try:
        return decode_array(np.asarray(image), pixels)
    except ValueError as error:  # lists in lists of different lengths
        if isinstance(error, DataError):
            raise
        raise DataError(f"{type(image).__name__} is no image: expected an array") from error
