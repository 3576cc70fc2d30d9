"""Training curves on disk, and the line of progress."""

import json
import sys

import pytest

from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.settings import ConfigError
from jax_noisy_anogan.training.journal import MetricWriter


def _steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_curves_go_on_without_gap_or_repeat_after_a_kill(tmp_path):
    writer = MetricWriter(tmp_path, from_step=0)
    for step in (10, 20, 30):
        writer.write(step, {"d_loss": 0.5})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "d_lo')
    writer = MetricWriter(tmp_path, from_step=20)
    writer.write(30, {"d_loss": 0.25})
    writer.close()
    assert _steps(tmp_path) == [10, 20, 30]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["d_loss"] == 0.25


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra `logging`")
    writer = MetricWriter(tmp_path, from_step=0, tensorboard=True)
    writer.write(10, {"d_loss": 0.5, "collapse": "no number"})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"d_loss" in events.read_bytes()


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"config\.train\.tensorboard needs tensorboardX: pip"):
        MetricWriter(tmp_path, from_step=0, tensorboard=True)


def test_progress_off_the_terminal_tells_rate_and_time_left_at_the_end(capsys):
    with ProgressLine("score", total=4, done=1, unit="images") as line:
        line.update(2)
        line.update(4, "all done")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("score: 4 of 4, ")
    assert said.endswith("images/s all done, 0:00:00 left")


def test_silenced_progress_says_nothing(capsys):
    with ProgressLine("score", total=1, unit="images", show=False) as line:
        line.update(1)
    assert capsys.readouterr() == ("", "")
