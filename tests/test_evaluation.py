"""Evaluation of held-out images: its files, what they hold, and what a kill leaves to do again."""

import csv
import dataclasses
import html.parser
import json
import shutil

import commands
import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn import metrics as peer

from jax_noisy_anogan.config import (
    DataConfig,
    LossConfig,
    SearchConfig,
    SyntheticConfig,
    validate,
)
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.evaluation import figures, held_out
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.evaluation.pixel_metrics import MaskedPixels
from jax_noisy_anogan.evaluation.selection import ReportImage, Shortlist, select_images
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring import maps as maps_lib
from jax_noisy_anogan.scoring import scorer
from jax_noisy_anogan.scoring.calibration import Calibration, CalibrationError
from jax_noisy_anogan.scoring.scorer import TERMS
from jax_noisy_anogan.scoring.thresholds import decide
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import load_model, networks_of

SCORES = ["score", "anomaly", "residual", "feature", "abnormality", "discriminator", "local"]
FIGURES = ["auroc", "average_precision", "f1_best", "f1_at_threshold", "threshold"]
FILES = [
    "best_and_worst.png",
    "calibration.json",
    "map_calibration.npz",
    "metrics.json",
    "pixel_difference.png",
    "reconstructions.png",
    "report.html",
    "scores.csv",
]


def _read(folder):
    """`metrics.json`, strictly parsed, and the rows of `scores.csv`."""

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    results = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    with open(folder / "scores.csv", newline="") as file:
        return results, list(csv.DictReader(file))


def _assert_agree_with_scikit_learn(results, rows, calibration):
    """Every figure of `metrics.json`, from `scores.csv` and the stored thresholds alone."""
    assert [name for name in results if name in SCORES] == SCORES
    test = [row for row in rows if row["part"] == "test"]
    truth = np.array([int(row["is_abnormal"]) for row in test])
    for name in SCORES:
        assert list(results[name]) == FIGURES
        values = np.array([float(row[name]) for row in test])
        threshold = 0.5 if name == "anomaly" else calibration.thresholds[name].chosen
        f1 = [peer.f1_score(truth, values > cut, zero_division=0) for cut in values]
        f1.append(peer.f1_score(truth, values > values.min() - 1, zero_division=0))
        wanted = (
            peer.roc_auc_score(truth, values),
            peer.average_precision_score(truth, values),
            max(f1),
            peer.f1_score(truth, values > threshold, zero_division=0),
            threshold,
        )
        assert results[name] == pytest.approx(dict(zip(FIGURES, wanted, strict=True)), rel=1e-9)


def _terms_of(rows, part):
    chosen = [row for row in rows if row["part"] == part]
    return {name: np.array([float(row[name]) for row in chosen]) for name in (*TERMS, "local")}


def _assert_rests_on_validation_images(rows, calibration, config):
    """The stored calibration is the fit to the validation rows, to the last bit."""
    again = calibration_lib.fit(
        _terms_of(rows, "validation_normal"),
        _terms_of(rows, "validation_known_abnormal"),
        rule=config.score.threshold_rule,
        false_positive_rate=config.score.false_positive_rate,
        learned="discriminator",
    )
    assert again.calibration == calibration
    for part, wanted in (
        ("validation_normal", again.normal),
        ("validation_known_abnormal", again.abnormal),
    ):
        scores = [float(row["calibrated"]) for row in rows if row["part"] == part]
        assert scores == wanted.tolist()


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.images = 0

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"


def test_a_run_leaves_every_file_and_they_agree(finished_run):
    config, folder = finished_run
    assert [name for name in FILES if not (folder / name).is_file()] == []
    results, rows = _read(folder)
    calibration = Calibration.load(folder / "calibration.json")
    parts = json.loads((folder / "split.json").read_text())["parts"]
    wanted = [(i, part) for part in held_out.PARTS for i in parts[part]]
    assert sorted((row["id"], row["part"]) for row in rows) == sorted(wanted)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert int(row["is_abnormal"]) == (row["class"] != str(config.data.digit))
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)
    test = [row for row in rows if row["part"] == "test"]
    columns = _terms_of(rows, "test")
    for name, values in (
        ("calibrated", calibration.calibrated(columns)),
        ("anomaly", calibration.anomaly(columns)),
    ):
        np.testing.assert_allclose([float(row[name]) for row in test], values, rtol=1e-12)
    decided = np.where(decide(calibration.anomaly(columns), 0.5), "abnormal", "normal")
    assert [row["decision"] for row in test] == decided.tolist()
    decides = calibration.thresholds["calibrated"]
    assert results["about"]["false_positive_rate"] == [decides.rate_low, decides.rate_high]
    for name in ("reconstructions.png", "pixel_difference.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    page = _Page()
    page.feed((folder / "report.html").read_text())
    assert page.images > 10


def _card(level, is_abnormal, mask=None):
    def grey(value):
        return np.full((8, 6, 1), value, np.uint8)

    return ReportImage(
        path=f"{level}.png",
        score=level / 100,
        is_abnormal=is_abnormal,
        is_flagged=True,
        image=grey(level),
        class_name="",
        terms={},
        reconstruction=grey(0),
        heatmap=np.broadcast_to(grey(level + 1), (8, 6, 3)),
        mask=mask,
    )


def test_best_and_worst_decisions_stand_above_their_heat_and_masks(tmp_path, monkeypatch):
    drawn = []

    def draw(rows, labels):
        drawn.append((rows, labels))
        return np.zeros((4, 4, 1), np.uint8)

    monkeypatch.setattr(figures.pictures, "rows_of_images", draw)
    mask = np.zeros((8, 6), bool)
    mask[2, 3] = True
    groups = {
        "most_anomalous": [_card(90, True, mask), _card(80, False)],
        "false_negatives": [_card(10, True), _card(20, True, mask)],
        "false_positives": [_card(70, False, np.zeros((8, 6), bool))],
        "least_anomalous": [_card(1, False)],
    }
    figures.write_best_and_worst(tmp_path, groups)
    ((rows, labels),) = drawn
    pair = ["heat", "mask"]
    assert labels == ["found", *pair, "missed", *pair, "false alarm", "heat"]
    shown = [[int(picture.flat[0]) for picture in row] for row in rows]
    white = 255  # of pictures that are missing in a row
    assert shown == [
        [90, white],
        [91, white],
        [0, white],
        [10, 20],
        [11, 21],
        [0, 0],
        [70, white],
        [71, white],
    ]
    np.testing.assert_array_equal(rows[5][1][..., 0] > 0, mask)
    assert (tmp_path / "best_and_worst.png").exists()
    large = dataclasses.replace(
        groups["most_anomalous"][0],
        image=np.kron(np.array([[10, 90]], np.uint8), np.ones((700, 600), np.uint8))[..., None],
        heatmap=np.zeros((700, 1200, 3), np.uint8),
        mask=None,
    )
    figures.write_best_and_worst(tmp_path, dict.fromkeys(groups, ()) | {"most_anomalous": [large]})
    picture, heat = (row[0] for row in drawn[1][0])
    assert picture.shape == (234, 400, 1)
    assert heat.shape == (234, 400, 3)
    np.testing.assert_array_equal(np.unique(picture[:, :200]), 10)
    np.testing.assert_array_equal(np.unique(picture[:, 200:]), 90)
    figures.write_best_and_worst(tmp_path, dict.fromkeys(groups, ()))
    assert not (tmp_path / "best_and_worst.png").exists()


def _tear(shards):
    """Three ways to lose a shard: gone, cut off, and with other contents."""
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    with np.load(shards[2]) as values:
        kept = dict(values)
    np.savez(shards[2], **{**kept, "latents": kept["latents"][:-1]})


def test_lost_shards_are_searched_again_and_the_command_gives_the_same_numbers(
    finished_run, tmp_path
):
    _, folder = finished_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(*(again / "evaluation").glob("results-*"))
    shards = sorted((again / "evaluation").glob("*/*.npz"))
    assert len(shards) == 3
    for name in ("metrics.json", "scores.csv", "report.html", "calibration.json"):
        (again / name).unlink()
    _tear(shards)
    devices = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = commands.command("evaluate", f"--workdir={again}", **devices)
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout
    assert (again / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()
    (ours, _), (theirs, _) = _read(again), _read(folder)
    for results in (ours, theirs):
        del results["about"]["search_seconds"]
    assert ours == theirs


def _counting(monkeypatch):
    """How many images are searched, and measured, from now on."""
    counts = {"search": 0, "measure": 0}

    def counted(name):
        original = getattr(scorer.Scorer, name)

        def count(item):
            counts[name] += 1
            return item

        return lambda self, items: original(self, map(count, items))

    for name in counts:
        monkeypatch.setattr(scorer.Scorer, name, counted(name))
    return counts


def _evaluated_again(config, folder):
    dataset = load_dataset(config.data, resolution=8)
    split = make_split(dataset, config.data)
    return results_lib.evaluate(
        config, folder, dataset, split, load_model(folder, config), progress=False
    )


def test_an_image_is_searched_and_measured_once_and_what_is_kept_is_not_made_again(
    finished_run, tmp_path, monkeypatch
):
    config, folder = finished_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    images = len(_read(folder)[1])
    counts = _counting(monkeypatch)
    # Only the rule of the threshold changes: neither G nor D is asked.
    quantile = dataclasses.replace(config.score, threshold_rule="quantile")
    results = _evaluated_again(dataclasses.replace(config, score=quantile), again)
    assert counts == {"search": 0, "measure": 0}
    assert results["score"]["threshold"] != _read(folder)[0]["score"]["threshold"]
    assert results["score"]["auroc"] == _read(folder)[0]["score"]["auroc"]
    # One lost file of either kind.
    for kind, name in (("latents", "search"), ("results", "measure")):
        shard = sorted((again / "evaluation").glob(f"{kind}-*/*.npz"))[-1]
        with np.load(shard) as values:
            lost = len(next(v for name, v in values.items() if name.endswith(" shape")))
        shard.unlink()
        counts |= {"search": 0, "measure": 0}
        _evaluated_again(config, again)
        assert counts == {"search": 0, "measure": 0} | {name: lost}
    # Another batch shape makes other last digits: everything is new.
    counts |= {"search": 0, "measure": 0}
    search = dataclasses.replace(config.search, batch_size=4)
    _evaluated_again(dataclasses.replace(config, search=search), again)
    assert counts == {"search": images, "measure": images}
    assert len(list((again / "evaluation").glob("results-*"))) == 1


def test_results_that_are_too_large_to_keep_are_the_same(finished_run, tmp_path, monkeypatch):
    config, folder = finished_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(*(again / "evaluation").glob("results-*"))
    monkeypatch.setattr(held_out, "_KEPT_BYTES", 0)
    counts = _counting(monkeypatch)
    _evaluated_again(config, again)
    assert not list((again / "evaluation").glob("results-*"))
    normals = [row for row in _read(folder)[1] if row["part"] == "validation_normal"]
    # Map statistics, and then every normal validation image without itself.
    assert counts["measure"] == len(_read(folder)[1]) + len(normals)
    for name in ("scores.csv", "calibration.json", "reconstructions.png"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def _untrained(config, tmp_path, seed=0):
    """Data set, split and a model with fresh parameters, of a config without a run."""
    config = validate(config)
    config.data.cache_dir = str(tmp_path / "cache")
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    networks = networks_of(config, make_schedule(config.growth).phases[-1])
    reference = DiscriminatorStatistics(*np.float32([1.0, 0.4, 1.0, -1.0]))
    model = Model(networks, networks.init(jax.random.key(seed)), reference)
    (tmp_path / "run").mkdir()
    return config, tmp_path / "run", dataset, make_split(dataset, config.data), model


def _config(**sections):
    return tiny.config(**({"search": SearchConfig(steps=2)} | sections))


def _surfaces(**changes):
    return DataConfig(
        name="synthetic",
        synthetic=SyntheticConfig(images=30, abnormal_images=20),
        known_abnormal_fraction=0.5,
        validation_fraction=0.3,
        **changes,
    )


def test_tiles_with_masks_and_a_recorded_curve(tmp_path):
    data = _surfaces(tile_image_resolution=32)
    search = SearchConfig(steps=3, record_curve=True)
    case = _untrained(_config(data=data, search=search), tmp_path)
    config, folder, dataset, split, model = case
    returned = results_lib.evaluate(*case, progress=False)
    results, rows = _read(folder)
    assert results["pixel"] == pytest.approx(returned["pixel"])
    assert 0 <= results["pixel"]["auroc"] <= 1
    assert set(results["pixel_by_class"]) <= set(dataset.class_names)
    calibration = Calibration.load(folder / "calibration.json")
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)
    with Image.open(folder / "reconstructions.png") as picture:
        # Input, G(z), difference and map of both kinds, then masks; 32 pixels as 64 with borders.
        assert picture.height == 9 * (64 + 4)
        shown = np.asarray(picture)[-66:-2:2, -66:-2:2, 0]
    abnormal = split.test[split.is_abnormal[split.test]]
    masks = np.stack([dataset.source(32).mask(int(index)) for index in abnormal]) > 0
    assert any(np.array_equal(shown == 255, mask) for mask in masks)

    with open(folder / "curve.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    assert [int(row["step"]) for row in curve] == [0, 1, 2, 3]
    score = {row["id"]: float(row["score"]) for row in rows}
    still = dataclasses.replace(search, steps=0, record_curve=False)
    starter = scorer.Scorer(model, dataclasses.replace(config, search=still))
    for name, parts in (
        ("validation_auroc", ("validation_normal", "validation_known_abnormal")),
        ("test_auroc", ("test",)),
    ):
        indices = np.concatenate([split.part(part) for part in parts])
        truth = split.is_abnormal[indices]
        # After all steps it is the scores of this run, after none those of a run without steps.
        ends = [score[dataset.ids[k]] for k in indices]
        images = [dataset.source(32)[int(k)] for k in indices]
        pairs = zip(images, (s.latents for s in starter.search(images)), strict=True)
        starts = [result.terms["score"] for result in starter.measure(pairs)]
        for row, values in ((curve[0], starts), (curve[-1], ends)):
            assert float(row[name]) == pytest.approx(peer.roc_auc_score(truth, values), abs=1e-6)
        assert (np.array(starts) > ends).any()


def test_gamma_1_with_no_known_abnormal_image_and_no_mask(tmp_path):
    data = DataConfig(max_test_images=40, known_abnormal_fraction=0.0)
    case = _untrained(_config(data=data, loss=LossConfig(gamma=1.0)), tmp_path)
    config, folder, _, split, _ = case
    (folder / "curve.csv").write_text("of an earlier evaluation")
    results_lib.evaluate(*case, progress=False)
    assert not (folder / "curve.csv").exists()
    results, rows = _read(folder)
    assert "pixel" not in results
    assert len(split.validation_known_abnormal) == 0
    calibration = Calibration.load(folder / "calibration.json")
    assert calibration.abnormals == 0
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)


def test_a_wasserstein_critic_and_test_images_of_one_kind_give_valid_files(tmp_path):
    loss = LossConfig(objective="wgan_gp", penalty="gp")
    case = _untrained(_config(data=_surfaces(), loss=loss), tmp_path)
    config, folder, dataset, split, model = case
    results_lib.evaluate(*case, progress=False)
    results, rows = _read(folder)
    _assert_agree_with_scikit_learn(results, rows, Calibration.load(folder / "calibration.json"))

    normal = split.test[~split.is_abnormal[split.test]]
    one_kind = dataclasses.replace(split, test=normal)
    results_lib.evaluate(config, folder, dataset, one_kind, model, progress=False)
    results, again = _read(folder)
    assert "auroc" not in results["score"]  # what images of one kind cannot say is left out
    kept = [row for row in rows if row["part"] != "test" or row["is_abnormal"] == "0"]
    assert again == kept  # neither calibration nor scores knew of the other test images


def test_too_few_normals_and_diverged_networks_are_one_clear_error(tmp_path, monkeypatch):
    config, folder, dataset, split, model = _untrained(_config(data=_surfaces()), tmp_path)
    few = dataclasses.replace(split, validation_normal=split.validation_normal[:1])
    with monkeypatch.context() as patched:
        patched.setattr(results_lib, "Scorer", None)  # told before any search
        with pytest.raises(CalibrationError, match="1 normal"):
            results_lib.evaluate(config, folder, dataset, few, model)
    broken = model._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    with pytest.raises(CalibrationError, match="is nan: the networks have diverged") as error:
        results_lib.evaluate(config, folder, dataset, split, broken, progress=False)
    assert "\n" not in str(error.value)


def _folder_of_photographs(root, rng):
    """Photographs of 90 x 60 pixels; a defect of one pixel, a large one, and an empty mask."""
    for number in range(30):
        _photograph(root / f"normal/{number:02d}.png", rng.integers(90, 120, (60, 90), np.uint8))
    masks = {}
    for number in range(8):
        mask = np.zeros((60, 90), np.uint8)
        if number % 4 == 0:
            mask[10 + number, 70] = 255
        elif number % 4 != 3:
            mask[20:40, 10:30] = 255
        masks[f"abnormal/{number}.png"] = mask > 0
        image = rng.integers(90, 120, (60, 90), np.uint8)
        _photograph(root / f"abnormal/{number}.png", np.where(mask, np.uint8(255), image))
        _photograph(root / f"masks/{number}.png", mask)
    return masks


def _statistics(maps, sigma):
    moments = maps_lib.MapMoments(sigma=sigma)
    for each in maps:
        moments.add(each)
    return moments.calibration()


def test_map_statistics_rest_on_validation_normals_and_local_of_each_on_the_others(
    finished_run,
):
    config, folder = finished_run
    dataset = load_dataset(config.data, resolution=8)
    split = make_split(dataset, config.data)
    model = scorer.Scorer(load_model(folder, config), config)
    found = held_out.HeldOut(config, folder, dataset, split, model)
    maps = np.stack([result.map for result in found.results("validation_normal")])
    sigma = config.score.map_sigma
    wanted = _statistics(maps, sigma=sigma)
    stored = maps_lib.load_maps(folder / "map_calibration.npz")
    np.testing.assert_array_equal(stored.mean, wanted.mean)
    np.testing.assert_array_equal(stored.std, wanted.std)
    _, rows = _read(folder)
    local = _terms_of(rows, "validation_normal")["local"]
    for k in (0, 7, len(maps) - 1):
        others = _statistics(np.delete(maps, k, axis=0), sigma=sigma)
        own = maps_lib.calibrated_map(maps[k], others, sigma=sigma).max()
        assert local[k] == pytest.approx(float(own), rel=1e-3)
    # Those of test images are by all validation normals.
    first = next(found.results("test"))
    own = maps_lib.calibrated_map(first.map, stored, sigma=sigma).max()
    assert _terms_of(rows, "test")["local"][0] == pytest.approx(float(own), rel=1e-6)


def test_photographs_of_the_same_part_are_not_what_one_of_them_is_judged_by(finished_run):
    config, folder = finished_run
    dataset = load_dataset(config.data, resolution=8)
    split = make_split(dataset, config.data)
    normal = split.validation_normal
    groups = np.arange(len(dataset))
    groups[normal[:6]], groups[normal[6:8]] = normal[0], normal[6]
    split = dataclasses.replace(split, groups=groups)
    model = scorer.Scorer(load_model(folder, config), config)
    found = held_out.HeldOut(config, folder, dataset, split, model)
    with found.progress(show=False) as line:
        scored = held_out.validate(found, line).scored["validation_normal"]
    maps = np.stack([result.map for result in found.results("validation_normal")])
    sigma = config.score.map_sigma
    for k, part in ((0, range(6)), (5, range(6)), (7, (6, 7)), (9, (9,))):
        others = _statistics(np.delete(maps, list(part), axis=0), sigma=sigma)
        own = maps_lib.calibrated_map(maps[k], others, sigma=sigma).max()
        assert scored.terms["local"][k] == pytest.approx(float(own), rel=1e-3)


def _photograph(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_pixel_metrics_are_those_of_enlarged_maps_under_the_masks_own_pixels(
    tmp_path, monkeypatch, caplog
):
    root = tmp_path / "data"
    masks = _folder_of_photographs(root, np.random.default_rng(0))
    data = DataConfig(
        name="image_folder", root=str(root), validation_fraction=0.3, known_abnormal_fraction=0.0
    )
    case = _untrained(_config(data=data, loss=LossConfig(gamma=1.0)), tmp_path)
    _, folder, dataset, *_ = case
    seen = []
    collect = MaskedPixels.__call__
    monkeypatch.setattr(
        MaskedPixels, "__call__", lambda self, image: (seen.append(image), collect(self, image))
    )
    results = results_lib.evaluate(*case, progress=False)
    empty = [f"abnormal/{number}.png" for number in (3, 7)]
    assert results["empty_masks"] == empty
    assert all(name in (folder / "report.html").read_text() for name in empty)
    maps, truths, regions = [], [], 0
    for image in seen:
        name = dataset.ids[image.example]
        mask = masks.get(name, np.zeros((60, 90), bool))
        if name in empty:
            continue
        large = Image.fromarray(image.map).resize((90, 60), Image.Resampling.BILINEAR)
        maps.append(np.asarray(large).ravel())
        truths.append(mask.ravel())
        regions += mask.any()
    pixel = results["pixel"]
    assert (pixel["images"], pixel["regions"]) == (len(maps), regions)
    # None of the two small defects is lost, though they vanish at 8 x 8.
    assert regions == 6
    wanted = peer.roc_auc_score(np.concatenate(truths), np.concatenate(maps))
    assert pixel["auroc"] == pytest.approx(wanted, abs=pixel["auroc_error"] + 1e-9)


def test_a_shortlist_of_a_stream_is_what_all_scores_together_choose():
    rng = np.random.default_rng(1)
    for count in (3, 9, 12, 40, 300):
        scores = rng.normal(size=count).round(1)  # with ties
        truth = rng.random(count) < 0.4
        shortlist = Shortlist(threshold=0.3)
        for position in range(count):
            shortlist.add(
                float(scores[position]), bool(truth[position]), lambda position=position: position
            )
        wanted = select_images(scores, truth, threshold=0.3)
        assert shortlist.groups() == {k: group.tolist() for k, group in wanted._asdict().items()}
        assert len(shortlist._kept) <= 36
