"""Every command under one name: `jax-noisy-anogan COMMAND`."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys

PROGRAM = "jax-noisy-anogan"
COMMANDS = {
    "train": "train a model on the images of a config, and evaluate it",
    "evaluate": "score a run's held-out images again",
    "test": "test a trained run on a new labelled folder",
    "score": "score image files with a trained run",
    "compare": "compare settings by cross-validation inside the training part",
    "describe": "print what a data set holds, and draw a contact sheet",
    "prepare": "write a data set's records",
    "export": "write a trained run as one file that needs only jax",
    "reproduce": "make the paper's tables and figures",
}


def usage() -> str:
    """What `--help` prints: one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` lists the flags of a command.",
            f"`{PROGRAM} --version` prints the version.",
        ]
    )


def main() -> None:
    """Run the command that the first argument names."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"{PROGRAM} {importlib.metadata.version(PROGRAM)}")
    elif not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
    elif arguments[0] in COMMANDS:
        sys.argv = [arguments[0], *arguments[1:]]
        runpy.run_module(f"jax_noisy_anogan.{arguments[0]}", run_name="__main__", alter_sys=True)
    else:
        expected = ", ".join(COMMANDS)
        sys.exit(f"{PROGRAM}: {arguments[0]!r} is no command: expected one of {expected}")


if __name__ == "__main__":
    main()
