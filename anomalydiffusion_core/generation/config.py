"""How pairs are made and which are accepted: the settings of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..gate.gate import GateConfig
from ..masks.invention import MaskConfig
from ..masks.placement import PlacementMode
from ..method.embeddings import Learned, Tuning
from ..method.sampling import NOISE, PASTED, SamplingConfig

AUTO, NONE = "auto", "none"
TUNED, MIXED = "tuned", "mixed"
Start = Literal["tuned", "pasted", "noise", "mixed"]


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
    # no real pair of a type is at hand. `tuned`: as the type's `Tuning` says, sampling too, else `pasted`
    start: Start = TUNED
    pasted_guidance: float = 1.0  # instead of the sampling's own, which exaggerates what is there already
    denoises: tuple[tuple[str, float], ...] = ()  # by category/defect, instead of the sampling's own
    aar_strengths: tuple[tuple[str, float], ...] = ()  # alike
    vary_strength: float = 0.0  # the anomaly embedding is scaled by 1 give or take up to this
    vary_guidance: float = 0.0  # so is the guidance
    vary_contrast: float = 0.3  # and the difference of a pasted defect to its ground
    attention_maps: int = 0  # accepted pairs of each type with a picture of what the tokens looked at
    tries_per_pair: int = 8
    batch_size: int = 4

    def of_type(self, defect_type: str, tunings: Mapping[str, Tuning]) -> GenerationConfig:
        """What one defect type's pairs are made with: its own `denoise` and strength of AAR, and, where the
        start is `tuned`, what suits it.
        """
        config, tuning = self, tunings.get(defect_type)
        if self.start == TUNED:
            config = replace(self, start=PASTED) if tuning is None else self._tuned(tuning)
        sampling = config.sampling
        denoise = dict(self.denoises).get(defect_type, sampling.denoise)
        strength = dict(self.aar_strengths).get(defect_type, sampling.aar.strength)
        aar = replace(sampling.aar, strength=strength)
        return replace(config, sampling=replace(sampling, denoise=denoise, aar=aar))

    def check_own_numbers(self, learned: Learned) -> None:
        """Raises ValueError where a type's own number would be of no effect: no such type was learned, or its
        pairs are made without what the number is of.
        """
        for what, numbers in (("denoise", self.denoises), ("AAR strength", self.aar_strengths)):
            for name, _ in numbers:
                learned.anomaly_tokens(name)
                own = self.of_type(name, learned.tunings)
                if what == "denoise" and own.start == NOISE:
                    why = "starts from noise"
                elif what != "denoise" and own.sampling.aar.mode == "off":
                    why = "is made without attention re-weighting"
                else:
                    continue
                tuned = ", by its tuned settings" if self.start == TUNED and name in learned.tunings else ""
                raise ValueError(
                    f"A {what} of its own would be of no effect on {name}, which {why}{tuned}: leave it out, "
                    "or take another start or mode (--start, --aar)."
                )

    def _tuned(self, tuning: Tuning) -> GenerationConfig:
        aar = replace(self.sampling.aar, mode=tuning.aar_mode, strength=tuning.aar_strength)
        sampling = replace(self.sampling, denoise=tuning.denoise, aar=aar)
        if tuning.start == PASTED:  # where the real pairs are missing, noise is guided as usual
            return replace(self, start=PASTED, sampling=sampling, pasted_guidance=tuning.guidance)
        return replace(self, start=NOISE, sampling=replace(sampling, guidance=tuning.guidance))
