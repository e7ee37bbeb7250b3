"""Self-contained HTML pages: one look for all, pictures and scripts inside, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def render_page(template: str, script: str = "", **values: Any) -> Iterator[bytes]:
    """The HTML of one of the package's templates, part by part, so that it need not be in memory at once.

    `script` names a file beside this one. Its text and the style's are the only ones that the page's
    Content-Security-Policy lets run; nothing is fetched from anywhere.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(FOLDER.parent), autoescape=select_autoescape(["j2"]))
    style, code = _text("page.css"), _text(script) if script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(code)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = environment.get_template(template).generate(
        policy=policy, style=Markup(style), script=Markup(code), **values
    )
    return (part.encode() for part in parts)


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture of that kind as an address that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def data_block(name: str, content: object) -> str:
    """A value as an inert element of the page, for its script to read; nothing in it can end the element."""
    text = json.dumps(_finite(content), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _finite(content: Any) -> Any:
    """The value without numbers that JSON lacks."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
