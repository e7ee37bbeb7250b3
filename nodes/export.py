"""From generated pictures to a labelled dataset: the quality gate and the export."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from .sockets import AnomalyEmbedding, PairScores

CATEGORY = "AnomalyDiffusion/export"


class QualityGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_QualityGate",
            display_name="Quality Gate",
            category=CATEGORY,
            description="Keeps the pairs whose defect shows: fill is the share of the mask whose change "
            "exceeds the autoencoder's own noise.",
            inputs=[
                io.Image.Input("images", tooltip="Generated photos, from KSampler (Anomaly)."),
                io.Mask.Input("masks", tooltip="Their masks."),
                io.Image.Input("normals", tooltip="The normal photos they were made from."),
                io.Vae.Input("vae", tooltip="To know the autoencoder's own noise."),
                io.Float.Input(
                    "smallest_fill",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pairs that show less are left out.",
                ),
            ],
            outputs=[
                io.Image.Output("accepted_images", display_name="accepted images"),
                io.Mask.Output("accepted_masks", display_name="accepted masks"),
                io.Image.Output(
                    "accepted_normals",
                    display_name="accepted normals",
                    tooltip="The normal photo of each accepted pair.",
                ),
                PairScores.Output("scores", display_name="scores", tooltip="For Save Anomaly Dataset."),
                io.String.Output(
                    "report", display_name="report", tooltip="Fill of every pair, and which were left out."
                ),
            ],
        )

    @classmethod
    def execute(cls, images: Any, masks: Any, normals: Any, vae: Any, smallest_fill: float) -> io.NodeOutput:
        from .comfy_generation import pair_scores

        scores = pair_scores(images, masks, normals, vae)
        shown = [score["fill"] for score in scores]
        kept = [i for i, value in enumerate(shown) if value >= smallest_fill]
        lines = [f"{i}: fill {v:.2f}" + ("" if i in kept else "  left out") for i, v in enumerate(shown)]
        if not kept:
            raise ValueError(
                f"None of {len(shown)} pairs fills {smallest_fill:.0%} of its mask (best {max(shown):.0%}): "
                "train longer, raise the attention strength, or lower smallest_fill."
            )
        report = f"{len(kept)} of {len(shown)} pairs accepted\n" + "\n".join(lines)
        shown_darker = images.clone()
        shown_darker[[i for i in range(len(images)) if i not in kept]] *= 0.25
        normals = normals.expand(len(images), -1, -1, -1)[kept]
        scores = [scores[i] for i in kept]
        return io.NodeOutput(
            images[kept], masks[kept], normals, scores, report, ui=ui.PreviewImage(shown_darker, cls=cls)
        )


class SaveDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_SaveDataset",
            display_name="Save Anomaly Dataset",
            category=CATEGORY,
            description="Appends pairs to a dataset in MVTec's layout with a manifest, below the output "
            "folder. Nothing is overwritten.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Photos with the defect."),
                io.Mask.Input("masks", tooltip="Their masks: white = defect."),
                io.String.Input(
                    "defect_type",
                    default="part/defect",
                    tooltip="As category/defect: the folders written to.",
                ),
                io.String.Input(
                    "folder", default="anomalydiffusion/dataset", tooltip="Below ComfyUI's output folder."
                ),
                io.Image.Input(
                    "normals",
                    optional=True,
                    tooltip="The normal photo of each pair, or one for all: they go to train/good.",
                ),
                PairScores.Input("scores", optional=True, tooltip="From Quality Gate: for the manifest."),
                AnomalyEmbedding.Input(
                    "embeddings", optional=True, tooltip="To name artifact and base in the manifest."
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The dataset's folder.")],
        )

    @classmethod
    def execute(
        cls, images: Any, masks: Any, defect_type: str, folder: str, normals: Any = None,
        scores: Any = None, embeddings: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .comfy_generation import save_pairs

        root = save_pairs(images, masks, defect_type, folder, normals, scores, embeddings, cls.hidden.prompt)
        return io.NodeOutput(str(root), ui=ui.PreviewImage(images, cls=cls))
