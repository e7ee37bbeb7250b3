"""Loading base models: the embedded one, or a checkpoint. ComfyUI's own loaders give others."""

from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from .host.checkpoints import checkpoint_file, checkpoint_names, load_checkpoint
from .host.folders import file_stamp

CATEGORY = "AnomalyDiffusion/base"
TINY = "tiny (comes with the pack)"  # in place of a file


class LoadTinyBase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_LoadTinyBase",
            display_name="Load Base Model",
            category=CATEGORY,
            description="The model that learns your defects: for real work a Stable Diffusion 1.x, 2.x or XL "
            "checkpoint; for a first try the tiny one that comes with the pack, which has seen only "
            "procedural surfaces.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[TINY, *checkpoint_names()],
                    default=TINY,
                    optional=True,
                    tooltip="Tiny runs at once, without a download. Others are the files of "
                    "models/checkpoints: press R to see new ones.",
                ),
            ],
            outputs=[
                io.Model.Output("base_model", display_name="MODEL"),
                io.Clip.Output("base_clip", display_name="CLIP"),
                io.Vae.Output("base_vae", display_name="VAE"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = TINY) -> str:
        return TINY if checkpoint in (None, TINY) else file_stamp(Path(checkpoint_file(checkpoint)))

    @classmethod
    def execute(cls, checkpoint: str = TINY) -> io.NodeOutput:
        import folder_paths

        from ..anomalydiffusion_core.bases.tiny.architecture import WEIGHTS, load_autoencoder
        from .host import tiny_base as tiny

        if checkpoint != TINY:
            return io.NodeOutput(*load_checkpoint(checkpoint))
        autoencoder = load_autoencoder(WEIGHTS).requires_grad_(False)
        return io.NodeOutput(
            tiny.load_model(WEIGHTS, autoencoder),
            tiny.load_clip(WEIGHTS, folder_paths.get_folder_paths("embeddings")),
            tiny.as_vae(autoencoder),
        )
