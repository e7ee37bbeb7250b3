"""Lists of pairs, as the report hands them out: plain text, the path of one pair's image a line."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path


def read_pair_list(path: Path) -> list[str]:
    """The pairs that a file lists. Raises ValueError where it cannot be read, or lists none."""
    try:
        names = pairs_in(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give the list that the report lets you download.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"{path} cannot be read as a list of pairs ({reason}): give a text file.") from None
    if not names:
        raise ValueError(f"{path} lists no pairs: write one a line, such as leather/test/cut/00012.png.")
    return names


def pairs_in(text: str) -> list[str]:
    """The pairs that a text lists: blank lines, and those that begin with #, say nothing."""
    lines = [line.strip().replace("\\", "/") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def accepted_among(
    names: Iterable[str], accepted: Container[str], moved: Container[str], root: Path
) -> list[str]:
    """Those of `names` that are still accepted, each once; those that were `moved` before are passed over.

    Raises ValueError where there is no such pair.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in accepted and name not in moved:
            raise ValueError(
                f"There is no pair {name!r} in {root}: name pairs by their images, such as "
                "leather/test/cut/00012.png, as the report lists them."
            )
    return [name for name in chosen if name in accepted]
