"""Training curves on disk, and the line of progress."""

import json
import sys

import numpy as np
import pytest

from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.runtime import progress
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.training import writers
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
    _write_all(MetricWriter(tmp_path, from_step=0, writers=["tensorboard"]))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"d_loss" in events.read_bytes()
    assert b"samples" in events.read_bytes()


def test_mlflow_gets_the_same_values_and_goes_on_with_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    for _ in range(2):
        _write_all(MetricWriter(tmp_path / "run", from_step=0, writers=["mlflow"]))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("jax-noisy-anogan")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"d_loss": 0.5}


def test_wandb_gets_pictures_and_prints_nothing(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _write_all(MetricWriter(tmp_path, from_step=0, writers=["wandb"]))
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples*.png"))
    assert capfd.readouterr() == ("", "")


def _write_all(writer):
    writer.write(10, {"d_loss": 0.5, "collapse": "no number"})
    writer.picture(10, np.zeros((4, 4, 1), np.uint8))
    writer.close()


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_writer_that_is_not_installed_is_one_line(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"config\.train\.writers needs {module}: pip install"):
        MetricWriter(tmp_path, from_step=0, writers=[name])


def test_a_writer_that_fails_never_stops_training(tmp_path, monkeypatch, caplog):
    class Full:
        def __init__(self, *_, **__):
            pass

        def write(self, step, values):
            raise RuntimeError("the server\nis gone")

    monkeypatch.setitem(writers.WRITERS, "mlflow", Full)
    writer = MetricWriter(tmp_path, from_step=0, writers=["mlflow"])
    for step in (1, 2):
        writer.write(step, {"d_loss": 0.5})
    writer.close()
    assert _steps(tmp_path) == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "mlflow gets nothing more of this phase (RuntimeError: the server is gone)"
    ]


def test_a_writer_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no server")

    monkeypatch.setitem(writers.WRITERS, "wandb", refuse)
    with pytest.raises(ConfigError, match=r"config\.train\.writers: wandb .*no server"):
        MetricWriter(tmp_path, from_step=0, writers=["wandb"])


def test_a_writer_that_cannot_be_opened_again_stops_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("no server")

    monkeypatch.setitem(writers.WRITERS, "wandb", refuse)
    writer = MetricWriter(tmp_path, from_step=8, writers=["wandb"], required=False)
    writer.write(9, {"d_loss": 0.5})
    writer.close()
    assert _steps(tmp_path) == [9]
    assert caplog.messages == ["wandb gets nothing of this phase (RuntimeError: no server)"]


def test_a_run_of_wandb_belongs_to_one_folder_wherever_it_lies(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", _Recorder(calls))
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        writers.WandB(tmp_path / folder, from_step=0)
    ids = [named["id"] for name, _, named in calls if name == "init"]
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / "one").rename(tmp_path / "moved")
    writers.WandB(tmp_path / "moved", from_step=0)
    assert [named["id"] for name, _, named in calls if name == "init"][-1] == ids[0]


class _Recorder:
    """Stands in for a library: every call is noted, every result is this again."""

    def __init__(self, calls, name=""):
        self._calls, self._name = calls, name

    def __getattr__(self, name):
        return _Recorder(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *values, **named):
        self._calls.append((self._name, values, named))
        return self


def test_every_writer_gets_numbers_pictures_and_an_end(tmp_path, monkeypatch):
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        calls = []
        monkeypatch.setitem(sys.modules, module, _Recorder(calls))
        _write_all(MetricWriter(tmp_path, from_step=3, writers=[name]))
        said = str(calls)
        assert "d_loss" in said
        assert "0.5" in said
        assert "samples" in said
        assert "no number" not in said
        assert calls[-1][0].rpartition(".")[2] in ("close", "finish")
        # What is at the step itself is the end of the phase before, and stays.
        if name == "tensorboard":
            assert calls[0][2] == {"purge_step": 4}


def test_progress_off_the_terminal_tells_rate_and_time_left_at_the_end(capsys):
    with ProgressLine("score", total=4, done=1, unit="images") as line:
        line.update(2)
        line.update(4, "all done")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("score: 4 of 4, ")
    assert said.endswith(", all done, took 0:00:00")


def test_the_rate_and_the_time_left_leave_out_what_came_before_the_first_piece(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressLine("search", total=64, unit="images") as line:
        for done in range(1, 17):  # a batch at a time; compiling takes 100 seconds
            now = 100.0 + 0.001 * done
            line.update(done)
        for done in range(17, 33):
            now = 132.0 + 0.001 * done
            line.update(done)
        now = 150.0
        line.update(40, left=75.0)
        now = 164.0
        line.update(64)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "search: 1 of 64",
        "search: 17 of 64, 2.0 s per image, 0:01:34 left",
        "search: 40 of 64, 1.3 s per image, 0:01:15 left",
        "search: 64 of 64, 2.6 s per image, took 0:02:44",
    ]


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, ""), (1234.5, "1,234 images/s"), (2.34, "2.3 images/s"), (0.25, "4.0 s per image")],
)
def test_a_rate_is_written_in_the_unit_that_fits(rate, words):
    assert progress.rate_in_words(rate, "images") == words


def test_silenced_progress_says_nothing(capsys):
    with ProgressLine("score", total=1, unit="images", show=False) as line:
        line.update(1)
    assert capsys.readouterr() == ("", "")
