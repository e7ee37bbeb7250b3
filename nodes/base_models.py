"""Loading base models: the embedded one. Ordinary checkpoints come through ComfyUI's own loaders."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

CATEGORY = "AnomalyDiffusion/base"


class LoadTinyBase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_LoadTinyBase",
            display_name="Load Tiny Base",
            category=CATEGORY,
            description="The small base model that comes with the pack, so that every workflow runs without "
            "a download. It has seen only procedural surfaces: for real work load Stable Diffusion.",
            inputs=[],
            outputs=[
                io.Model.Output("base_model", display_name="MODEL"),
                io.Clip.Output("base_clip", display_name="CLIP"),
                io.Vae.Output("base_vae", display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        import folder_paths

        from ..anomalydiffusion_core.bases.tiny.architecture import WEIGHTS, load_autoencoder
        from .host import tiny_base as tiny

        autoencoder = load_autoencoder(WEIGHTS).requires_grad_(False)
        return io.NodeOutput(
            tiny.load_model(WEIGHTS, autoencoder),
            tiny.load_clip(WEIGHTS, folder_paths.get_folder_paths("embeddings")),
            tiny.as_vae(autoencoder),
        )
