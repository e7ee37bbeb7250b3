"""Learning from a few-shot dataset, through ComfyUI's MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.v0_0_2 import io, ui

from ..anomalydiffusion_core.training.config import (
    CHECKPOINT_MINUTES,
    DefectConfig,
    EmbeddingConfig,
    Learn,
    MaskEmbeddingConfig,
    TrainingConfig,
)
from .inputs import base_inputs, seed_input
from .sockets import AnomalyEmbedding, FewShotDataset

CATEGORY = "AnomalyDiffusion/training"
BEST = "best so far"


def data_inputs() -> list[io.Input]:
    """MODEL, CLIP, VAE and dataset, as every training takes them."""
    return [
        *base_inputs("The frozen base model: Load Base Model, or any SD 1.x, 2.x or XL."),
        FewShotDataset.Input("dataset", tooltip="From Load Few-Shot Dataset."),
    ]


def schedule_inputs(defaults: type[EmbeddingConfig]) -> list[io.Input]:
    """Steps, batch, share and seed."""
    return [
        io.Int.Input("steps", default=defaults.steps, min=1, max=1_000_000, tooltip="Training steps."),
        io.Int.Input("batch_size", default=defaults.batch_size, min=1, max=64, tooltip="Views per step."),
        io.Float.Input(
            "share",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of each defect's pairs that trains, lowest ids first. The rest only measures "
            "whether it carries over to unseen photos. 0 = all but a few train: a third measures, at most "
            "five, and none where fewer than three would train. 1 = all train.",
        ),
        seed_input(changes=False),  # another would train anew each time
    ]


def preview_input() -> io.Input:
    return io.Int.Input(
        "preview_every",
        default=100,
        min=0,
        max=100_000,
        tooltip="Steps between previews below the loss: real views above, what was learned below. One "
        "costs about as much as seven steps. 0 = never.",
    )


def stopping_inputs() -> list[io.Input]:
    """What a training does that is cancelled, goes astray, or dies with ComfyUI."""
    return [
        io.Combo.Input(
            "when_stopped",
            options=["nothing", BEST],
            default="nothing",
            optional=True,
            tooltip="What comes out where you cancel, or the loss explodes: nothing, and the run ends; or "
            "the best so far, and the graph goes on with it.",
        ),
        io.Float.Input(
            "checkpoint_minutes",
            default=CHECKPOINT_MINUTES,
            min=0.0,
            max=600.0,
            step=0.5,
            optional=True,
            tooltip="Minutes between two checkpoints, in output/anomalydiffusion/training. Queued again with "
            "the same settings, a training that was cut off goes on from there, to the last bit.",
        ),
    ]


def memory_inputs(defaults: type[EmbeddingConfig]) -> list[io.Input]:
    """How a training fits a small card."""
    return [
        io.Int.Input(
            "accumulate",
            default=defaults.accumulate,
            min=1,
            max=64,
            optional=True,
            tooltip="Batches whose gradients make one step: batch_size 1 with 4 of them learns like "
            "batch_size 4, in less memory and more time.",
        ),
        io.Boolean.Input(
            "low_memory",
            default=False,
            optional=True,
            tooltip="For small cards: what the U-Net's layers compute is computed again for the gradient "
            "instead of kept, and in bfloat16 where the card does that well. A step takes up to half as "
            "long again.",
        ),
    ]


class TrainAnomaly(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_TrainAnomaly",
            display_name="Train Anomaly",
            category=CATEGORY,
            description="Learns how each defect looks (anomaly embeddings) and where it is (spatial "
            "encoder) from a few image-mask pairs; the base model stays as it is.",
            is_output_node=True,
            inputs=[
                *data_inputs(),
                *schedule_inputs(DefectConfig),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Pixels per side of the training views. 0 = what the base was made for (tiny "
                    "128, SD 1.x 512, SDXL 1024), or what the embeddings to extend were trained at.",
                ),
                io.Int.Input(
                    "tokens",
                    default=DefectConfig.tokens,
                    min=1,
                    max=32,
                    tooltip="Vectors per anomaly embedding.",
                ),
                preview_input(),
                *stopping_inputs(),
                *memory_inputs(DefectConfig),
                AnomalyEmbedding.Input(
                    "extend",
                    optional=True,
                    tooltip="Embeddings to add to: only defect types that are new to them are learned, with "
                    "their spatial encoder as it is; what they know stays to the bit.",
                ),
                AnomalyEmbedding.Input(
                    "start",
                    optional=True,
                    tooltip="Embeddings whose spatial encoder this one starts from, such as a file of "
                    "'anomalydiffusion pretrain-encoder'. Without: the base's own, or an untrained one.",
                ),
                io.Combo.Input(
                    "learn",
                    options=list(get_args(Learn)),
                    default=DefectConfig.learn,
                    optional=True,
                    tooltip="tokens: embeddings and spatial encoder, on the base as it is. both: an update "
                    "of the base (LoRA) too, for defects unlike anything it has seen; needs normal photos; a "
                    "step takes twice as long. lora: the update alone. It stays with the embeddings; nodes "
                    "lay it on MODEL by themselves.",
                ),
            ],
            outputs=[
                AnomalyEmbedding.Output("trained", display_name="embeddings"),
                io.String.Output(
                    "summary", display_name="summary", tooltip="Loss on held-out pairs before and after."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, dataset: Any, *, steps: int, batch_size: int, share: float,
        seed: int, size: int, tokens: int, preview_every: int, when_stopped: str = "nothing",
        checkpoint_minutes: float = CHECKPOINT_MINUTES, accumulate: int = DefectConfig.accumulate,
        low_memory: bool = False, extend: Any = None, start: Any = None, learn: Learn = DefectConfig.learn,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.training.jobs import TrainingJob
        from .host.base_model import ComfyModel, load_for
        from .host.finished import FinishedTraining
        from .host.trainable import trainable
        from .host.training import ended, kept_training
        from .host.training_preview import TrainingPreview

        base = load_for(extend, model, clip, vae) if extend else ComfyModel(model, clip, vae)
        if low_memory:
            base.save_memory()
        image_size = size or (extend.image_size if extend else base.native_size)
        defects = DefectConfig(
            steps=steps, batch_size=batch_size, accumulate=accumulate, seed=seed, tokens=tokens, learn=learn
        )
        config = TrainingConfig(image_size, share or None, defects, None)
        job = TrainingJob(base, dataset, config, extend, start)
        finished = FinishedTraining.of("anomaly", job, defects, base)
        if before := finished.load():
            return io.NodeOutput(*before[:2], ui=ui.PreviewImage(before[2]))
        best = when_stopped == BEST
        preview = TrainingPreview(base, steps, preview_every)
        checkpoints, stage = kept_training(
            "anomaly", job, defects, checkpoint_minutes, keep_best=best, preview=preview
        )
        with trainable(base), checkpoints.alone():
            outcome = job.train_defects(stage)
        text = ended(outcome.end, checkpoints, best) + job.verdict(outcome)
        picture = preview.result(text)
        if outcome.end.finished:
            finished.save(outcome.learned, text, picture)
        return io.NodeOutput(outcome.learned, text, ui=ui.PreviewImage(picture))


class TrainMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_TrainMasks",
            display_name="Train Masks",
            category=CATEGORY,
            description="Learns what the masks of each defect look like (mask embeddings), to invent more. "
            "Types that have them already keep them, unless all do: then all are learned anew.",
            inputs=[
                *data_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Anomaly."),
                *schedule_inputs(MaskEmbeddingConfig),
                io.Int.Input(
                    "tokens",
                    default=MaskEmbeddingConfig.tokens,
                    min=1,
                    max=32,
                    tooltip="Vectors per mask embedding.",
                ),
                preview_input(),
                *stopping_inputs(),
                *memory_inputs(MaskEmbeddingConfig),
            ],
            outputs=[AnomalyEmbedding.Output("trained", display_name="embeddings")],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, dataset: Any, *, embeddings: Any, steps: int, batch_size: int,
        share: float, seed: int, tokens: int, preview_every: int, when_stopped: str = "nothing",
        checkpoint_minutes: float = CHECKPOINT_MINUTES, accumulate: int = MaskEmbeddingConfig.accumulate,
        low_memory: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.training.jobs import TrainingJob
        from .host.base_model import load_for
        from .host.finished import FinishedTraining
        from .host.trainable import trainable
        from .host.training import ended, kept_training
        from .host.training_preview import TrainingPreview

        base = load_for(embeddings, model, clip, vae)
        if low_memory:
            base.save_memory()
        masks = MaskEmbeddingConfig(
            steps=steps, batch_size=batch_size, accumulate=accumulate, seed=seed, tokens=tokens
        )
        config = TrainingConfig(embeddings.image_size, share or None, masks=masks)
        job = TrainingJob.of_masks(base, dataset, config, embeddings)
        finished = FinishedTraining.of("masks", job, masks, base, into=embeddings)
        if before := finished.load():
            return io.NodeOutput(before[0], ui=ui.PreviewImage(before[2]))
        best = when_stopped == BEST
        trained = embeddings.copied()  # what came in by a link stays as it is: another node may use it
        preview = TrainingPreview(base, steps, preview_every)
        checkpoints, stage = kept_training(
            "masks", job, masks, checkpoint_minutes, keep_best=best, preview=preview
        )
        with trainable(base), checkpoints.alone():
            end = job.train_masks(trained, stage)
        text = ended(end, checkpoints, best)
        picture = preview.result(text)
        if end.finished:
            finished.save(trained, text, picture)
        return io.NodeOutput(trained, ui=ui.PreviewImage(picture))
