"""Hostile settings, images, checkpoints and names: an answer or one clear line, and no code run."""

import csv
import dataclasses
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import settings as settings_lib
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.data import folders
from jax_noisy_anogan.data.decode import Pixels, decode_image
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.data.frame import fit_square
from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.scoring import files as scoring_files
from jax_noisy_anogan.scoring import table as table_lib
from jax_noisy_anogan.scoring.detector import Detector
from jax_noisy_anogan.scoring.scorer import TERMS
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import state_template

EXTREMES = [
    0, -1, 1, 2, 3, 7, 64, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, -(2**63), 10**30, 10**400,
    10**5000, 0.0, -0.0, 5e-324, 1e-320, 0.5, 1.0, 1.5, -1e308, 1e308, math.inf, -math.inf,
    math.nan, np.float32(0.5), np.int64(2), np.array([1, 2]), True, False, None, "", "0", "1", "\0",
    "a\0b", "\ud800", "\udcff", "../../etc", "/", "a" * 10_000, "é\n", "!!python/object:os.system",
    b"bytes", (), [], {}, [1], ["x"], ["\0"], {"4": 8}, {"4": -1}, {"4": 10**30}, {"4": "8"},
    {"five": 1}, {4: 8}, {"8": True}, {1, 2}, 1j, ..., [[]] * 3, object, object(), len,
]  # fmt: skip
PIXELS = 10**6


def _one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text
    return text


def test_every_field_with_every_extreme_value_is_accepted_or_named():
    accepted, said = {}, []
    fields = settings_lib.values(Config())
    for name in fields:
        for value in EXTREMES:
            try:
                config = config_lib.validate(settings_lib.replaced(Config(), {name: value}))
            except ConfigError as error:
                said.append((name, _one_line(error)))
            else:
                accepted.setdefault(name, []).append(config)
    assert [text for name, text in said if f"{name.partition('.')[0]}." not in text] == []
    assert max(len(text) for _, text in said) < 600
    # Every field is one that can be set to something else.
    assert len(accepted) > 0.7 * len(fields)
    for name, configs in accepted.items():
        for config in configs:
            schedule = make_schedule(config.growth)
            again = config_lib.from_json(config_lib.to_json(config))
            assert config_lib.to_json(again) == config_lib.to_json(config)
            for text in (config.data.root, config.data.cache_dir):
                os.path.exists(text)  # raises on text that is no path
            if name.startswith("network."):  # JAX counts elements in 64 bits
                mesh = parallel.make_mesh(jax.devices()[:1])
                state_template(config, schedule.phases[-1], mesh)


HOSTILE_TEXTS = [
    b"", b"\xff\xfe\x00", b"{", b"null", b"[]", b"NaN", b"[" * 10**6, b'{"data":' * 10**5,
    b'{"data": {"digit": ' + b"9" * 10_000 + b"}}", b'{"data": {"digit": 1e999}}',
    b'{"data": {"root": "\\u0000"}}', b'{"data": {"root": "\\ud800"}}',
    b"!!python/object/apply:os.mkdir ['planted']",
    b'{"py/reduce": [{"py/type": "os.mkdir"}, {"py/tuple": ["planted"]}]}',
    b'{"__class__": "os.system", "data": {"__reduce__": ["os.mkdir", "planted"]}}',
]  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "calibration.json"])
def test_any_text_in_the_files_of_a_run_is_one_line(finished_run, tmp_path, monkeypatch, name):
    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    monkeypatch.chdir(tmp_path)
    for content in HOSTILE_TEXTS:
        (run / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            jax_noisy_anogan.load(run)
        assert name in _one_line(error.value) or "config" in str(error.value)
        assert len(str(error.value)) < 2000
    assert not (tmp_path / "planted").exists()


class _Plant:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_file_of_a_run_is_ever_unpickled(finished_run, tmp_path):
    planted = tmp_path / "planted"
    bomb = pickle.dumps(_Plant(planted))
    buffer = io.BytesIO()
    np.savez(buffer, mean=np.array([_Plant(planted)], object), std=np.array([_Plant(planted)]))
    for archive in (bomb, buffer.getvalue()):
        _unpickle(archive)
        planted.rmdir()  # it was armed
    files = [path for path in sorted(finished_run[1].rglob("*")) if path.is_file()]
    chosen = [path.relative_to(finished_run[1]) for path in files]
    assert {"config.json", "calibration.json", "map_calibration.npz"} < {p.name for p in chosen}
    assert sum(path.parts[0] == "checkpoints" for path in chosen) > 5
    run = tmp_path / "run"
    for file in chosen:
        if file.parts[0] not in ("checkpoints", "config.json", "calibration.json") and (
            file.name != "map_calibration.npz"
        ):
            continue
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished_run[1], run, ignore=shutil.ignore_patterns("evaluation"))
        for content in (bomb, buffer.getvalue()) if file.suffix == ".npz" else (bomb,):
            (run / file).write_bytes(content)
            for extra in ("state.pkl", "checkpoint.pickle", "_METADATA.pkl"):
                (run / file).parent.joinpath(extra).write_bytes(bomb)
            try:
                jax_noisy_anogan.load(run)
            except UserError as error:
                _one_line(error)
    with pytest.raises(Exception, match=r".") as refused:
        jax.export.deserialize(bytearray(bomb))
    assert not isinstance(refused.value, FileExistsError)
    assert not planted.exists()


def _unpickle(content):
    if content[:2] == b"PK":
        with np.load(io.BytesIO(content), allow_pickle=True) as values:
            values["mean"]
    else:
        pickle.loads(content)


def test_shards_of_latents_are_never_unpickled(finished_run, tmp_path):
    from jax_noisy_anogan.evaluation import held_out

    buffer = io.BytesIO()
    plant = np.array([_Plant(tmp_path / "planted")], object)
    np.savez(buffer, **{"latents": plant, "latents shape": np.array([[1]])})
    path = tmp_path / "shard.npz"
    for content in (buffer.getvalue(), pickle.dumps(_Plant(tmp_path / "planted"))):
        path.write_bytes(content)
        kept = held_out.Kept(tmp_path, ["latents"], 1)
        assert kept.read(held_out.Shard(path, np.arange(1))) is None
    assert not (tmp_path / "planted").exists()


# Images.


def _encoded(name, rng):
    """A small valid file of a kind."""
    kind, _, depth = name.partition("-")
    high, dtype = (65_536, np.uint16) if depth == "16" else (256, np.uint8)
    shape = (24, 20, 3) if depth == "rgb" else (24, 20)
    numbers = np.random.default_rng(rng.randrange(2**31))
    picture = Image.fromarray(numbers.integers(0, high, shape, dtype))
    buffer = io.BytesIO()
    compression = {"compression": rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"])}
    picture.save(buffer, kind, **(compression if kind == "TIFF" else {}))
    return bytearray(buffer.getvalue())


KINDS = ("PNG", "PNG-rgb", "PNG-16", "JPEG", "JPEG-rgb", "BMP", "BMP-rgb")
KINDS += ("TIFF", "TIFF-rgb", "TIFF-16", "WEBP-rgb", "PPM-rgb")


def _claim(name, data, width, height):
    """The same file with another size in its header, and nothing else changed."""
    if name.startswith("PNG"):
        data[16:24] = struct.pack(">II", width % 2**32, height % 2**32)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name.startswith("JPEG"):
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height % 2**16, width % 2**16)
    elif name.startswith("BMP"):
        data[18:26] = struct.pack("<II", width % 2**32, height % 2**32)
    elif name.startswith("TIFF"):
        start = struct.unpack("<I", data[4:8])[0]
        for at in range(start + 2, start + 2 + 12 * data[start], 12):
            tag = struct.unpack("<H", data[at : at + 2])[0]
            # Width, height, and how many bytes every strip has.
            if tag in (256, 257, 279):
                value = {256: width, 257: height, 279: width * height}[tag] % 2**32
                data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    elif name.startswith("PPM"):
        data[:] = re.sub(rb"^P6\s+\d+ \d+", f"P6\n{width} {height}".encode(), data)
    else:
        data[24:30] = struct.pack("<HHH", width % 2**14, height % 2**14, 0)
    return data


CLAIMS = (
    (2**31 - 1, 2**31 - 1), (2**32 - 1, 4), (65_535, 65_535), (2**16, 2**16), (10**6, 10**6),
    (1001, 1000), (1000, 1000), (999, 1000), (4, 250_000), (250_000, 4), (0, 0), (1, 1), (3, 300),
)  # fmt: skip


def _mutants(count):
    rng = random.Random(7)
    for number in range(count):
        name = KINDS[number % len(KINDS)]
        data = _encoded(name, rng)
        kind = number // len(KINDS) % 7
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:  # of the header
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(min(60, len(data)))] = rng.choice((0, 1, 127, 128, 255))
        elif kind in (3, 4):
            data = _claim(name, data, *rng.choice(CLAIMS))
        elif kind == 5:  # a part again, or none of it
            start, end = sorted(rng.randrange(len(data)) for _ in range(2))
            data[start:end] = data[start:end] * rng.choice((0, 2, 3))
        else:
            other = _encoded(rng.choice(KINDS), rng)
            data = data[: rng.randrange(64)] + other[rng.randrange(64) :]
        suffix = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "TIFF": "tif"}.get(name.split("-")[0])
        yield f"{number:04d}-{kind}.{suffix or 'webp'}", bytes(data)


def _bombs():
    """Files whose parts claim, repeat or unpack to far more than they are."""
    rng = random.Random(3)

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    zeros = zlib.compress(bytes(50 * 2**20), 9)
    whole = _encoded("PNG", rng)
    for kind, body in (
        (b"iCCP", b"a\0\0" + zeros),
        (b"zTXt", b"a\0\0" + zeros),
        (b"IDAT", zeros),
        (b"PLTE", bytes(3 * 10**5)),
        (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    ):
        yield f"{kind.decode()}.png", bytes(whole[:33] + chunk(kind, body) + whole[33:])
    # A TIFF of frames that overlap: one begins two bytes after the other.
    chain = bytearray(b"II*\0" + struct.pack("<I", 8))
    for number in range(30_000):
        chain += struct.pack("<HI", 0, 8 + 6 * (number + 1))
    yield "chain.tif", bytes(chain)
    loop = _encoded("TIFF", rng)
    start = struct.unpack("<I", loop[4:8])[0]
    end = start + 2 + 12 * loop[start]
    loop[end : end + 4] = struct.pack("<I", start)
    yield "loop.tif", bytes(loop)
    many = _encoded("TIFF", rng)
    many[struct.unpack("<I", many[4:8])[0]] = 255
    yield "tags.tif", bytes(many)
    yield "digits.ppm", b"P2\n" + b"9" * 10**6 + b" 4\n255\n"
    yield "empty.png", b""


COUNT = 1200


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    for name, data in (*_mutants(COUNT), *_bombs()):
        (folder / name).write_bytes(data)
    return folder


def _peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@pytest.fixture(scope="module")
def refused(mutants):
    """Reasons of the files that are no image, by name; all are decoded, one after the other."""
    reasons, said, slowest = {}, [], (0.0, "")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = _peak_mib()
    for path in sorted(mutants.iterdir()):
        start = time.thread_time()
        try:
            pixels = decode_image(path, Pixels(1, PIXELS)).image
        except BadImageError as error:
            reasons[path.name] = error.reason
            said.append(_one_line(error).removeprefix(str(path)))
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 1
            assert min(pixels.shape[:2]) >= 4
            assert pixels.shape[0] * pixels.shape[1] <= PIXELS
        slowest = max(slowest, (time.thread_time() - start, path.name))
    assert [text for text in said if not text.startswith(": ") or len(text) > 500] == []
    assert slowest[0] < 3.0, slowest
    assert _peak_mib() - before < 150
    return reasons


def test_every_mutated_image_is_decoded_or_refused_in_bounded_memory_and_time(mutants, refused):
    names = {path.name for path in mutants.iterdir()}
    assert len(names) > COUNT
    assert set(refused) < names
    # Of every kind of mutation some are refused, and of all of them some are still images.
    for kind in range(7):
        assert sum(name.split(".")[0].endswith(f"-{kind}") for name in refused) > 10, kind
    assert len(names) - len(refused) > 100
    for name in ("chain.tif", "empty.png", "digits.ppm"):
        assert name in refused
    assert sum("max_image_pixels" in reason for reason in refused.values()) > 50


def test_every_mutated_image_is_one_row_of_a_score_table(
    finished_run, mutants, refused, tmp_path, capfd
):
    detector = jax_noisy_anogan.load(finished_run[1])
    data = dataclasses.replace(detector.config.data, max_image_pixels=PIXELS)
    small = dataclasses.replace(detector.config, data=data)
    detector = Detector(detector._model, small, detector.calibration, detector._maps)
    files = folders.find_images([mutants]).files
    capfd.readouterr()
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    found = scoring_files.score_files(detector, files, tmp_path / "out", progress=False)
    assert _peak_mib() - before < 600
    assert capfd.readouterr() == ("", "")
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [file.name for file in files]
    assert {Path(row["path"]).name: row["error"] for row in rows if row["error"]} == refused
    for row in rows:
        if not row["error"]:
            assert all(math.isfinite(float(row[name])) for name in (*TERMS, "anomaly"))
    assert (found.files, found.errors) == (len(files), len(refused))


def test_pillow_is_as_it_was_after_threads_have_decoded(mutants):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def decode(path):
        try:
            return decode_image(path, Pixels(3, PIXELS))
        except BadImageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, sorted(mutants.iterdir())[:200]))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(4, 200_000, 1), (200_000, 4, 3)])
def test_a_strip_of_few_pixels_takes_little_memory(fit, shape):
    image = np.full(shape, 255, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    square = fit_square(image, 8, fit)
    assert square.shape == (8, 8, shape[2])
    assert fit == "pad" or square.min() == 255
    assert _peak_mib() - before < 900  # 8192 squared in three channels is 192 MiB


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=300) | st.sampled_from(["../../x", "/etc/passwd", "a\nb"])))
def test_names_of_pictures_are_plain_short_and_different(names):
    made = {name: scoring_files.safe_name(name) for name in names}
    for name in made.values():
        assert re.fullmatch(r"[A-Za-z0-9_-]{9,89}", name)
    assert len(set(made.values())) == len(made)


def test_links_are_scored_under_their_own_names_and_written_to_from_nowhere(finished_run, tmp_path):
    detector = jax_noisy_anogan.load(finished_run[1])
    secret, images, out = tmp_path / "secret", tmp_path / "images", tmp_path / "out"
    secret.mkdir()
    images.mkdir()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(secret / "a.png")
    before = (secret / "a.png").read_bytes()
    (images / "link.png").symlink_to(secret / "a.png")
    (images / "folder").symlink_to(secret)
    (images / "up.png").symlink_to("../../../../etc/passwd")
    (images / "self.png").symlink_to(images / "self.png")
    files = folders.find_images([images]).files
    scoring_files.score_files(detector, files, out, heatmaps="all", maps=True, progress=False)
    with open(out / "scores.csv", newline="") as file:
        errors = {Path(row["path"]).name: row["error"] for row in csv.DictReader(file)}
    # A link to a folder is followed; what lies there keeps the name that leads to it.
    assert errors.keys() == {"link.png", "up.png", "self.png", "a.png"}
    assert errors["link.png"] == ""
    assert all(errors[name] for name in ("up.png", "self.png"))
    assert [path.name for path in secret.iterdir()] == ["a.png"]
    assert (secret / "a.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "images", "out"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_to_rows_of_an_earlier_start_leaves_rows_or_nothing(data):
    row = {"path": "a.png", "content": "1", "time": "now", "score": 1.5, "decision": "normal"}
    row |= {"box_x": 3, "error": None}
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    )
    changed = {**row, data.draw(st.sampled_from([*row, "new"])): data.draw(value)}
    if table_lib._is_row(changed):
        table_lib.pa.Table.from_pylist([row, changed], schema=table_lib._SCHEMA)
        assert isinstance(changed["path"], str)
    assert table_lib._is_row(json.loads(json.dumps(row)))
    assert not table_lib._is_row(data.draw(value.filter(lambda v: not isinstance(v, dict))))
