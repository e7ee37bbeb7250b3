"""The command as it was given, and commands that may follow it, as lines to copy into the shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import typer

from .console import say

MODULE = ("python", "-m", "anomalydiffusion_core.cli")


def command_line(*words: object) -> str:
    """This program with these arguments, quoted for the system's shell."""
    started = Path(sys.argv[0])
    program = MODULE if started.parts[-2:] == ("cli", "__main__.py") else ("anomalydiffusion",)
    line = [*program, *map(str, words)]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


def same_command(context: typer.Context, *more: str) -> str:
    """The command line that was given, with what it lacks of `more`."""
    given: list[str] = context.obj
    return command_line(*given, *(word for word in more if word not in given))


def say_next(purpose: str, *words: object) -> None:
    """Says what may come next, and by which command."""
    say(f"{purpose}:\n  {command_line(*words)}")


def free_name(beside: Path, name: str) -> Path:
    """A path beside another that does not exist yet: of this name, or numbered."""
    path, number = beside.parent / name, 2
    while path.exists():
        path, number = path.with_name(f"{name}{number}"), number + 1
    return path
