"""What each training is set to: plain numbers, whose defaults the command line and the nodes show.

Nothing here imports more than dataclasses, so that help and schemas come at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Normalisation = Literal["mask", "released", "unmasked"]
Learn = Literal["tokens", "lora", "both"]
TOKENS, LORA, BOTH = "tokens", "lora", "both"
CHECKPOINT_MINUTES = 2.0  # between two checkpoints


@dataclass(frozen=True)
class FitConfig:
    """How parameters are fitted, whatever they are."""

    steps: int = 500
    batch_size: int = 4  # views at a time, in each process
    accumulate: int = 1  # batches whose gradients make one step
    warmup_steps: int = 20
    averaging: float = 0.0  # decay of the exponential moving average that is kept; 0 = the last values
    minutes: float | None = None  # stop after this much wall-clock time
    seed: int = 0


@dataclass(frozen=True)
class EmbeddingConfig(FitConfig):
    """How embeddings are learned, of defects or of masks. Their rate is per step, in units of the token
    table's root mean square.
    """

    tokens: int = 8  # vectors per embedding
    token_rate: float = 0.5
    initial_words: str = "defect"  # tokens start around these words' mean
    views_per_pair: int = 16  # the pair itself and random views of it
    checkpointing: bool = False  # activations of E and text encoder are computed again, not kept


@dataclass(frozen=True)
class DefectConfig(EmbeddingConfig):
    """How e_a of each defect type is learned, and E, and beside or instead of them a low-rank update of the
    base (LoRA). Raises ValueError where patience would wait for measurements that are never taken.
    """

    learn: Learn = TOKENS  # tokens and E, the base's update, or both
    rank: int = 16  # of the update of each layer
    lora_rate: float = 1e-3
    spatial_encoder: bool = True  # without it e_a alone is learned, for comparison
    encoder_rate: float = 1e-4  # of the spatial encoder
    # "released": mean over all cells, as the authors' code has it; "unmasked": plain textual inversion's loss
    normalisation: Normalisation = "mask"
    refresh_every: int = 0  # steps after which other views are made, in the background; 0 = never
    validate_every: int = 0  # steps between measurements on held-out pairs; 0 = only before and after
    patience: int = 0  # measurements without a better one after which training stops; 0 = never

    def __post_init__(self) -> None:
        if self.patience and not self.validate_every:
            raise ValueError(
                f"Patience of {self.patience} counts measurements on held-out pairs, and none is taken on "
                "the way: say with validate_every after how many steps."
            )


@dataclass(frozen=True)
class MaskEmbeddingConfig(EmbeddingConfig):
    """How e_m of each defect type is learned."""

    steps: int = 300
    tokens: int = 4


@dataclass(frozen=True)
class AdaptationConfig(FitConfig):
    """How the base is adapted to normal photos."""

    steps: int = 300
    rank: int = 8  # of the update of each layer
    rate: float = 1e-3  # 3e-3 learns no more of leather in 100 steps
    views_per_photo: int = 16  # at most; no more than the steps can use


@dataclass(frozen=True)
class TrainingConfig:
    """What one artifact is trained with."""

    image_size: int = 256  # pixels per side of the views, in all trainings
    # of each type's pairs that trains, lowest ids first; the rest measures; none = all but a few
    share: float | None = None
    defects: DefectConfig = DefectConfig()
    masks: MaskEmbeddingConfig | None = MaskEmbeddingConfig()  # none = no mask embeddings
    adaptation: AdaptationConfig | None = None  # first of all; none = the base as it is


DEMO = TrainingConfig(image_size=128, share=0.6)  # of ten pairs per defect: six train, four measure


@dataclass(frozen=True)
class PlacesConfig(FitConfig):
    """How E learns to make the base put a defect at its place, on procedural scenes."""

    steps: int = 2000
    batch_size: int = 12
    warmup_steps: int = 100
    encoder_rate: float = 5e-4


WORDS_BATCH = 4  # times as many masks at a time as scenes, since imitating words takes E alone


@dataclass(frozen=True)
class WordsConfig(PlacesConfig):
    """How E learns to imitate the base's words for places."""

    steps: int = 600
    batch_size: int = WORDS_BATCH * PlacesConfig.batch_size
    warmup_steps: int = FitConfig.warmup_steps
    encoder_rate: float = 1e-3


@dataclass(frozen=True)
class EncoderTrainingConfig:
    """How E is pre-trained: first the words for places, then places."""

    words: WordsConfig = WordsConfig()
    places: PlacesConfig = PlacesConfig()
    scenes: int = 2000  # procedural ones, drawn at first, of the seed of `places`
