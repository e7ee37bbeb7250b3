"""Self-contained HTML pages: one look for all reports, pictures inside, written whole or not at all."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import Any


def render_page(template: str, **values: Any) -> str:
    """HTML of one of the package's templates."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=select_autoescape(["j2"])
    )
    return environment.get_template(template).render(**values)


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole, in place of an earlier one; raises OSError where that is impossible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
