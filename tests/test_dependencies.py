"""Every package that is imported is declared, and every declared one is imported."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Not imported by name, and needed all the same.
INDIRECT = {
    "array-record": "TFDS and grain write and read the records with it, and leave it optional",
    "flatbuffers": "jax.export reads and writes artefacts with it, and leaves it optional",
}
# Distributions of modules that an extra names, or that the documentation says how to install.
OPTIONAL = {"jax2onnx"}
# Tools and plug-ins.
TOOLS = {"ruff", "mypy", "pytest-xdist"}


def _name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def _declared(*extras: str) -> set[str]:
    optional = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(optional[extra] for extra in extras)]
    return {_name(requirement) for requirements in lists for requirement in requirements}


def _imported(folder: Path) -> set[str]:
    """Top-level modules that the files below a folder import from elsewhere."""
    own = {"jax_noisy_anogan", *(file.stem for file in ROOT.glob("*/*.py"))}
    own |= {file.parent.name for file in ROOT.glob("*/*.py")}
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - own - sys.stdlib_module_names


def _distributions(modules: set[str]) -> dict[str, set[str]]:
    """The distributions that may hold each module; its own name where it is not installed."""
    known = importlib.metadata.packages_distributions()
    return {module: {_name(d) for d in known.get(module, [module])} for module in modules}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("jax_noisy_anogan", []),
        ("configs", []),
        ("tests", ["test", "bench", "onnx", "logging"]),
        ("benchmarks", ["bench", "test"]),
    ],
)
def test_every_imported_package_is_declared(folder, extras):
    declared = _declared(*extras) | OPTIONAL
    missing = {
        module: sorted(names)
        for module, names in _distributions(_imported(ROOT / folder)).items()
        if not names & declared
    }
    assert missing == {}


def test_every_required_package_is_imported_by_the_package_itself():
    found = set().union(*_distributions(_imported(ROOT / "jax_noisy_anogan")).values())
    assert _declared() - found - INDIRECT.keys() == set()
    assert INDIRECT.keys() <= _declared()


def test_every_package_of_an_extra_for_developers_is_imported():
    for extra, folder in (("test", "tests"), ("bench", "benchmarks")):
        found = set().union(*_distributions(_imported(ROOT / folder)).values())
        declared = {_name(line) for line in PROJECT["optional-dependencies"][extra]}
        assert declared - found - TOOLS == set()
