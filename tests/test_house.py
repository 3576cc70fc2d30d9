"""The plan of the package: which room may import which, and what lives at the root."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import jax_noisy_anogan

PACKAGE = Path(jax_noisy_anogan.__file__).parent
COMMANDS = {
    "train",
    "evaluate",
    "test",
    "score",
    "compare",
    "export",
    "prepare",
    "describe",
    "reproduce",
}
# From the ground up: a room may import itself and what stands before it.
STOREYS = (
    "errors",
    "settings",
    "config",
    "networks",
    "losses",
    "latent_search",
    "runtime",
    "pictures",
    "data",
    "model",
    "training",
    "scoring",
    "baselines",
    "evaluation",
    "experiment",
    "cli",
    "reproduction",
)


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


# A wheel brings the configs inside the package; a checkout keeps them beside it.
MODULES = {
    _module(file): file
    for file in PACKAGE.rglob("*.py")
    if "configs" not in file.relative_to(PACKAGE).parts
}


def _imported(file: Path) -> set[str]:
    """Modules of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            below = node.module.removeprefix(PACKAGE.name).removeprefix(".")
            for alias in node.names:
                longer = f"{below}.{alias.name}".removeprefix(".")
                found.add(longer if longer in MODULES else below)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {
                n.removeprefix(f"{PACKAGE.name}.")
                for n in names
                if n.startswith(f"{PACKAGE.name}.")
            }
    return found & MODULES.keys()


def _room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_towards_the_ground(module):
    room = _room(module)
    if room in ("", "__main__"):
        return
    for imported in _imported(MODULES[module]) - {""}:
        target = _room(imported)
        assert target not in COMMANDS, f"{module} imports the command {imported}"
        if room not in COMMANDS and target != room:
            assert STOREYS.index(target) < STOREYS.index(room), f"{module} imports {imported}"


def test_no_two_modules_import_each_other_even_through_others():
    inside = {
        name: {i for i in _imported(file) if i and i != name and _room(i) == _room(name)}
        for name, file in MODULES.items()
        if file.name != "__init__.py"
    }
    order = graphlib.TopologicalSorter({k: v & inside.keys() for k, v in inside.items()})
    list(order.static_order())  # raises CycleError


def test_the_root_holds_commands_and_the_paper():
    at_root = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert at_root <= COMMANDS | set(STOREYS)
    assert rooms <= set(STOREYS)


_LOADED = """
import sys
import jax_noisy_anogan
assert not [name for name in sys.modules if name.startswith("jax_noisy_anogan.")]
jax_noisy_anogan.load
import jax_noisy_anogan.score
print(*sys.modules)
"""


def test_scoring_loads_neither_the_training_loop_nor_the_evaluation():
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "jax_noisy_anogan.scoring.detector" in loaded
    unwanted = {"training.loop", "training.step", "training.journal", "evaluation", "experiment"}
    unwanted |= {"baselines", "reproduction"}
    found = {
        name
        for name in loaded
        for prefix in unwanted
        if f"{name}.".startswith(f"jax_noisy_anogan.{prefix}.")
    }
    assert not found
    # Each of them takes a second or more.
    assert not loaded & {"tensorflow", "tensorflow_datasets", "grain", "sklearn", "scipy.stats"}
