"""From normal photos to accepted pairs on disk, in one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker

from .host.folders import manifest_stamp, output_folder
from .inputs import base_inputs, seed_input, type_input
from .sockets import AnomalyEmbedding, FewShotDataset

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE
    from torch import Tensor

    from ..anomalydiffusion_core.dataset.layout import Dataset
    from ..anomalydiffusion_core.method.embeddings import Learned


class GeneratePairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_GeneratePairs",
            display_name="Generate Pairs",
            category="AnomalyDiffusion/generation",
            description="Puts defects into normal photos of any size until the asked number of pairs is "
            "accepted, and saves them: takes real, invented and drawn masks, denoises inside them in windows "
            "of the photo, checks each pair, and tries again where it fails. Queued again, it goes on from "
            "what is there.",
            is_output_node=True,
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Masks, or Load Anomaly Embeddings."),
                io.Int.Input(
                    "count",
                    default=20,
                    min=1,
                    max=1_000_000,
                    tooltip="Accepted pairs of each defect type that are to be there in the end.",
                ),
                type_input(),
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/dataset",
                    tooltip="Of the dataset, below ComfyUI's output folder. Pairs are added, nothing is "
                    "overwritten.",
                ),
                *_settings_inputs(),
                *_photos_and_masks_inputs(),
                *_start_inputs(),  # last, since saved workflows hold what is set by its place
            ],
            outputs=[
                FewShotDataset.Output(
                    "generated", display_name="dataset", tooltip="All pairs in the folder, for evaluation."
                ),
                io.String.Output("path", display_name="path", tooltip="The dataset's folder."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was made, what was refused, and why."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: object) -> str:
        return manifest_stamp(folder)

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, embeddings: Learned, *, count: int, defect_type: str,
        folder: str, seed: int, steps: int, cfg: float, mode: str, strength: float, checks: str, tries: int,
        batch_size: int, dataset: Dataset | None = None, images: Tensor | None = None,
        masks: Tensor | None = None, mask_sources: str = "", start: str = "tuned", denoise: float = 0.3,
        pasted_cfg: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.gate.gate import GateConfig
        from ..anomalydiffusion_core.generation.config import GenerationConfig
        from ..anomalydiffusion_core.method.reweighting import AARConfig
        from ..anomalydiffusion_core.method.sampling import SamplingConfig
        from .host.pair_generation import PairRequest, generated_pairs
        from .pictures import card, shown

        config = GenerationConfig(
            SamplingConfig(steps=steps, guidance=cfg, denoise=denoise, aar=AARConfig(mode, strength)),
            gate=GateConfig(tuple(filter(None, (name.strip() for name in checks.split(","))))),
            seed=seed,
            start=start,  # type: ignore[arg-type]
            pasted_guidance=pasted_cfg,
            tries_per_pair=tries,
            batch_size=batch_size,
        )
        request = PairRequest(count, defect_type, output_folder(folder), dataset, images, masks, mask_sources)
        result = generated_pairs(model, clip, vae, embeddings, config, request=request)
        summary = card(result.headline, result.report.splitlines())
        below = shown([summary, *result.pictures], result.report, cls)
        # where there are no pairs, nodes that would read them are not run, and say why
        generated = result.dataset or ExecutionBlocker(result.report)
        return io.NodeOutput(generated, str(result.root), result.report, ui=below)


def _settings_inputs() -> list[io.Input]:
    """How pairs are made and which are accepted."""
    from ..anomalydiffusion_core.gate.checks import CHECKS
    from ..anomalydiffusion_core.generation.config import GenerationConfig
    from ..anomalydiffusion_core.method.reweighting import MODES, meanings

    sampling = GenerationConfig.sampling
    return [
        seed_input(changes=False),  # another seed would be another run
        io.Int.Input("steps", default=sampling.steps, min=1, max=1000, tooltip="Denoising steps."),
        _guidance_input("cfg", sampling.guidance, "noise", optional=False),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=sampling.aar.mode,
            tooltip="Where the defect does not show yet, attention to it is strengthened. " + meanings(),
        ),
        io.Float.Input(
            "strength",
            default=sampling.aar.strength,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Of that; 0 = exactly the plain sampler.",
        ),
        io.String.Input(
            "checks",
            default=",".join(CHECKS),
            tooltip="What a pair must pass, by the measure of the real pairs, with commas between; "
            "empty: nothing. "
            + "; ".join(f"{name} stops {check.stops}" for name, check in CHECKS.items())
            + ".",
        ),
        io.Int.Input(
            "tries",
            default=GenerationConfig.tries_per_pair,
            min=1,
            max=1000,
            tooltip="For each pair asked for; then the node says what it fell short of, and why.",
        ),
        io.Int.Input(
            "batch_size",
            default=GenerationConfig.batch_size,
            min=1,
            max=64,
            tooltip="Regions at a time: more is faster on a large card, and takes more memory.",
        ),
    ]


def _photos_and_masks_inputs() -> list[io.Input]:
    """Where normal photos and masks come from."""
    from ..anomalydiffusion_core.masks.sources import SOURCES, USUAL

    sources = "; ".join(f"{name}, {source.meaning}" for name, source in SOURCES.items())
    return [
        FewShotDataset.Input(
            "dataset",
            optional=True,
            tooltip="From Load Few-Shot Dataset: its normal photos are used in turn, read as they "
            "are needed; its real pairs are the measure of what is accepted.",
        ),
        io.Image.Input(
            "images",
            optional=True,
            tooltip="Normal photos instead of the dataset's; with them alone only fill is checked.",
        ),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="Your own masks, used in turn: white = defect. Without them masks come from the sources "
            "below.",
        ),
        io.String.Input(
            "mask_sources",
            optional=True,
            default="",
            tooltip="Where masks come from, mixed by weights, such as invented=2,real=1: "
            f"{sources}. Empty: the masks connected, else "
            + ", ".join(f"{name}={weight:g}" for name, weight in USUAL.items())
            + ", as far as there are any.",
        ),
    ]


def _start_inputs() -> list[io.Input]:
    """What denoising starts from."""
    from typing import get_args

    from ..anomalydiffusion_core.generation.config import GenerationConfig, Start

    return [
        io.Combo.Input(
            "start",
            optional=True,
            options=list(get_args(Start)),
            default=GenerationConfig.start,
            tooltip="pasted: a real training defect is laid into the mask, and denoised from there; noise: "
            "from noise; mixed: either by chance; tuned: as Tune Settings found for the type, with its "
            "denoise, cfg, mode and strength in place of those here, else pasted. Where the dataset has none "
            "of the pairs that trained, it is noise.",
        ),
        io.Float.Input(
            "denoise",
            optional=True,
            default=GenerationConfig.sampling.denoise,
            min=0.05,
            max=1.0,
            step=0.05,
            tooltip="A pasted defect is noised to this share of the schedule: the more, the newer it is.",
        ),
        _guidance_input("pasted_cfg", GenerationConfig.pasted_guidance, "a pasted defect", optional=True),
    ]


def _guidance_input(name: str, default: float, start: str, *, optional: bool) -> io.Input:
    return io.Float.Input(
        name,
        optional=optional,
        default=default,
        min=1.0,
        max=30.0,
        step=0.1,
        tooltip=f"Classifier-free guidance from {start}; 1 = none, and half the time.",
    )
