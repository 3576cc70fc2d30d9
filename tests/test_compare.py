"""Settings are compared inside the training part: its folds, its figures, and what is refused."""

import shlex
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.folds import folds
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation.comparison import Judged, best, rows, simple
from jax_noisy_anogan.scoring.calibration import ANOMALY

# 60 normal and 24 abnormal images; the last 20 and the last 8 of them are tested.
IDS = tuple(f"{k:03d}.png" for k in range(84))
IS_ABNORMAL = np.arange(84) >= 60
TEST = np.r_[40:60, 76:84]


def _split(**changes):
    parts = {
        "train_normal": np.arange(32),
        "validation_normal": np.arange(32, 40),
        "train_known_abnormal": np.arange(60, 72),
        "validation_known_abnormal": np.arange(72, 76),
        "test": TEST,
    }
    return Split("drawn", IDS, IS_ABNORMAL, **(parts | changes))


class _Dataset(SimpleNamespace):
    def __len__(self):
        return len(IDS)


def _dataset(**marks):
    return _Dataset(marks=tuple(marks.get(f"m{k}", "train") for k in range(84)))


def test_every_image_of_the_training_part_validates_once_and_no_test_image_is_seen():
    divided = folds(_dataset(), _split(), 4)
    held = np.concatenate([f.validation_normal for f in divided])
    known = np.concatenate([f.validation_known_abnormal for f in divided])
    np.testing.assert_array_equal(np.sort(held), np.arange(40))
    np.testing.assert_array_equal(np.sort(known), np.arange(60, 76))
    for fold in divided:
        trains = np.concatenate([fold.train_normal, fold.train_known_abnormal])
        own = np.concatenate([fold.validation_normal, fold.validation_known_abnormal])
        assert len(fold.test) == 0
        assert not np.isin(np.concatenate([trains, own]), TEST).any()
        np.testing.assert_array_equal(np.sort(np.concatenate([trains, own])), _training_part())
        # As evenly as they go.
        assert (len(fold.validation_normal), len(fold.validation_known_abnormal)) == (10, 4)


def _training_part():
    return np.setdiff1d(np.arange(84), TEST)


def test_what_a_split_keeps_together_no_fold_divides():
    # Every object: three flawless photographs and one with a defect.
    groups = np.r_[np.arange(60) // 3, np.arange(24)]
    for fold in folds(_dataset(), _split(groups=groups), 3):
        trains = groups[np.concatenate([fold.train_normal, fold.train_known_abnormal])]
        own = groups[np.concatenate([fold.validation_normal, fold.validation_known_abnormal])]
        assert not np.isin(own, trains).any()
        assert min(len(fold.train_known_abnormal), len(fold.validation_known_abnormal)) > 0


def test_unlabelled_and_hidden_abnormal_images_train_and_validate_in_no_fold():
    hidden = np.r_[0:5, 76:78]
    split = _split(train_normal=np.r_[0:32, 76:78], test=np.r_[40:60, 78:84])
    dataset = _dataset(**{f"m{k}": "unlabeled" for k in range(5)})
    for fold in folds(dataset, split, 3):
        assert np.isin(hidden, fold.train_normal).all()
        assert not np.isin(hidden, fold.validation_normal).any()
        assert not np.isin(hidden, fold.train_known_abnormal).any()


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        (
            {
                "train_known_abnormal": np.zeros(0, int),
                "validation_known_abnormal": np.zeros(0, int),
            },
            3,
            "no defect is known",
        ),
        ({"validation_known_abnormal": np.zeros(0, int)}, 100, "100 folds of 52 groups"),
        (
            {"train_known_abnormal": np.arange(60, 61), "groups": np.arange(84) // 20},
            2,
            "too small",
        ),
    ],
)
def test_what_cannot_be_divided_is_one_line(changes, count, message):
    with pytest.raises(DataError, match=message) as error:
        folds(_dataset(), _split(**changes), count)
    assert "\n" not in str(error.value)


def _judged(*scores, is_abnormal, yardsticks=None):
    by_name = [{ANOMALY: list(map(float, s)), "memory": list(map(float, -s))} for s in scores]
    return Judged(by_name, is_abnormal.tolist(), yardsticks or {})


def _delong(first, second, is_abnormal):
    """Gain in AUROC of the second scores and its standard error (DeLong et al. 1988)."""

    def placements(scores):
        x, y = scores[is_abnormal], scores[~is_abnormal]
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        return wins.mean(1), wins.mean(0)

    (x1, y1), (x2, y2) = placements(first), placements(second)
    variance = np.var(x2 - x1, ddof=1) / len(x1) + np.var(y2 - y1, ddof=1) / len(y1)
    return x2.mean() - x1.mean(), variance**0.5


def test_gain_and_its_error_are_those_of_delong():
    rng = np.random.default_rng(0)
    is_abnormal = np.arange(300) < 80
    shared = rng.normal(size=300) + is_abnormal
    first, second = (shared + rng.normal(size=300) * s + is_abnormal * s for s in (1.0, 0.5))
    gain, error = _delong(first, second, is_abnormal)
    one, two = rows(["a", "b"], [_judged(first, second, is_abnormal=is_abnormal)])
    assert (one.gain, one.error) == (0.0, 0.0)
    assert two.gain == pytest.approx(gain, abs=1e-12)
    assert two.error == pytest.approx(error, rel=0.15)
    # The independent one of a single candidate, by the rank sum.
    ranks = scipy.stats.rankdata(second)[is_abnormal].sum()
    assert two.mean == pytest.approx((ranks - 80 * 81 / 2) / (80 * 220), abs=1e-12)
    assert two.terms == {"memory": pytest.approx(1 - two.mean)}


def test_folds_count_alike_and_are_not_pooled():
    # In each fold the ranking is perfect; scales differ, so that pooled ranks would be wrong.
    truth = np.array([False, False, True])
    low, high = np.array([1.0, 2.0, 3.0]), np.array([11.0, 12.0, 13.0])
    bad = np.array([3.0, 2.0, 1.0])
    judged = [
        _judged(low, bad, is_abnormal=truth, yardsticks={"a": 0.5, "b": 0.1}),
        _judged(high, high, is_abnormal=truth, yardsticks={"a": 0.7}),
    ]
    first, second = rows(["a", "b"], judged)
    assert (first.mean, second.mean, second.gain) == (1.0, 0.5, -0.5)
    assert second.auroc == [0.0, 1.0]
    # A yardstick that a fold lacks, because no mask is known in it, is left out.
    assert simple(judged) == {"a": [0.5, 0.7]}


def test_the_first_candidate_is_left_only_for_more_than_a_standard_error():
    row = rows(["a"], [_judged(np.arange(4.0), is_abnormal=np.arange(4) > 1)])[0]

    def table(*gains):
        return [row, *(row._replace(gain=g, auroc=[0.5 + g], error=e) for g, e in gains)]

    table_of = [row._replace(auroc=[0.5])]
    assert best(table_of) == 0
    assert best(table((0.02, 0.03))) == 0
    assert best(table((-0.2, 0.03))) == 0
    row = row._replace(auroc=[0.5])
    assert best(table((0.04, 0.03), (0.2, 0.3), (0.05, 0.01))) == 3


REFUSED = [
    ("data.split_seed=1", "--config.data.split_seed for all of them"),
    ("", "--try is empty"),
    ("network.no_such=1", "--try network.no_such=1: expected section.field=value"),
    ("loss.gamma=7", "config.loss.gamma"),
    ("config.growth.final_images=500", "--minutes=0"),
    ('a="b', '--try a="b: No closing quotation'),
    ("loss.gamma=0.1", "--try loss.gamma=0.1 changes nothing"),
    (None, "--try is missing: images of mnist5k"),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Of each of them the folder and what the command said."""
    given = ["compare", "--config", "mnist5k", "--workdir", "compared"]
    tries = [[] if tried is None else ["--try", tried] for tried, _ in REFUSED]
    folders = [tmp_path_factory.mktemp("tried") for _ in tries]
    said = [
        commands.command("", *given, *more, cwd=folder)
        for more, folder in zip(tries, folders, strict=True)
    ]
    return dict(zip(REFUSED, zip(folders, said, strict=True), strict=True))


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_candidate_that_cannot_be_compared_ends_before_anything_trains(refused, case):
    folder, done = refused[case]
    assert done.returncode == 2
    assert case[1] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.iterdir())


def test_candidates_are_named_by_what_must_be_added_to_the_command():
    program = """
from jax_noisy_anogan import compare
from jax_noisy_anogan.config import Config

tries = ['growth.minibatch="{\\'32\\': 8}" config.loss.gamma=0.5', "growth.final_images=500"]
for candidate in compare.candidates(Config(), tries, 0.0, 2):
    print(candidate.config.loss.gamma, candidate.config.growth.final_images, candidate.name)
"""
    given, first, second = (line.split(" ", 2) for line in _python(program).splitlines())
    assert given == [str(Config().loss.gamma), str(Config().growth.final_images), "as given"]
    assert first[:2] == ["0.5", given[1]]
    assert shlex.split(first[2]) == ["growth.minibatch={'32': 8}", "loss.gamma=0.5"]
    assert second == [given[0], "500", "growth.final_images=500"]


@pytest.mark.parametrize(
    ("given", "whole"), [("0", "data.fit=stretch"), ("2", "data.fit=stretch data.scale=0")]
)
def test_whole_photographs_have_no_scale(tmp_path, given, whole):
    (tmp_path / "normal").mkdir()
    Image.new("L", (60, 20)).save(tmp_path / "normal" / "0.png")
    program = """
import sys
from jax_noisy_anogan import compare
from jax_noisy_anogan.config import Config, DataConfig

root, scale = sys.argv[1:]
data = DataConfig(name="image_folder", root=root, fit="scale", scale=float(scale))
data.cache_dir = root + "/cache"
print(compare.candidates(Config(data=data), (), 0.0, 2)[1].name)
"""
    assert _python(program, str(tmp_path), given) == whole + "\n"


def _python(program, *arguments):
    # Flags of a command are defined once per process.
    done = commands.run("-c", program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_candidate_trains_as_the_command_that_takes_it_would():
    program = """
import sys
from jax_noisy_anogan import cli, compare

def judge(listed, parts, folder):
    print(*(candidate.config.loss.penalty_weight for candidate in listed))
    sys.exit()

compare.judge = judge
cli.run(compare.main)
"""
    tried = "loss.objective=wgan_gp loss.penalty=gp"
    arguments = ["--config", config_lib.find("mnist5k"), "--workdir", "compared", "--try", tried]
    assert _python(program, *arguments) == "1.0 10.0\n"


def test_results_are_kept_for_the_images_that_they_were_made_of(tmp_path):
    program = """
import sys
from pathlib import Path
from jax_noisy_anogan import compare
from jax_noisy_anogan.config import Config, DataConfig

trained = []

def measure(config, run, divide):
    trained.append(run)
    return None, None

compare.experiment.measure = measure
compare._columns = lambda measured: {}
compare.yardsticks.measure = lambda *given, show: {}
for root in sys.argv[2:]:
    data = DataConfig(name="image_folder", root=root, cache_dir=sys.argv[1] + "/cache")
    data.known_abnormal_fraction = 0.5
    compare.judge([compare.Candidate(Config(data=data))], 2, Path(sys.argv[1]))
    print(len(trained), len(set(trained)))
"""
    rng = np.random.default_rng(0)
    for folder in ("one", "other"):
        for kind in ("normal", "abnormal"):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number, image in enumerate(rng.integers(0, 256, (12, 8, 8), np.uint8)):
                Image.fromarray(image).save(tmp_path / folder / kind / f"{number}.png")
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert _python(program, str(tmp_path), one, one, other) == "2 2\n2 2\n4 4\n"
