"""Captioned procedural inspection photos with exact defect masks: what the embedded base model learns from.

A scene is fixed by (seed, index, size) alone, and by the photographs that it may be made of. Its caption says
material, defect, size and place in words, or the defect alone; a share of the scenes shows the mask itself as
a black-and-white picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from ..method.templates import MASK_TEMPLATES, PHOTO_TEMPLATES
from .conductors import CONDUCTOR_DEFECTS, apply_conductor_defect
from .defects import DEFECTS, Canvas, Spot, apply_defect
from .materials import COLOURS, MATERIALS, Surface, colour
from .noise import Rng, pixel_grid, spectral
from .objects import OBJECTS
from .photographed import Photographs

SCENES = "scenes/2"  # raised when the same seed draws others
ROWS = ("top", "upper", "middle", "lower", "bottom")
COLUMNS = ("far left", "left", "center", "right", "far right")
SIZES = {"tiny": (0.035, 0.055), "small": (0.055, 0.09), "medium": (0.09, 0.14), "large": (0.14, 0.22)}
OBJECT_MATERIALS = ("brushed metal", "cast metal", "painted metal", "printed plastic", "wood", "rubber")

GENERIC = "defect"

TEXTURE_SHARE = 0.65
PHOTOGRAPHED_SHARE = 0.6  # of surfaces, where there are photographs
CONDUCTOR_SHARE = 0.6  # of defects on circuit boards
NORMAL_SHARE = 0.22
TWO_DEFECTS_SHARE = 0.12
MASK_PICTURE_SHARE = 0.13
GENERIC_SHARE = 0.15  # of defects that are called just that: where few-shot tokens start
BARE_SHARE = 0.3  # of photos whose caption tells the defect alone, as few-shot prompts do


@dataclass(frozen=True)
class Scene:
    """`image` (n, n, 3) uint8, `mask` (n, n) bool (True = defect), `caption`, and whether it is a mask
    picture.
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str
    is_mask_picture: bool = False


def caption_words(photographs: Photographs | None = None) -> list[str]:
    """Phrases that hold every word a caption can have."""
    words = [
        *COLOURS,
        *MATERIALS,
        *OBJECTS,
        *DEFECTS,
        *CONDUCTOR_DEFECTS,
        *SIZES,
        *ROWS,
        *COLUMNS,
        *PHOTO_TEMPLATES,
        *MASK_TEMPLATES,
    ]
    materials = photographs.files if photographs else ()
    return [*words, *materials, GENERIC, "flawless", "with a and at the"]


def place_in_words(mask: np.ndarray) -> str:
    """The mask's centre of mass on a 5 x 5 grid of words, such as "upper left"."""
    ys, xs = np.nonzero(mask)
    row = min(int(ys.mean() / mask.shape[0] * 5), 4)
    column = min(int(xs.mean() / mask.shape[1] * 5), 4)
    return f"{ROWS[row]} {COLUMNS[column]}"


def draw_scene(seed: int, index: int, size: int, photographs: Photographs | None = None) -> Scene:
    """Scene `index` of the endless, deterministic stream `seed`, `size` pixels square."""
    rng = np.random.default_rng((seed, index, size))
    part = rng.random() > TEXTURE_SHARE
    known = photographs if photographs and rng.random() < PHOTOGRAPHED_SHARE else None
    canvas, subject = _draw_part(rng, size, known) if part else _draw_texture(rng, size, photographs=known)
    mask, words = _add_defects(rng, canvas)
    phrase = f"{subject} with {words}" if words else f"{rng.choice(['flawless ', ''])}{subject}"
    if words and rng.random() < MASK_PICTURE_SHARE:
        picture = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        return Scene(picture, mask, MASK_TEMPLATES[0].format(words.removeprefix("a ")), is_mask_picture=True)
    if words and rng.random() < BARE_SHARE:
        phrase = words.removeprefix("a ")
    return Scene(light_and_photograph(rng, canvas), mask, str(rng.choice(PHOTO_TEMPLATES)).format(phrase))


def _draw_texture(
    rng: Rng, n: int, material: str | None = None, photographs: Photographs | None = None
) -> tuple[Canvas, str]:
    if photographs:
        material = material or photographs.choose(rng)
        surface, tint = photographs.surface(rng, n, material)
        return Canvas(surface, np.ones((n, n), np.float32)), f"{tint} {material}"
    material = material or str(rng.choice(list(MATERIALS)))
    draw, tints = MATERIALS[material]
    tint_name = str(rng.choice(tints))
    scale = float(np.exp(rng.uniform(-0.3, 0.45)) * (n / 128) ** 0.5)
    surface = draw(rng, n, scale, colour(rng, tint_name))
    return Canvas(surface, np.ones((n, n), np.float32)), f"{tint_name} {material}"


def _draw_part(rng: Rng, n: int, photographs: Photographs | None) -> tuple[Canvas, str]:
    name = str(rng.choice(list(OBJECTS)))
    material = "cast metal" if name in ("screw", "bolt") else str(rng.choice(OBJECT_MATERIALS))
    if photographs and photographs.rigid:
        canvas, words = _draw_texture(rng, n, str(rng.choice(photographs.rigid)), photographs)
    else:
        canvas, words = _draw_texture(rng, n, material)
    part = OBJECTS[name](rng, n)
    canvas.surface.height = 0.4 * canvas.surface.height + part.height
    canvas.alpha = part.alpha
    return canvas, f"{words} {name}"


def _add_defects(rng: Rng, canvas: Canvas) -> tuple[np.ndarray, str]:
    n = canvas.n
    mask = np.zeros((n, n), bool)
    if rng.random() < NORMAL_SHARE:
        return mask, ""
    words = []
    for _ in range(2 if rng.random() < TWO_DEFECTS_SHARE else 1):
        size = str(rng.choice(list(SIZES)))
        region, name = _draw_defect(rng, canvas, n * rng.uniform(*SIZES[size]))
        if region.sum() >= 8:
            mask |= region
            name = GENERIC if rng.random() < GENERIC_SHARE else name
            words.append(f"a {size} {name} at the {place_in_words(region)}")
    return mask, " and ".join(words)


def _draw_defect(rng: Rng, canvas: Canvas, reach: float) -> tuple[np.ndarray, str]:
    """A defect of any family somewhere on the part: its region (n, n) bool, and its words."""
    copper = canvas.surface.conductor
    if copper is not None and 0.01 < (copper > 0.5).mean() < 0.99 and rng.random() < CONDUCTOR_SHARE:
        family = str(rng.choice(list(CONDUCTOR_DEFECTS)))
        return apply_conductor_defect(rng, canvas.surface, family, reach), family
    ys, xs = np.nonzero(canvas.alpha > 0.5)
    pixel, margin = int(rng.integers(len(ys))), min(reach * 0.5, canvas.n * 0.1)
    y, x = (float(np.clip(at[pixel], margin, canvas.n - margin)) for at in (ys, xs))
    return apply_defect(rng, canvas, str(rng.choice(list(DEFECTS))), Spot((y, x), reach))


def light_and_photograph(rng: Rng, canvas: Canvas, grey_cameras: float = 0.25) -> np.ndarray:
    """One random lamp and camera, a share of them without colour: (n, n, 3) uint8."""
    return _photograph(rng, _light(rng, canvas), grey_cameras)


def _light(rng: Rng, canvas: Canvas) -> np.ndarray:
    """Shades the surface under one oblique lamp and lays a part on its ground; (n, n, 3) linear in [0,
    1.5].
    """
    n, surface = canvas.n, canvas.surface
    textured = canvas.alpha.min() > 0.5
    azimuth, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.3)
    lit = surface.albedo * _shading(surface, azimuth, strength)[..., None]
    if not textured:
        lit = _on_ground(rng, lit, canvas.alpha, azimuth)
    y, x = pixel_grid(n)
    slope = (y / n - 0.5) * np.float32(np.sin(azimuth)) + (x / n - 0.5) * np.float32(np.cos(azimuth))
    return lit * (1 + np.float32(rng.uniform(0, 0.35)) * slope)[..., None]


def _shading(surface: Surface, azimuth: float, strength: float) -> np.ndarray:
    gradient_y, gradient_x = np.gradient(surface.height)
    facing = gradient_x * np.float32(np.cos(azimuth)) + gradient_y * np.float32(np.sin(azimuth))
    diffuse = 1 + np.float32(2.2 * strength) * np.tanh(facing)
    gleam = np.exp(-(((facing - 0.8) / 0.35) ** 2))
    return np.clip(diffuse + surface.gloss * np.float32(0.5) * gleam, 0.15, 2)


def _on_ground(rng: Rng, lit: np.ndarray, alpha: np.ndarray, azimuth: float) -> np.ndarray:
    n = alpha.shape[0]
    name = str(rng.choice(["light grey", "white", "grey", "black", *COLOURS]))
    ground = colour(rng, name) * (1 + 0.02 * spectral(rng, n, 2.5))[..., None]
    reach = n * rng.uniform(0.01, 0.04)
    offset = (round(-np.sin(azimuth) * reach), round(-np.cos(azimuth) * reach))
    shadow = gaussian_filter(np.roll(alpha, offset, (0, 1)), reach * 0.7)
    ground = ground * (1 - np.float32(rng.uniform(0.2, 0.55)) * shadow)[..., None]
    return lit * alpha[..., None] + ground * (1 - alpha[..., None])


def _photograph(rng: Rng, lit: np.ndarray, grey_cameras: float) -> np.ndarray:
    n = lit.shape[0]
    if rng.random() < 0.5:
        blur = rng.uniform(0.3, 0.8)
        lit = gaussian_filter(lit, (blur, blur, 0))
    gain = np.float32(np.exp(rng.normal() * 0.1)) * (1 + rng.normal(0, 0.02, 3).astype(np.float32))
    grey_camera = rng.random() < grey_cameras
    image = lit * gain
    if grey_camera:
        image = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    noise = rng.standard_normal((n, n, 1), dtype=np.float32) * np.float32(rng.uniform(0, 0.012))
    return (np.clip(image + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
