"""Finding the settings that suit each defect type, between training and generating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io

from .inputs import base_inputs
from .sockets import AnomalyEmbedding, FewShotDataset

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from ..anomalydiffusion_core.dataset.layout import Dataset
    from ..anomalydiffusion_core.method.embeddings import Learned


class TuneSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.generation.tuning import TRIES

        return io.Schema(
            node_id="ADiff_TuneSettings",
            display_name="Tune Settings",
            category="AnomalyDiffusion/training",
            description="Makes a few pairs of each defect type with some settings, and keeps with the "
            "embeddings those of which the gate accepts most: what denoising starts from, how much of it is "
            "new, guidance and attention. Generate Pairs takes them (start: tuned). Types of fewer than "
            "three real pairs stay as usual.",
            is_output_node=True,
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Masks, or Load Anomaly Embeddings."),
                FewShotDataset.Input(
                    "dataset",
                    tooltip="The one that was trained on: its training pairs are the measure, and pairs are "
                    "made on its normal photos.",
                ),
                io.Int.Input(
                    "tries",
                    default=TRIES,
                    min=1,
                    max=16,
                    tooltip="With each of eight settings of each type. One takes about as long as a pair.",
                ),
            ],
            outputs=[
                AnomalyEmbedding.Output("tuned", display_name="embeddings", tooltip="With their settings."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was tried, and what is kept."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, embeddings: Learned, *, dataset: Dataset, tries: int
    ) -> io.NodeOutput:
        from .host.tuning import tuned
        from .pictures import card, shown

        learned, kept, tried = tuned(model, clip, vae, embeddings, dataset=dataset, tries=tries)
        text = "\n".join([*kept, *(["Tried:", *tried] if tried else [])])
        return io.NodeOutput(learned, text, ui=shown([card("Settings", kept)], text, cls))
