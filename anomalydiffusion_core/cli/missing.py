"""What is said where a library is missing that the command line needs; imports none itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .. import NAME

CHECKOUT = Path(__file__).parents[2]


def sentence(error: ModuleNotFoundError) -> str:
    """Which library is missing, and how to get all of them; raises `error` where it is a module of ours."""
    if not error.name or error.name.startswith("anomalydiffusion_core"):
        raise error
    package = f'"{CHECKOUT}"' if (CHECKOUT / "pyproject.toml").is_file() else NAME
    return (
        f"{error.name.partition('.')[0]} is not installed, which this needs: python -m pip install {package}"
    )


def without(error: ModuleNotFoundError) -> Callable[[], None]:
    """The command line that cannot start: it says why, and ends with exit code 2."""
    said = sentence(error)

    def app() -> None:
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)

    return app
