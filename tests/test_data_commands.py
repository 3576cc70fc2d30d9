"""`describe` and `prepare` as a user meets them: their output, and one line for every mistake."""

import re
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import Config, DataConfig, SyntheticConfig, changed
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.summary import pixel_statistics

ROOT = Path(__file__).parents[1]
CONFIGS = [f"configs/{path.name}" for path in sorted((ROOT / "configs").glob("*.py"))]


def _run(command, *arguments):
    return commands.command(command, *arguments, cwd=ROOT, COLUMNS="120")


MNIST5K = ("--config", "configs/mnist5k.py")
MISTAKES = {
    "no config": ((), "--config is missing"),
    "no such file": (("--config", "configs/nope.py"), "configs/nope.py"),
    "no such file, with a setting": (
        ("--config", "configs/nope.py", "--config.data.digit=3"),
        "configs/nope.py",
    ),
    "a folder": (("--config", "configs"), "configs is no file"),
    "not Python": (("--config", "pyproject.toml"), "pyproject.toml"),
    "no such variant": (("--config", "configs/mnist5k.py:nope"), "variant 'nope'"),
    "no such section": ((*MNIST5K, "--config.nope=1"), "config.nope is not a setting"),
    "no such field": ((*MNIST5K, "--config.data.nope=1"), "config.data.nope is not a setting"),
    "no such flag": ((*MNIST5K, "--nope=1"), "nope"),
    "a stray word": ((*MNIST5K, "nope"), "'nope' is not expected"),
    "text for a number": ((*MNIST5K, "--config.data.digit=x"), "config.data.digit=x"),
    "a fraction for a count": ((*MNIST5K, "--config.data.digit=1.5"), "config.data.digit=1.5"),
    "out of range": ((*MNIST5K, "--config.data.digit=10"), "config.data.digit is 10"),
    "not a choice": ((*MNIST5K, "--config.data.fit=bend"), "stretch, crop, pad"),
    "not a bool": ((*MNIST5K, "--config.data.flip_vertical=so"), "config.data.flip_vertical=so"),
    "numbers for names": (
        (*MNIST5K, "--config.data.known_abnormal_classes=(1, 2)"),
        "known_abnormal_classes is (1, 2): expected a value of type tuple[str, ...]",
    ),
    "no root": (("--config", "configs/caltech256.py"), "config.data.root is ''"),
    "no such root": (
        ("--config", "configs/mnist.py", "--config.data.root=/nowhere"),
        "/nowhere is not a folder",
    ),
    "another folder": (
        ("--config", "configs/magnetic_tile.py", f"--config.data.root={ROOT}"),
        "has no MT_Free",
    ),
    "no cache": (
        ("--config", "configs/synthetic.py", "--config.data.cache_dir=/dev/null"),
        "config.data.cache_dir",
    ),
    "no place for the sheet": ((*MNIST5K, "--contact_sheet=/nowhere/a.png"), "--contact_sheet"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_on_standard_error(name):
    code, output, errors = _run("describe", *MISTAKES[name][0])
    assert code == 2, errors
    assert output == ""
    assert errors.startswith("describe: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert MISTAKES[name][1] in errors


def test_faint_training_images_are_warned_of_with_the_settings_that_mend_it(tmp_path, caplog):
    data = DataConfig(
        name="synthetic",
        cache_dir=str(tmp_path),
        synthetic=SyntheticConfig(images=20, abnormal_images=4, texture="brushed"),
    )
    dataset = load_dataset(data, resolution=32, progress=False)
    split = make_split(dataset, data)
    pixels = dataset.images(split.train_normal, 32) / 255.0
    mean, std = pixel_statistics(dataset, split.train_normal)
    np.testing.assert_allclose([mean, std], [pixels.mean(), pixels.std()], rtol=1e-6)

    config = Config(data=data)
    experiment._warn_of_faint_images(config, dataset, split)
    assert f"--config.data.pixel_mean={mean:.3f} --config.data.pixel_std={std:.3f}" in caplog.text
    caplog.clear()
    scaled = changed(config, [f"data.pixel_mean={mean:.3f}", f"data.pixel_std={std:.3f}"])
    experiment._warn_of_faint_images(scaled, dataset, split)
    assert not caplog.text


def test_describe_prints_table_1_and_the_split_and_writes_a_contact_sheet(tmp_path):
    code, output, errors = _run(
        "describe",
        *MNIST5K,
        f"--config.data.cache_dir={tmp_path}",
        "--config.growth.start_resolution=8",
        "--config.growth.resolution=8",
        "--config.data.digit=7",
    )
    assert code == 0, errors
    assert re.search(r"paper +│ +MNIST +│ +70,000 +│ +10 ", output)
    assert re.search(r"here +│ +MNIST +│ +5,000 +│ +10 ", output)
    assert "28 to 28, median 28" in output
    assert re.search(r"│ 7 +│ +298 +│ +0 │ +52 │", output)
    (sheet,) = tmp_path.glob("*/contact_sheet.png")
    with Image.open(sheet) as picture:
        assert picture.height > 10 * 96


def test_prepare_lists_what_it_left_out(tmp_path):
    for number in range(6):
        (tmp_path / "data/normal").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / f"data/normal/{number}.png")
    bad = tmp_path / "data/normal/bad.png"
    bad.write_text("text")
    arguments = (
        "--config",
        "configs/magnetic_tile.py",
        "--config.data.layout=plain",
        f"--config.data.root={tmp_path / 'data'}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.growth.resolution=8",
    )
    code, _, errors = _run("prepare", *arguments)
    assert code == 2
    assert errors.splitlines()[-1] == f"prepare: {bad}: not an image, whatever its name says"
    code, output, _ = _run("prepare", *arguments, "--config.data.on_bad_image=skip")
    assert code == 0
    assert f"left out {bad}: not an image" in output
    assert "left out in all 1: not an image, whatever its name says 1; listed in" in output


def test_starting_a_command_imports_nothing_that_only_its_work_needs():
    code = "import sys, jax_noisy_anogan.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "jax_noisy_anogan.experiment" in loaded
    assert not loaded & {"tensorflow_datasets", "grain", "mlxtend", "sklearn"}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_file_says_how_to_run_it(config):
    text = (ROOT / config).read_text()
    if config.endswith("toy2d.py"):
        assert "jax_noisy_anogan.reproduce figure3" in text
    else:
        assert f"--config {config}" in text or f"--config {Path(config).stem} " in text
