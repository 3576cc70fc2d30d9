"""Places in the photograph's own pixels: through frames, regions, files, Python and the export."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.data.folders import find_images
from jax_noisy_anogan.data.frame import Frame, fit_square, scaled_size
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.scoring import artefact, detector, regions
from jax_noisy_anogan.scoring import files as scoring_files
from jax_noisy_anogan.scoring.calibration import CALIBRATED, Calibration, Thresholds
from jax_noisy_anogan.scoring.detector import Detector
from jax_noisy_anogan.scoring.maps import MapCalibration
from jax_noisy_anogan.scoring.scorer import TERMS

FITS = ("stretch", "crop", "pad")
SIDE = 32
# Height, width, and a defect that every fit shows: top, left, rows, columns.
PHOTOGRAPHS = {
    "square": (64, 64, 20, 30, 12, 12),
    "wide": (250, 630, 120, 290, 50, 100),
    "tall": (640, 480, 260, 90, 90, 120),
}


@settings(max_examples=60, deadline=None)
@given(
    fit=st.sampled_from(FITS),
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    side=st.sampled_from([8, 16]),
)
def test_a_ramp_over_the_picture_is_the_same_ramp_over_the_photograph(fit, size, side):
    frame = Frame.of(*size, fit)
    # The place of every pixel of the picture, in pixels of the photograph.
    places = [
        start + (np.arange(side) + 0.5) * length / side
        for start, length in ((frame.top, frame.rows), (frame.left, frame.columns))
    ]
    down = frame.place(np.repeat(places[0][:, None], side, axis=1))
    right = frame.place(np.repeat(places[1][None], side, axis=0))
    assert down.shape == right.shape == size
    y, x = np.indices(size) + 0.5
    for found, own, start, length in (
        (down, y, frame.top, frame.rows),
        (right, x, frame.left, frame.columns),
    ):
        # Beside the outermost centres of the picture's pixels there is nothing to go on with.
        margin = length / side + 1.0
        first, last = max(start, 0.0), min(start + length, float(own.max()) + 0.5)
        inner = (own > first + margin) & (own < last - margin) & ~np.isnan(found)
        np.testing.assert_allclose(found[inner], own[inner], atol=1e-3 * max(size))
    outside = (y < frame.top) | (y > frame.top + frame.rows)
    outside |= (x < frame.left) | (x > frame.left + frame.columns)
    np.testing.assert_array_equal(np.isnan(down), outside)
    assert outside.any() == (fit == "crop" and size[0] != size[1])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 64), (250, 630), (640, 480)])
def test_a_picture_is_put_back_where_fit_square_took_it_from(fit, size):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 12), np.uint8)
    photograph = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BILINEAR))
    picture = fit_square(photograph[..., None], 256, fit)[..., 0]
    placed = Frame.of(*size, fit).place(picture)
    shown = ~np.isnan(placed)
    if fit == "crop":
        assert shown.sum() == min(size) ** 2
    error = np.abs(placed[shown] - photograph[shown])
    assert error.mean() < 4.0


@pytest.mark.parametrize("fit", FITS)
def test_blocks_of_pixels_are_means_of_the_whole_map(fit):
    heat = np.random.default_rng(1).standard_normal((8, 8))
    frame = Frame.of(120, 360, fit)
    whole, blocks = frame.place(heat), frame.place(heat, step=6)
    means = whole.reshape(20, 6, 60, 6).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, means, atol=0.35)
    assert np.nanmean(np.abs(blocks - means)) < 0.05
    assert frame.place(heat, step=7).shape == (18, 52)
    assert [frame.step(most) for most in (43_200, 43_199, 10_800, 1)] == [1, 2, 2, 208]


def test_regions_come_largest_first_with_box_area_and_peak():
    heat = np.zeros((8, 10))
    heat[1, 1:4] = 9.0  # 3 pixels, the strongest
    heat[4, 5] = heat[5, 6] = heat[6, 7] = 1.0  # 4 pixels, touching at corners
    heat[6, 8] = 2.0
    heat[:, 0] = np.nan
    found = regions.find_regions(heat, 0.5)
    assert found.total == 2
    assert found.largest == (((5, 4, 4, 3), 4, 2.0), ((1, 1, 3, 1), 3, 9.0))
    assert regions.find_regions(heat, 1.0).largest[0].box == (1, 1, 3, 1)
    assert regions.find_regions(heat, 9.0) == (0, ())


def test_the_first_of_equal_regions_is_first_and_speckle_is_bounded():
    heat = np.zeros((6, 6))
    heat[4:, 4:] = heat[:2, 1:3] = 1.0
    boxes = [region.box for region in regions.find_regions(heat, 0.5).largest]
    assert boxes == [(1, 0, 2, 2), (4, 4, 2, 2)]
    speckle = np.zeros((60, 60))
    speckle[::2, ::2] = 1.0
    speckle[40:43, 40:43] = 1.0
    found = regions.find_regions(speckle, 0.5)
    assert found.total == 900 - 3
    assert len(found.largest) == regions.MOST_REGIONS
    assert found.largest[0].box == (40, 40, 3, 3)
    assert {region.area for region in found.largest[1:]} == {1}


def _detector(fit):
    """Its generator was never trained and draws grey: what is not grey differs from it."""
    data = config_lib.DataConfig(name="image_folder", root="-", channels=1, fit=fit)
    data.scale = 8.0 if fit == "scale" else 0.0
    config = tiny.config(
        data=data,
        growth=config_lib.GrowthConfig(start_resolution=SIDE, resolution=SIDE),
        search=config_lib.SearchConfig(steps=1, batch_size=4),
        score=config_lib.ScoreConfig(map_sigma=0.0),
    )
    networks = tiny.networks(SIDE)
    params = networks.init(jax.random.key(0))
    grey = params._replace(generator=jax.tree.map(jnp.zeros_like, params.generator))
    statistics = DiscriminatorStatistics(*(jnp.float32(v) for v in (0.5, 0.2, 0.3, -0.2)))
    names = (*TERMS, "local")
    # Map and calibrated score are the difference itself: 0.5 is a quarter of black against white.
    calibration = Calibration(
        terms=names,
        mean=(0.0,) * 6,
        std=(1.0,) * 6,
        weights=(0.0,) * 5 + (1.0,),
        intercept=0.0,
        scale=1.0,
        # Maps are marked above the quantile of `local`: any other number would mark nothing.
        thresholds={name: Thresholds(9.0, 9.0, None, None) for name in names}
        | {"local": Thresholds(9.0, 0.5, None, None), CALIBRATED: Thresholds(0.5, 9.0, None, None)},
        rule="quantile",
        normals=20,
        abnormals=0,
    )
    maps = MapCalibration(jnp.float32(0.0), jnp.float32(1.0))
    return Detector(Model(networks, grey, statistics), config, calibration, maps)


def _photograph(kind):
    height, width, top, left, rows, columns = PHOTOGRAPHS[kind]
    image = np.full((height, width), 128, np.uint8)
    image[top : top + rows, left : left + columns] = 255
    return image


def _is_at_the_defect(box, kind, fit):
    """Whether a box is that of the defect, but for a pixel of the picture at every edge."""
    height, width, top, left, rows, columns = PHOTOGRAPHS[kind]
    frame = Frame.of(height, width, fit)
    x, y, box_width, box_height = (box[name] for name in ("x", "y", "width", "height"))
    down, right = frame.rows / SIDE, frame.columns / SIDE
    edges = ((y, top, down), (y + box_height, top + rows, down))
    edges += ((x, left, right), (x + box_width, left + columns, right))
    return all(abs(found - true) <= pixel for found, true, pixel in edges)


@pytest.fixture(scope="module", params=FITS)
def fitted(request):
    return request.param, _detector(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for kind in PHOTOGRAPHS:
        Image.fromarray(_photograph(kind)).save(root / f"{kind}.png")
    return root


def test_python_finds_a_defect_at_its_place(fitted, folder):
    fit, found = fitted[0], fitted[1].score([folder / f"{kind}.png" for kind in PHOTOGRAPHS])
    for kind, detection in zip(PHOTOGRAPHS, found, strict=True):
        height, width, top, left, rows, columns = PHOTOGRAPHS[kind]
        assert detection.is_abnormal
        assert detection.region_count == 1
        assert _is_at_the_defect(detection.box._asdict(), kind, fit)
        assert detection.map.shape == detection.mask.shape == (height, width)
        assert detection.regions[0].area == detection.mask.sum()
        assert detection.regions[0].peak == np.nanmax(detection.map)
        inside = np.zeros((height, width), bool)
        inside[top : top + rows, left : left + columns] = True
        both = (detection.mask & inside).sum() / (detection.mask | inside).sum()
        assert both > (0.6 if kind == "square" or fit == "crop" else 0.5)


def test_a_turned_photograph_has_its_places_as_it_is_seen(fitted, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stored it on its side
    stored = Image.fromarray(np.rot90(_photograph("tall")))
    stored.save(tmp_path / "turned.png", exif=exif)
    (found,) = fitted[1].score(tmp_path / "turned.png")
    assert found.map.shape == PHOTOGRAPHS["tall"][:2]
    assert _is_at_the_defect(found.box._asdict(), "tall", fitted[0])


def test_what_is_cropped_away_has_no_value_and_no_region():
    image = _photograph("wide")
    image[:, :150] = 255
    (found,) = _detector("crop").score(image)
    np.testing.assert_array_equal(np.isnan(found.map[0]), np.abs(np.arange(630) - 314.5) > 125)
    assert found.region_count == 1
    assert _is_at_the_defect(found.box._asdict(), "wide", "crop")


def test_files_hold_a_defect_at_its_place_in_the_photographs_size(fitted, folder, tmp_path):
    fit, ours = fitted
    scoring_files.score_files(
        ours,
        find_images([folder]).files,
        tmp_path,
        heatmaps="all",
        maps=True,
        thumbnails=True,
        progress=False,
    )
    told = json.loads((tmp_path / "regions.json").read_text())
    rows = {
        row["path"]: row
        for row in pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    }
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert set(told) == set(rows) == {str(folder / f"{kind}.png") for kind in PHOTOGRAPHS}
    for kind, (height, width, *_) in PHOTOGRAPHS.items():
        path = str(folder / f"{kind}.png")
        row, (region,) = rows[path], told[path]["regions"]
        assert (row["width"], row["height"], row["region_count"]) == (width, height, 1)
        assert {k: v for k, v in told[path].items() if k in row} == {
            k: row[k] for k in ("width", "height", "region_count", "regions")
        }
        assert _is_at_the_defect(region, kind, fit)
        box = [row[f"box_{name}"] for name in ("x", "y", "width", "height")]
        assert box == [region[name] for name in ("x", "y", "width", "height")]
        (line,) = [line for line in lines if path in line]
        assert ",".join(map(str, [*box, width, height, 1])) in line
        name = scoring_files.safe_name(path)
        with Image.open(tmp_path / "maps" / f"{name}.tiff") as picture:
            written = np.asarray(picture)
        (detection,) = ours.score(path)
        np.testing.assert_array_equal(written, detection.map)
        with Image.open(tmp_path / "masks" / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture) > 0, detection.mask)
        with Image.open(tmp_path / "heatmaps" / f"{name}.png") as picture:
            assert picture.size == (width, height)
            overlay = np.asarray(picture)
        # Far from the defect the photograph itself.
        assert (overlay[:10, :10] == 128).all()
        with Image.open(tmp_path / "thumbnails" / f"{name}.jpg") as picture:
            assert max(picture.size) == min(max(height, width), 240)


def test_a_large_photograph_has_its_own_boxes_and_smaller_pictures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "MOST_PIXELS", 250 * 630 // 4)
    monkeypatch.setattr(scoring_files, "MOST_PIXELS", 250 * 630 // 4)
    files = find_images([folder / "wide.png"]).files
    scoring_files.score_files(
        _detector("stretch"), files, tmp_path, heatmaps="all", maps=True, progress=False
    )
    (value,) = json.loads((tmp_path / "regions.json").read_text()).values()
    assert (value["width"], value["height"]) == (630, 250)
    assert _is_at_the_defect(value["regions"][0], "wide", "stretch")
    name = scoring_files.safe_name(files[0].name)
    for path in (f"heatmaps/{name}.png", f"masks/{name}.png", f"maps/{name}.tiff"):
        with Image.open(tmp_path / path) as picture:
            assert picture.size == (315, 125)


def test_a_file_that_changes_between_its_search_and_its_picture_is_told(folder, tmp_path):
    ours = _detector("stretch")
    path = tmp_path / "photographs" / "a.png"
    path.parent.mkdir()

    class Replacing(Detector):
        def prepare(self, image):
            Image.fromarray(_photograph("square")).save(path)
            found = super().prepare(image)
            Image.fromarray(_photograph("wide")).save(path)
            return found

    replacing = Replacing.__new__(Replacing)
    replacing.__dict__ = ours.__dict__
    Image.fromarray(_photograph("square")).save(path)
    found = scoring_files.score_files(
        replacing, find_images([path]).files, tmp_path / "out", heatmaps="all", progress=False
    )
    assert found.errors == 1
    assert "changed while it was scored" in found.first_error
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == {}


def _exported(ours, folder, **options):
    """The map of a photograph by the exported program, with the lines that the manifest gives."""
    artefact.export_model(ours._model, ours.config, ours.calibration, ours._maps, folder, **options)
    spec = importlib.util.spec_from_file_location("exported_frame", folder / "frame.py")
    frame = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(frame)
    saved = bytearray((folder / artefact.ARTEFACT).read_bytes())
    program = jax.jit(jax.export.deserialize(saved).call)
    lines = json.loads((folder / "manifest.json").read_text())["photograph"]

    def map_of(photograph):
        names = vars(frame) | {"photograph": photograph}
        exec("\n".join(lines[1:-1]), names)
        names["found"] = program(names["images"])
        exec(lines[-1], names)
        return names["map"]

    return map_of


def test_the_export_finds_a_defect_at_its_place_with_the_file_beside_it(fitted, tmp_path):
    map_of = _exported(fitted[1], tmp_path)
    for kind in PHOTOGRAPHS:
        found = map_of(_photograph(kind)[..., None])
        (detection,) = fitted[1].score(_photograph(kind))
        np.testing.assert_allclose(found, detection.map, rtol=1e-5, atol=1e-5)
        assert found.shape == PHOTOGRAPHS[kind][:2]


def test_an_export_for_photographs_of_one_size_keeps_their_shape(tmp_path):
    ours = _detector("scale")
    height, width, top, left, rows, columns = PHOTOGRAPHS["wide"]
    # 31 x 79 pixels, in three tiles that are a row too high.
    assert len(ours._scorer.positions(*scaled_size(height, width, ours.config.data.scale))) == 3
    with pytest.raises(ConfigError, match="--photograph=1280x960"):
        _exported(ours, tmp_path)
    map_of = _exported(ours, tmp_path, photograph=(height, width))
    found = map_of(_photograph("wide")[..., None])
    (detection,) = ours.score(_photograph("wide"))
    np.testing.assert_allclose(found, detection.map, rtol=1e-5, atol=1e-5)
    inside = np.zeros((height, width), bool)
    inside[top : top + rows, left : left + columns] = True
    is_found = found > 0.5
    assert (is_found & inside).sum() > 0.5 * (is_found | inside).sum()
    squares = config_lib.changed(ours.config, ["data.fit=pad", "data.scale=0"])
    with pytest.raises(ConfigError, match="makes squares"):
        artefact.export_model(ours._model, squares, *[None] * 2, tmp_path, photograph=(9, 9))
