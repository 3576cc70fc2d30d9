"""Commands for the price of one: a process imports what they need, and forks for each of them."""

import json
import subprocess
import sys
import textwrap
from typing import NamedTuple

# Of modules that define no flags: a command that is run defines its own.
_FORKING = """
    import json, os, runpy, sys, tempfile
    import jax_noisy_anogan.experiment, jax_noisy_anogan.scoring.files

    outcomes = []
    for place, module, arguments in json.load(sys.stdin):
        files = [tempfile.TemporaryFile("w+") for _ in range(2)]
        child = os.fork()
        if child == 0:
            os.chdir(place)
            for file, stream in zip(files, (1, 2)):
                os.dup2(file.fileno(), stream)
            sys.argv = [module, *arguments]
            code = 0
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes.append([code, *(file.seek(0) or file.read() for file in files)])
    json.dump(outcomes, sys.stdout)
"""


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def outcomes(cases):
    """What became of each (folder, command, arguments), in their order; none loads a device."""
    given = [
        (str(place), f"jax_noisy_anogan{name and '.' + name}", list(map(str, arguments)))
        for place, name, arguments in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FORKING)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    return [Outcome(*one) for one in json.loads(done.stdout)]
