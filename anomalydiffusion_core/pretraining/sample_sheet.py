"""A picture of what the base can draw: materials by defects from words alone, objects, and mask pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..method.conditioning import empty_context
from ..method.latent_diffusion import LatentDiffusion
from ..method.reweighting import AARConfig
from ..method.sampling import SamplingConfig, SamplingRequest, image_generator, sample

MATERIALS = (
    "grey brushed metal",
    "grey cast metal",
    "brown wood",
    "blue woven fabric",
    "brown leather",
    "white tile",
    "grey stone",
    "yellow printed plastic",
    "light grey wire grid",
    "green circuit board",
)
DEFECTS = (
    "",
    "a medium white scratch",
    "a medium crack",
    "a large dent",
    "a medium hole",
    "a medium red stain",
    "a medium yellow contamination",
    "a large missing part",
    "a medium green fibre",
)
OBJECTS = (
    "light grey cast metal screw",
    "tan brushed metal washer",
    "grey brushed metal nut",
    "red rubber cap",
    "dark grey cast metal gear",
    "white printed plastic plate",
    "grey cast metal bolt",
    "blue painted metal capsule",
)
PLACES = ("upper left", "middle center", "lower right", "upper right", "lower left")


def sheet_prompts() -> list[str]:
    """Row by row, ten to a row: every defect on every material, then objects, then masks."""
    prompts = []
    for defect in DEFECTS:
        for i, material in enumerate(MATERIALS):
            prompts.append(
                f"a photo of a {material}" + (f" with {defect} at the {PLACES[i % 5]}" if defect else "")
            )
    prompts += [f"a photo of a {part}" for part in OBJECTS]
    prompts += [f"a photo of a {part} with a medium hole at the middle center" for part in OBJECTS[:2]]
    for row in range(2):
        prompts += [
            f"a black and white mask of {defect} at the {PLACES[(i + row) % 5]}"
            for i, defect in enumerate([*DEFECTS[1:], "a small crack", "a large hole"])
        ]
    return prompts


def sample_sheet(
    base: LatentDiffusion, size: int, seed: int = 0, guidance: float = 3.0, *, steps: int = 30
) -> Image.Image:
    """Samples the sheet at `size` pixels a cell; fixed noise, so that two bases compare cell by cell."""
    prompts = sheet_prompts()
    config = SamplingConfig(steps=steps, eta=0.0, guidance=guidance, aar=AARConfig("off"))
    cells = size // base.factor
    rows = []
    for start in range(0, len(prompts), 10):
        part = prompts[start : start + 10]
        with torch.no_grad():
            latent = sample(
                base,
                SamplingRequest(
                    base.encode_prompts(part),
                    empty_context(base, len(part)),
                    [image_generator(seed, start + i) for i in range(len(part))],
                ),
                (cells, cells),
                config,
            )
            images = base.decode(latent).clamp(-1, 1)
        # BCHW -> H (B W) C
        rows.append(((images + 1) * 127.5).permute(2, 0, 3, 1).flatten(1, 2).cpu().numpy())
    return Image.fromarray(np.concatenate(rows).astype(np.uint8))
