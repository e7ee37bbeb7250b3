"""From generated pictures to a labelled dataset: the quality gate and the export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from .inputs import type_input
from .sockets import AnomalyEmbedding, FewShotDataset, PairScores

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor

    from ..anomalydiffusion_core.dataset.layout import Dataset
    from ..anomalydiffusion_core.method.embeddings import Learned

CATEGORY = "AnomalyDiffusion/export"


class QualityGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.gate.checks import CHECKS
        from ..anomalydiffusion_core.gate.gate import GateConfig

        return io.Schema(
            node_id="ADiff_QualityGate",
            display_name="Quality Gate",
            category=CATEGORY,
            description="Keeps the pairs whose defect shows, stands out, fits in, looks like real ones "
            "and is new, by the measure of the real pairs of a dataset. Without one only fill is asked for. "
            "Shows every pair, why it was left out, and what to change.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Generated photos, from KSampler (Anomaly)."),
                io.Mask.Input("masks", tooltip="Their masks."),
                io.Image.Input("normals", tooltip="The normal photos they were made from."),
                io.Vae.Input("vae", tooltip="To know the autoencoder's own noise."),
                io.Float.Input(
                    "smallest_fill",
                    default=GateConfig.smallest_fill,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pairs of which a part of the mask shows less are left out. Real pairs may ask "
                    "for more.",
                ),
                FewShotDataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="The one that the embeddings were trained on: its real pairs and normal photos "
                    "say what to ask for.",
                ),
                AnomalyEmbedding.Input(
                    "embeddings",
                    optional=True,
                    tooltip="To know which of the dataset's pairs trained: only those count. Without it all.",
                ),
                type_input(optional=True),
                *(
                    io.Boolean.Input(
                        name, optional=True, default=check.own_masks, tooltip=f"Leave out {check.stops}."
                    )
                    for name, check in CHECKS.items()
                ),
            ],
            outputs=_judged_outputs(),
        )

    @classmethod
    def execute(
        cls, images: Tensor, masks: Tensor, normals: Tensor, vae: VAE, *, smallest_fill: float,
        dataset: Dataset | None = None, embeddings: Learned | None = None, defect_type: str = "",
        **checks: bool,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..anomalydiffusion_core.gate.checks import CHECKS
        from ..anomalydiffusion_core.gate.gate import GateConfig
        from ..anomalydiffusion_core.gate.lettering import GOOD, STOPPED
        from .host.gate import blocked, judge_batch
        from .pictures import card, shown

        chosen = tuple(name for name, check in CHECKS.items() if checks.get(name, check.own_masks))
        config = GateConfig(chosen, smallest_fill)
        judgement = judge_batch(
            images,
            masks,
            normals,
            vae,
            config=config,
            dataset=dataset,
            learned=embeddings,
            defect_type=defect_type,
        )
        good, left = judgement.accepted, judgement.rejected
        # no node can take a batch of none
        rejected = (images[left], masks[left]) if left else map(torch.zeros_like, (images[:1], masks[:1]))
        accepted: Any = blocked(judgement)
        if good:
            of_pairs = normals[torch.arange(len(images)) % len(normals)]  # as the gate took them
            rows = [judgement.pairs[number].row for number in good]
            accepted = images[good], masks[good], of_pairs[good], rows
        summary = card(judgement.headline, judgement.grounds + judgement.advice, GOOD if good else STOPPED)
        pictures = [summary, *(pair.picture for pair in judgement.pairs)]
        ui = shown(pictures, judgement.report, cls)
        return io.NodeOutput(*accepted, judgement.report, *rejected, ui=ui)


def _judged_outputs() -> list[io.Output]:
    return [
        io.Image.Output("accepted_images", display_name="accepted images"),
        io.Mask.Output("accepted_masks", display_name="accepted masks"),
        io.Image.Output(
            "accepted_normals",
            display_name="accepted normals",
            tooltip="The normal photo of each accepted pair.",
        ),
        PairScores.Output("scores", display_name="scores", tooltip="For Save Anomaly Dataset."),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="What was asked for, the scores of every pair, and which were left out why.",
        ),
        io.Image.Output(
            "rejected_images",
            display_name="rejected images",
            tooltip="Those left out; one black picture where there are none.",
        ),
        io.Mask.Output(
            "rejected_masks",
            display_name="rejected masks",
            tooltip="Of those left out; one empty mask where there are none.",
        ),
    ]


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
        cls, images: Tensor, masks: Tensor, defect_type: str, folder: str, *, normals: Tensor | None = None,
        scores: list[dict[str, Any]] | None = None, embeddings: Learned | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .host.dataset_writer import save_pairs

        root = save_pairs(
            images,
            masks,
            defect_type,
            folder,
            normals=normals,
            scores=scores,
            learned=embeddings,
            prompt=cls.hidden.prompt,
        )
        return io.NodeOutput(str(root), ui=ui.PreviewImage(images, cls=cls))
