"""The list of deliberate faults fits the code: `benchmarks/deliberate_faults.py` can run."""

import ast
import sys
from pathlib import Path

import pytest

import jax_noisy_anogan

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import deliberate_faults

PACKAGE = Path(jax_noisy_anogan.__file__).parent


def test_every_fault_still_has_its_place():
    assert deliberate_faults.outdated(PACKAGE) == []


def test_an_outdated_fault_is_named(monkeypatch):
    wrong = deliberate_faults.Fault("a fault", "errors.py", "no such text", "x", "test_cli.py")
    for fault in (wrong, wrong._replace(file="missing.py"), wrong._replace(old="", new="")):
        monkeypatch.setattr(deliberate_faults, "FAULTS", (fault,))
        (line,) = deliberate_faults.outdated(PACKAGE)
        assert line.startswith("a fault: ")


@pytest.mark.parametrize("fault", deliberate_faults.FAULTS, ids=lambda fault: fault.name)
def test_every_faulty_file_is_still_python_and_its_tests_exist(fault):
    ast.parse((PACKAGE / fault.file).read_text().replace(fault.old, fault.new))
    assert (Path(__file__).parent / fault.tests.split()[0].split("::")[0]).is_file()
