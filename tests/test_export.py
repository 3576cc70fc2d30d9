"""The exported file against the detector it was made from, in a process without this package."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import export
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.scoring import artefact, components
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import CALIBRATED, Calibration, Thresholds
from jax_noisy_anogan.scoring.detector import Detection, Detector
from jax_noisy_anogan.scoring.maps import MapCalibration
from jax_noisy_anogan.scoring.scorer import Scorer, all_terms

CASES = [("whole", 1), ("whole", 3), ("tiled", 3)]

# Runs the three lines that the manifest gives, in the folder of the export.
USER = """
import json, os, sys
import numpy as np
for case in sys.argv[1:]:
    folder, counts = json.loads(case)
    os.chdir(folder)
    all_images = np.load("images.npy")
    lines = json.load(open("manifest.json"))["load"]
    exec("\\n".join(lines[:-1]))
    kept = {}
    for count in counts:
        images = all_images[:count]
        exec(lines[-1])
        terms = found.pop("terms")
        kept |= {f"{name} {count}": np.asarray(value) for name, value in found.items()}
        kept |= {f"terms.{name} {count}": np.asarray(value) for name, value in terms.items()}
    np.savez("found.npz", **kept)
assert jax.device_count() == 1
foreign = {"jax_noisy_anogan", "flax", "optax", "orbax", "scipy.ndimage"} & set(sys.modules)
assert not foreign, foreign
"""


def a_detector(*, channels: int, tiled: bool) -> Detector:
    """With networks that were never trained, and a calibration between its first two images."""
    resolution = 4 if tiled else 8
    config = tiny.config(
        data=config_lib.DataConfig(
            channels=channels,
            tile_image_resolution=32 if tiled else 0,
            local_contrast=0.1 if tiled else 0.0,
        ),
        growth=config_lib.GrowthConfig(start_resolution=4, resolution=resolution),
        loss=config_lib.LossConfig(objective="wgan_gp" if tiled else "equation_18", penalty="gp"),
        # 11 x 11 tiles, 2 or 3 pixels apart.
        score=config_lib.ScoreConfig(
            tile_overlap=0.25, map="attribution" if tiled else "memory", memory=True
        ),
        search=config_lib.SearchConfig(
            steps=3,
            batch_size=11,
            record_curve=not tiled,
            tiles=17 if tiled else 0,
            schedule="cosine" if tiled else "constant",
            start="bank",
            bank_images=30,
        ),
    )
    networks = tiny.networks(resolution, channels=channels)
    rng = np.random.default_rng(7)
    model = Model(
        networks,
        networks.init(jax.random.key(5)),
        DiscriminatorStatistics(*(jnp.float32(v) for v in (0.5, 0.2, 0.3, -0.2))),
    )
    pixels = () if tiled else (8, 8)
    maps = MapCalibration(
        jnp.asarray(rng.uniform(0.4, 0.8, pixels), jnp.float32),
        jnp.asarray(rng.uniform(0.1, 0.2, pixels), jnp.float32),
    )
    names = all_terms(config.score)
    calibration = Calibration(
        terms=names,
        mean=(3.0, 2.5, 1.0, 0.5, 0.1, 2.0, 1.5, 0.2, 1.2),
        std=(0.5, 0.3, 0.2, 0.1, 0.6, 0.7, 0.8, 0.4, 0.9),
        weights=(0.2, 0.4, 0.1, 0.05, 0.7, 0.3, 0.25, 0.15, 0.35),
        intercept=-1.5,
        scale=0.8,
        thresholds={name: Thresholds(2.0, 2.0, None, None) for name in (*names, CALIBRATED)},
        rule="quantile",
        normals=20,
        abnormals=0,
    )
    mesh = parallel.make_mesh(jax.local_devices()[:1])
    memory = a_memory(Scorer(model, config, mesh), aligned=not tiled)
    return Detector(model, config, calibration, maps, memory, mesh=mesh)


def a_memory(scorer: Scorer, *, aligned: bool) -> memory_lib.Memory:
    """Of noise: aligned in random features alone, or from anywhere in those of D too."""
    rng = np.random.default_rng(8)
    tiles = rng.integers(0, 256, (5, *scorer.model.networks.image_shape), np.uint8)
    features = np.stack(list(scorer.features(tiles)))
    if aligned:
        features = features[..., : memory_lib.RANDOM_FEATURES]
    memory = memory_lib.build(features, size=20, blocks=2 if aligned else 1)
    pixels = (scorer.tile, scorer.tile) if aligned else ()
    usual = MapCalibration(jnp.full(pixels, 0.3), jnp.full(pixels, 0.2))
    return memory._replace(usual=usual, components=components.fit(tiles))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By kind: the folder, what the detector says of three images, and what the file says."""
    made = {}
    for kind, channels in (("whole", 3), ("tiled", 1)):
        detector = a_detector(channels=channels, tiled=kind == "tiled")
        folder = tmp_path_factory.mktemp(kind)
        rng = np.random.default_rng(1)
        shape = (detector.resolution, detector.resolution, channels)
        images = np.stack([rng.integers(low, 256, shape, np.uint8) for low in (0, 120, 240)])
        prepared = [detector.prepare(image) for image in images]
        middle = float(np.median([found.calibrated for found in detector.stream(prepared)]))
        thresholds = {
            **detector.calibration.thresholds,
            CALIBRATED: Thresholds(middle - 1e-3, 0.0, None, None),
        }
        detector.calibration = dataclasses.replace(detector.calibration, thresholds=thresholds)
        expected = list(detector.stream(prepared))
        np.save(folder / "images.npy", images)
        artefact.export_model(
            detector._model,
            detector.config,
            detector.calibration,
            detector._maps,
            folder,
            detector._memory,
        )
        made[kind] = folder, detector, expected
    wanted = [
        json.dumps([str(made[kind][0]), [count for k, count in CASES if k == kind]])
        for kind in made
    ]
    subprocess.run([sys.executable, "-c", USER, *wanted], check=True, timeout=900)
    return made


@pytest.mark.parametrize(("kind", "count"), CASES)
def test_in_a_process_with_jax_alone_every_result_is_the_detectors(exports, kind, count):
    folder, _, expected = exports[kind]
    expected = expected[:count]
    with np.load(folder / "found.npz") as file:
        found = {k.rsplit(" ")[0]: file[k] for k in file if k.endswith(f" {count}")}
    for name in ("score", "calibrated", "anomaly"):
        wanted = [getattr(detection, name) for detection in expected]
        # The distance of patches that are nearly the same has few digits.
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, err_msg=name)
    for name in all_terms(exports[kind][1].config.score):
        wanted = [detection.terms[name] for detection in expected]
        # XLA rounds some sums of the exported program otherwise than those of the detector.
        close = {"rtol": 1e-4 if name.startswith("memory") else 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(found[f"terms.{name}"], wanted, **close, err_msg=name)
    decisions = [detection.is_abnormal for detection in expected]
    np.testing.assert_array_equal(found["is_abnormal"], decisions)
    if count == 3:
        assert {True, False} == set(decisions)
    wanted = np.stack([detection.heat for detection in expected])
    np.testing.assert_allclose(found["heat"], wanted, rtol=1e-4, atol=1e-4)
    # Where a blend lies between two grey values, the last bit decides.
    wanted = np.stack([detection.reconstruction for detection in expected]).astype(int)
    assert np.abs(found["reconstruction"] - wanted).max() <= (1 if kind == "tiled" else 0)


def test_the_outputs_are_those_of_a_detection(exports):
    for folder, detector, _ in exports.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["outputs"]) == set(Detection._fields) - {
            "image",
            "frame",
            "map_threshold",
            "regions",
            "region_count",
        }
        assert set(manifest["outputs"]["terms"]) == set(detector.calibration.terms)
        side = detector.resolution
        channels = detector.config.data.channels
        assert manifest["input"]["images"] == f"uint8[batch,{side},{side},{channels}]"


def test_the_json_files_say_how_decisions_are_made(exports):
    for folder, detector, _ in exports.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert Calibration.load(folder / manifest["calibration"]) == detector.calibration
        threshold = manifest["thresholds"]["calibrated"]
        assert threshold == detector.calibration.thresholds[CALIBRATED].chosen
        assert manifest["thresholds"]["anomaly"] == 0.5
        assert manifest["thresholds"]["map"] == detector.map_threshold
        saved = (folder / manifest["artefact"]).read_bytes()
        assert manifest["sha256"] == hashlib.sha256(saved).hexdigest()
        assert manifest["versions"]["jax"] == jax.__version__


def test_one_file_serves_cpu_cuda_and_tpu_and_asks_for_images_only(exports):
    for folder, *_ in exports.values():
        saved = bytearray((folder / artefact.ARTEFACT).read_bytes())
        exported = jax.export.deserialize(saved)
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert len(exported.in_avals) == 1
        for wrong in (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(exported.in_avals[0].shape[1:])):
            with pytest.raises(ValueError):
                exported.call(wrong)


def test_a_finished_run_is_exported_by_the_command(finished_run, tmp_path, monkeypatch):
    import jax_noisy_anogan

    _, run = finished_run
    done = commands.command("export", "--workdir", run, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "manifest.json" in done.stdout
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 1), np.uint8)
    saved = bytearray((tmp_path / "out" / artefact.ARTEFACT).read_bytes())
    found = jax.jit(jax.export.deserialize(saved).call)(images)
    wanted = jax_noisy_anogan.load(run).score(images)
    np.testing.assert_allclose(found["score"], [w.score for w in wanted], rtol=1e-5)
    np.testing.assert_allclose(found["calibrated"], [w.calibrated for w in wanted], rtol=1e-5)
    # A digit of 28 x 28, by the lines of the manifest: what the run itself would look at.
    digit = np.random.default_rng(3).integers(0, 256, (28, 28, 1), np.uint8)
    lines = json.loads((tmp_path / "out/manifest.json").read_text())["photograph"]
    monkeypatch.syspath_prepend(tmp_path / "out")
    scope = {"photograph": digit, "found": {"heat": np.zeros((1, 8, 8), np.float32)}}
    exec("\n".join(lines), scope)
    monkeypatch.delitem(sys.modules, "frame")
    ours = jax_noisy_anogan.load(run).prepare(digit)
    np.testing.assert_array_equal(scope["images"][0], ours.image)
    assert tuple(scope["frame"]) == tuple(ours.frame)
    assert scope["map"].shape == (28, 28)


@pytest.mark.parametrize("text", ["1280", "0x5", "axb", "1280x960x3", "-3x4"])
def test_a_size_that_is_none_says_what_was_expected(text):
    with pytest.raises(ConfigError, match="expected width x height in pixels, as in 1280x960"):
        export._size(text)
    assert export._size("1280x960") == (960, 1280)
    assert export._size("") is None


def test_a_folder_without_a_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match="--workdir must name the folder of a run"):
        artefact.export_detector(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_says_what_to_install(exports, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ConfigError, match="pip install"):
        artefact.export_onnx(exports["whole"][1]._model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnx_networks_draw_and_judge_as_the_checkpoints(tmp_path):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = a_detector(channels=3, tiled=False)._model
    artefact.export_onnx(model, tmp_path)
    generator, discriminator = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        for name in ("generator", "discriminator")
    )
    for count in (1, 3):
        z = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
        (drawn,) = generator.run(["image"], {"z": z})
        wanted = model.networks.generate(model.params.generator, z)
        np.testing.assert_allclose(drawn, wanted, rtol=1e-4, atol=1e-5)
        (logit,) = discriminator.run(["logit"], {"image": drawn})
        stddev = model.statistics.mean("stddev")
        judged = model.networks.discriminate(model.params.discriminator, drawn, stddev=stddev)
        np.testing.assert_allclose(logit, judged.logits, rtol=1e-4, atol=1e-5)
