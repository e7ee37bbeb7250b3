"""Text in pictures, without a missing letter: Pillow's own font knows plain ASCII alone."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

# by the names under which Linux, Windows and macOS have them; the later ones hold Chinese and Japanese
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "arial.ttf", "Arial.ttf",
    "NotoSansCJK-Regular.ttc", "msyh.ttc", "YuGothM.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
)  # fmt: skip
SPACING = 1.35  # from line to line, in heights of letters
NOWHERE = "\U0010fffd"  # a letter that no font has
TITLE, TEXT, LABEL = 26, 22, 17  # heights of letters, legible in a picture shown at half its size too
GAP, MARGIN = 8, 10
GROUND, BRIGHT, DIM = (24, 26, 30), (240, 240, 240), (165, 170, 178)
GOOD, STOPPED = (95, 215, 130), (255, 120, 95)  # of titles
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Paragraph:
    """Text in letters of `size` pixels."""

    text: str
    size: int = TEXT
    colour: Colour = BRIGHT


@dataclass(frozen=True)
class Wrapped:
    """`lines` of text in a `font` that has all their letters, one every `spacing` pixels."""

    lines: list[str]
    font: Font
    spacing: int

    @property
    def height(self) -> int:
        """Pixels of all lines together."""
        return len(self.lines) * self.spacing


def written(paragraphs: list[Paragraph], width: int) -> Image.Image:
    """Paragraphs below each other, `width` pixels wide, as high as they ask."""
    inside = [(wrapped(one.text, width - 2 * MARGIN, one.size), one.colour) for one in paragraphs]
    picture = Image.new("RGB", (width, sum(text.height + GAP for text, _ in inside) + GAP), GROUND)
    draw, y = ImageDraw.Draw(picture), GAP
    for text, colour in inside:
        for line in text.lines:
            draw.text((MARGIN, y), line, fill=colour, font=text.font)
            y += text.spacing
        y += GAP
    return picture


def wrapped(text: str, width: int, size: int) -> Wrapped:
    """Text in letters of `size` pixels, broken at spaces, or within words that alone are too long, so that no
    line is wider than `width` pixels. Its own line breaks stay.
    """
    text, font = _legible(text, size)
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split(" "):
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
            while (fits := _fitting(font, line, width)) < len(line):
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return Wrapped(lines, font, round(SPACING * size))


def _fitting(font: Font, text: str, width: int) -> int:
    """How many of its letters fit, at least one."""
    return next((n for n in range(len(text), 1, -1) if font.getlength(text[:n]) <= width), 1)


def _legible(text: str, size: int) -> tuple[str, Font]:
    """The text in the first font that has all its letters; else, in Pillow's, without accents and with '?'
    for letters that are still missing.
    """
    default = _font(None, size)
    assert default is not None
    if text.isascii():
        return text, default
    for name in SYSTEM_FONTS:
        font = _font(name, size)
        if font is not None and not any(_missing(font, letter) for letter in set(text)):
            return text, font
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in plain), default


@lru_cache
def _font(name: str | None, size: int) -> Font | None:
    """A font of the system by its file's name, or Pillow's own; None where there is none of that name."""
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _missing(font: Font, letter: str) -> bool:
    return not letter.isspace() and _shape(font, letter) == _shape(font, NOWHERE)


def _shape(font: Font, letter: str) -> bytes:
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
    return image.tobytes()
