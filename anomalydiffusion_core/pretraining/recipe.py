"""How long the embedded base is pre-trained and on how much: on 2 CPU cores, on a GPU, and further."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Minutes, amounts and rates of one pre-training."""

    minutes: float = 120.0  # of U-Net training
    scenes: int = 40_000  # 128 px scenes in the pool
    large_scenes: int = 10_000  # 256 px scenes in the pool
    large_share: float = 0.4  # of steps at 256 px, with a quarter of the batch
    batch_size: int = 16
    learning_rate: float = 8e-4
    text_share: float = 0.2  # of that rate for the text encoder (see `trainer.fresh_text_encoder`)
    warmup_steps: int = 300
    ema_decay: float = 0.999
    caption_dropout: float = 0.1  # share of empty captions, for classifier-free guidance
    place_share: float = 0.5  # of each batch: large defects, a quarter pictures of masks, at noisy timesteps
    defect_share: float = 0.5  # of the loss in the defect's cells, at first (see `trainer.loss_weights`)
    emphasis_until: float = 0.6  # share of the run after which all cells weigh alike
    autoencoder_scenes: int = 4_000
    autoencoder_steps: int = 1_800
    save_minutes: float = 5.0
    place_minutes: float = 12.0  # of training the spatial encoder on places, after the rest
    place_scenes: int = 6_000
    seed: int = 1


FURTHER = "further"  # goes on from trained weights
RECIPES = {
    "cpu": Recipe(),
    FURTHER: Recipe(minutes=60, scenes=30_000, large_scenes=6_000, learning_rate=2e-4, place_share=0.25),
    "gpu": Recipe(
        minutes=12,
        scenes=200_000,
        large_scenes=20_000,
        batch_size=256,
        warmup_steps=1_000,
        ema_decay=0.9995,
        place_share=0.25,
        save_minutes=3,
        place_minutes=1.5,
    ),
}
