"""Standard error belongs to the program: no line of a library, no prefix with a thread number."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.data.decode import Pixels, decode_image
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.runtime.messages import PACKAGE

_PROGRAM = f"""
import gc, logging, os, signal, sys, threading, time, warnings
from absl import logging as absl_logging
from jax_noisy_anogan import cli

# A shell's `&` has it ignored, and a program inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

def fail():
    raise ValueError("a thread of a library")

def main(arguments):
    os.write(2, b"past Python\\n")
    warnings.warn("of a library")
    absl_logging.warning("of grain")
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    ours = "from absl import logging; logging.warning('checkpoint %d is\\\\ndamaged', 7)"
    exec(compile(ours, {str(PACKAGE / "model.py")!r}, "exec"))
    print("a line of progress", file=sys.stderr)
    if "crash" in arguments:
        os.abort()
    if "terminated" in arguments:
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached", file=sys.stderr)
    if arguments and arguments[0] == "collected":
        # A signal that comes while the garbage collector calls back: what it raises there is lost.
        number = signal.Signals[arguments[1]]
        sent = []

        def send(phase, info):
            if not sent:
                sent.append(number)
                os.kill(os.getpid(), number)

        class Late(threading.Timer):
            # Its thread has run before the caller goes on, as on a busy machine.
            def start(self):
                super().start()
                if len(sent) == 1:
                    sent.append("late")
                    for _ in range(30):
                        time.sleep(0.01)

        if "late" in arguments:
            threading.Timer = Late
        gc.callbacks.append(send)
        gc.collect()
        gc.callbacks.pop()
        for _ in range(3000):
            time.sleep(0.01)
        print("not reached", file=sys.stderr)

cli.run(main)
"""


def _run(tmp_path, *arguments, **environment):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_only_the_programs_own_lines_reach_standard_error(tmp_path):
    done = _run(tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "program: warning: checkpoint 7 is damaged",
        "a line of progress",
    ]


def test_a_crash_of_native_code_is_still_told(tmp_path):
    done = _run(tmp_path, "crash")
    assert done.returncode == -6
    assert "Fatal Python error: Aborted" in done.stderr
    assert "past Python" not in done.stderr


def test_sigterm_ends_a_command_with_one_line_and_the_code_of_a_stop(tmp_path):
    done = _run(tmp_path, "terminated")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-2:] == [
        "a line of progress",
        "program: stopped: what is finished is kept, and the same command goes on with it",
    ]


def test_developers_can_have_everything(tmp_path):
    said = _run(tmp_path, JAX_NOISY_ANOGAN_TRACEBACK="1").stderr
    for line in ("past Python", "of a library", "of grain", "never retrieved", "a thread of a"):
        assert line in said


def _damaged_tiff(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "TIFF", compression="tiff_adobe_deflate")
    content = bytearray(whole.getvalue())
    for place in range(20, 60):
        content[place] ^= 0x5A
    path.write_bytes(content)
    return path


def test_libtiff_prints_nothing_while_images_are_decoded_and_as_before_afterwards(tmp_path, capfd):
    path = _damaged_tiff(tmp_path / "a.tif")
    with pytest.raises(BadImageError, match="damaged or cut off"):
        decode_image(path, Pixels(channels=1, max_pixels=10_000))
    assert capfd.readouterr().err == ""
    with Image.open(path) as picture, pytest.raises(OSError, match="decoder error"):
        picture.load()
    assert "ZIPDecode" in capfd.readouterr().err


@pytest.mark.parametrize("late", [(), ("late",)])
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_that_comes_while_garbage_is_collected_stops_too(tmp_path, number, code, late):
    done = _run(tmp_path, "collected", number, *late)
    assert done.returncode == code
    assert "not reached" not in done.stderr
