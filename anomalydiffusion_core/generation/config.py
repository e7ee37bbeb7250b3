"""How pairs are made and which are accepted: the settings of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..gate.gate import GateConfig
from ..masks.invention import MaskConfig
from ..masks.placement import PlacementMode
from ..method.sampling import SamplingConfig

AUTO, NONE = "auto", "none"
NOISE, PASTED, MIXED = "noise", "pasted", "mixed"
Start = Literal["noise", "pasted", "mixed"]


@dataclass(frozen=True)
class GenerationConfig:
    """How pairs are made and which are accepted."""

    sampling: SamplingConfig = SamplingConfig(guidance=2.5)
    masks: MaskConfig = MaskConfig()
    gate: GateConfig = field(default_factory=GateConfig)
    seed: int = 0
    feather: float = 1.0  # pixels over which the paste ramps up, inside the mask, at least
    softest: float = 16.0  # and at most, where the real pairs' outlines show less
    foreground: str = AUTO  # how objects are found: by their plain ground, `none`, or a segmentation model
    placement: PlacementMode = "learned"  # or `free`: anywhere on the object
    # what is denoised from: a real defect laid into the mask, pure noise, or either by chance; noise, where
    # no real pair of a type is at hand
    start: Start = PASTED
    pasted_guidance: float = 1.0  # instead of the sampling's own, which exaggerates what is there already
    denoises: tuple[tuple[str, float], ...] = ()  # by category/defect, instead of the sampling's own
    aar_strengths: tuple[tuple[str, float], ...] = ()  # alike
    vary_strength: float = 0.0  # the anomaly embedding is scaled by 1 give or take up to this
    vary_guidance: float = 0.0  # so is the guidance
    attention_maps: int = 0  # accepted pairs of each type with a picture of what the tokens looked at
    tries_per_pair: int = 8
    batch_size: int = 4

    def sampling_of(self, defect_type: str) -> SamplingConfig:
        """The sampling of one defect type, with its own `denoise` and strength of AAR."""
        denoise = dict(self.denoises).get(defect_type, self.sampling.denoise)
        strength = dict(self.aar_strengths).get(defect_type, self.sampling.aar.strength)
        aar = replace(self.sampling.aar, strength=strength)
        return replace(self.sampling, denoise=denoise, aar=aar)
