"""The commands of the README and of the first page for own images do what they say: each is run.

Only sizes differ: networks of 8 x 8 and one update, instead of minutes of training.
"""

import re
import shlex
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/inspection.md")}
SMALL = {
    "data.max_test_images": 40,
    "network.fmap_base": tiny.WIDTHS["fmap_base"],
    "network.fmap_max": tiny.WIDTHS["fmap_max"],
    "network.latent_size": tiny.WIDTHS["latent_size"],
    "growth.start_resolution": 8,
    "growth.resolution": 8,
    "growth.minibatch_default": 32,
    "growth.final_images": 32,
    "search.steps": 1,
    "search.batch_size": 8,
}
# The gate installs and runs these; `search.steps=500` takes minutes.
ELSEWHERE = ("python -m venv", "pip install")


def _commands(page):
    """Every command of a page, in its order: lines of shell blocks, and those within sentences."""
    found = re.findall(
        r"^```sh\n(.*?)^```|`((?:jax-noisy-anogan|python -m) [^`]*)`", page, re.M | re.S
    )
    lines = [line for block, inline in found for line in (block or inline).splitlines()]
    return [line for line in lines if not line.startswith(ELSEWHERE)]


def _python(page):
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    return block


def _photographs(folder, count, seed, *, spot=False):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, image in enumerate(rng.normal(120, 12, (count, 24, 32))):
        if spot:
            # Elsewhere in each: photographs that look alike fall to one side of a split.
            down, right = rng.integers(0, (18, 26))
            image[down : down + 6, right : right + 6] = 255
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def desk(tmp_path):
    """A folder with the photographs that the pages speak of."""
    _photographs(tmp_path / "PHOTOS/normal", 40, 0)
    _photographs(tmp_path / "PHOTOS/abnormal/spot", 16, 1, spot=True)
    _photographs(tmp_path / "NEW_PHOTOS", 3, 2)
    _photographs(tmp_path / "LABELLED/normal", 20, 3)
    _photographs(tmp_path / "LABELLED/abnormal/spot", 6, 4, spot=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/good").symlink_to(tmp_path / "PHOTOS/normal")
    (tmp_path / "photos/bad").symlink_to(tmp_path / "PHOTOS/abnormal/spot")
    for name in "ab":
        (tmp_path / f"{name}.png").symlink_to(tmp_path / "NEW_PHOTOS/0.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def _run(desk, *arguments):
    done = commands.run(*arguments, cwd=desk)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _run_line(desk, line):
    program, *arguments = shlex.split(line)
    module = {"python": [], "jax-noisy-anogan": ["-m", "jax_noisy_anogan"]}[program]
    return _run(desk, *module, *arguments)


def _small(desk):
    return SMALL | {"data.cache_dir": str(desk / "cache")}


def _at_small_size(desk, line):
    if not re.search(r"[ .](train|compare) ", line):
        return line
    if " compare " in line:
        line += " --minutes=0 --folds=2"
    return " ".join([line, *(f"--config.{name}={value}" for name, value in _small(desk).items())])


def test_every_command_of_the_readme_and_the_inspection_page_runs_in_its_order(desk):
    lines = list(dict.fromkeys(line for page in PAGES.values() for line in _commands(page)))
    verbs = [re.search(r"jax[-_]noisy[-_]anogan[ .](\w+)", line)[1] for line in lines]
    assert verbs == ["train", "describe", "train", "score", "test", "evaluate", "compare"]
    printed = {}
    for verb, line in zip(verbs, lines, strict=True):
        printed[verb] = _run_line(desk, _at_small_size(desk, line))
    assert "held-out images" in printed["train"]
    assert (desk / "runs/mnist5k/report.html").exists()
    assert (desk / "runs/mine/report.html").exists()
    rows = (desk / "scored/scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    assert "as given" in printed["compare"]
    assert "data.fit=scale" in printed["compare"]
    kept = {path: path.stat().st_mtime_ns for path in (desk / "runs/compared/runs").rglob("*.json")}
    assert len(list((desk / "runs/compared/runs").glob("*/judged.json"))) == 4
    again = _run_line(desk, _at_small_size(desk, lines[verbs.index("compare")]))
    assert again == printed["compare"]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    # What the pages say of flags.
    _run_line(desk, f"{lines[verbs.index('test')]}-again --recalibrate")
    score = f"{lines[verbs.index('score')]}-again"
    _run_line(desk, f"{score} --calibration tested-again --heatmaps all --maps")
    assert len(list((desk / "scored-again").rglob("*.tif*"))) == 3


def test_the_python_of_the_pages_runs(desk):
    (program,) = {_python(page) for page in PAGES.values()}
    assert program.count("minutes=10") == 1
    changes = [f"{name}={value}" for name, value in _small(desk).items()]
    program = program.replace("minutes=10", f"minutes=10, changes={changes}")
    printed = _run(desk, "-c", program)
    assert len(re.findall(r"^(?:True|False) [01]\.\d+ ", printed, re.M)) == 2
