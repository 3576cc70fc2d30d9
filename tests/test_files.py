"""Result files are whole and on disk, or absent; a folder is held by one process at a time."""

import ast
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import pictures
from jax_noisy_anogan.runtime import files

PACKAGE = Path(jax_noisy_anogan.__file__).parent

WRITERS = {
    "text": lambda path: files.write_text(path, "new"),
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "npz": lambda path: files.save_npz(path, values=np.arange(3)),
    "png": lambda path: pictures.save_png(path, np.zeros((4, 5, 3), np.uint8)),
    "tiff": lambda path: pictures.save_float_tiff(path, np.ones((4, 5))),
    "figure": lambda path: pictures.save_figure(path, Figure(figsize=(1, 1))),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_before_the_writer_returns(
    write, tmp_path, monkeypatch
):
    path, events = tmp_path / "result.x", []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(
            "folder on disk" if folder else ("file on disk", os.fstat(descriptor).st_size)
        )
        fsync(descriptor)

    def noted_replace(self, target):
        events.append(("renamed", Path(target), self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write(path)
    size = path.stat().st_size
    assert size > 0
    assert events == [("file on disk", size), ("renamed", path, size), "folder on disk"]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_writer_that_stops_half_way_leaves_the_earlier_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "result"
    files.write_text(path, "earlier")

    def write():
        with files.written(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["result"]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with (
        pytest.raises(OSError, match="full") as full,
        files.written(tmp_path / "result"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert full.value.filename == str(tmp_path / "result")
    assert full.value.errno == errno.ENOSPC


def test_written_arrays_and_pictures_read_back_as_they_were(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    files.save_npz(tmp_path / "a.npz", values=values)
    pictures.save_float_tiff(tmp_path / "a.tiff", values)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["values"], values)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tiff")), values)
    name = os.fsdecode(b"bytes-\xff")
    files.write_text(tmp_path / "a.txt", f"ü {name}")
    assert (tmp_path / "a.txt").read_bytes() == "ü bytes-\\udcff".encode()


def test_writers_of_one_file_do_not_end_each_other_and_leave_one_whole_content(tmp_path):
    path, contents = tmp_path / "result", [bytes([value]) * 100_000 for value in range(8)]

    def write(content):
        for _ in range(20):
            with files.written(path) as file:
                for start in range(0, len(content), 10_000):
                    file.write(content[start : start + 10_000])
                    file.flush()

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["result"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    program = """
import os, sys
from pathlib import Path
from jax_noisy_anogan.runtime import files
with files.written(Path(sys.argv[1])) as file:
    file.write(b"half of a long content")
    file.flush()
    os.kill(os.getpid(), 9)
"""
    path = tmp_path / "result"
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    files.write_text(path, "whole")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["result"]


def test_a_file_is_written_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.write_text(tmp_path / "result", "whole")
    assert (tmp_path / "result").read_text() == "whole"


def _opens_for_writing(call):
    """Whether a call opens a file for replacing its content, or writes one past `written`."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "savefig":
        return not (call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == "file")
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("write_text", "write_bytes"):
        return not (isinstance(call.func.value, ast.Name) and call.func.value.id == "files")
    named = isinstance(call.func, ast.Name) and call.func.id == "open"
    method = isinstance(call.func, ast.Attribute) and call.func.attr == "open"
    modes = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return (named or method) and any(set(text) <= set("wxbt+") for text in texts)


def test_no_module_writes_a_file_past_the_one_writer():
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in PACKAGE.rglob("*.py")
        if file.relative_to(PACKAGE) != Path("runtime/files.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and _opens_for_writing(node)
    ]
    assert found == []


_HOLDER = """
import sys, time
from pathlib import Path
from jax_noisy_anogan.runtime import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_lets_go_of_its_folder(tmp_path):
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(files.WorkdirError, match=r"--out .* in use by another command"),
            files.locked(tmp_path, flag="--out", user="command"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with files.locked(tmp_path):
        assert os.listdir(tmp_path) == ["lock"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text(json.dumps("precious"))
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(files.WorkdirError, match="cannot be written"),
        files.locked(tmp_path / "run"),
    ):
        pass
    assert json.loads((tmp_path / "precious").read_text()) == "precious"
