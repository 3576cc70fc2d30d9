"""What the documents name exists: files, links, commands, flags, settings."""

import dataclasses
import re
from pathlib import Path

import commands
import pytest

from jax_noisy_anogan import __main__ as shell
from jax_noisy_anogan.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXT = {page: page.read_text() for page in PAGES}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FIRST_WORDS = re.compile(r"(?:python -m jax_noisy_anogan\.|jax-noisy-anogan )(\w+)(.*)")


def _anchors(text):
    """What Markdown turns the headings of a page into."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for link in LINK.findall(TEXT[page]):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link


def test_every_picture_is_shown_on_a_page():
    shown = "\n".join(TEXT.values())
    pictures = {path.name for path in (ROOT / "docs").glob("*.png")}
    assert {name for name in pictures if name not in shown} == set()


def test_the_readme_is_a_door():
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_project_that_a_page_names_exists(page):
    named = re.findall(r"\b((?:configs|benchmarks|tests|jax_noisy_anogan)/[\w/]+\.\w+)", TEXT[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


def _commands(text):
    """Command, and its arguments, of every line of every code block; `\\` joins lines."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command, rest in FIRST_WORDS.findall(line):
                yield command, rest.replace('"', " ").partition("#")[0].split()


def _has_setting(path):
    kind = Config
    for name in path.split("."):
        fields = {field.name: field.type for field in dataclasses.fields(kind)}
        if name not in fields:
            return False
        kind = fields[name]
        if not dataclasses.is_dataclass(kind):
            return name == path.rsplit(".", 1)[-1]
    return True


COMMANDS = [found for text in TEXT.values() for found in _commands(text)]
NAMES = sorted({command for command, _ in COMMANDS})


@pytest.fixture(scope="module")
def flags_of():
    """The flags that the help of each command lists."""
    helped = [commands.command("", name, "--help", cwd=ROOT) for name in NAMES]
    assert {one.returncode for one in helped} == {0}
    listed = (set(re.findall(r"^  --(\w+): ", one.stdout, re.M)) for one in helped)
    return dict(zip(NAMES, listed, strict=True))


@pytest.mark.parametrize("command", NAMES)
def test_every_flag_in_a_code_block_is_one_of_its_command(command, flags_of):
    assert command in shell.COMMANDS
    flags = flags_of[command]
    for name, arguments in COMMANDS:
        for argument in arguments:
            if name != command or not argument.startswith("--"):
                continue
            flag = argument.removeprefix("--").partition("=")[0]
            if flag.startswith("config."):
                assert _has_setting(flag.removeprefix("config.")), argument
            else:
                assert flag in flags, f"{command} {argument}"


def test_every_setting_that_the_readme_lists_exists():
    table = TEXT[ROOT / "README.md"].partition("## Settings that matter")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:data|network|growth|loss|optim|search|score|train)\.[\w.]+)`", table)
    assert len(named) >= 10
    assert [name for name in named if not _has_setting(name)] == []
