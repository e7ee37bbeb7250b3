"""What a node shows below itself: pictures that hold their own text, since no host shows a node's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from ..anomalydiffusion_core.gate.lettering import BRIGHT, TITLE, Colour, Paragraph, written
from .host.pixels import picture_image

if TYPE_CHECKING:
    from PIL.Image import Image

CARD = 640  # pixels wide


def card(title: str, lines: Sequence[str], colour: Colour = BRIGHT) -> Image:
    """A title and lines of text as a picture."""
    return written([Paragraph(title, TITLE, colour), *map(Paragraph, lines)], CARD)


def shown(pictures: Sequence[Image], text: str, cls: type[io.ComfyNode]) -> dict[str, Any]:
    """The `ui` of a node: pictures of any size, and the text for who asks the server by its API."""
    images: Any = [picture_image(picture)[0] for picture in pictures]  # a list, since sizes differ
    return ui.PreviewImage(images, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
