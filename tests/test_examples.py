"""The scripts of `examples/` run, at a small size; so does the notebook, which takes minutes."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_example(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here():
    tested = Path(__file__).read_text()
    assert [e.name for e in EXAMPLES.glob("*.py") if f'"{e.name}"' not in tested] == []


def test_more_steps_of_the_paper_s_rule_bring_the_search_nearer(run_example):
    def left_over(steps):
        line = run_example("own_search.py", "--steps", steps).splitlines()[0]
        return float(line.partition("L' ")[2].split()[0])

    assert left_over(12) < left_over(2)


def test_known_defects_are_compared_with_none(run_example, tmp_path):
    printed = run_example("known_defects.py", "--workdir", tmp_path, "--images", 32).splitlines()
    lines = [line for line in printed if line.startswith("gamma")]
    assert [line.partition(":")[0] for line in lines] == ["gamma = 1.0", "gamma = 0.5"]
    assert all(0.0 <= float(line.split()[-1]) <= 1.0 for line in lines)


def test_photographs_are_listed_most_abnormal_first(run_example, finished_run, tmp_path):
    _, folder = finished_run
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    printed = run_example("score_photographs.py", "--workdir", folder, *paths).splitlines()
    assert {line.partition(":")[0] for line in printed} == {str(path) for path in paths}
    found = [float(line.split("anomaly ")[1].split(",")[0]) for line in printed]
    assert found == sorted(found, reverse=True)


def _cells():
    return json.loads((EXAMPLES / "first_defects.ipynb").read_text())["cells"]


def test_the_notebook_was_run_from_top_to_bottom_and_shows_pictures():
    run = [cell for cell in _cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in run] == list(range(1, len(run) + 1))
    outputs = [output for cell in run for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_notebook_finds_every_defect(tmp_path):
    """In a process of its own: on one device, and as users compile."""
    cells = ["".join(cell["source"]) for cell in _cells() if cell["cell_type"] == "code"]
    tell = "import json; print(json.dumps({name: one.anomaly for name, one in found.items()}))"
    printed = subprocess.run(
        [sys.executable, "-c", "\n".join([*cells, tell])],
        cwd=tmp_path,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    anomalies = json.loads(printed.stdout.splitlines()[-1])
    good = [value for name, value in anomalies.items() if name.endswith("good")]
    assert max(good) < min(value for value in anomalies.values() if value not in good)
