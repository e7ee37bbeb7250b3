"""Saving and loading what training learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import folder_paths
from comfy_api.v0_0_2 import io, ui

from .host.folders import BUNDLED_DEMO, MODELS, embeddings_file, file_stamp, new_output
from .sockets import AnomalyEmbedding

if TYPE_CHECKING:
    from ..anomalydiffusion_core.method.embeddings import Learned

CATEGORY = "AnomalyDiffusion/embeddings"


class SaveEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_SaveEmbeddings",
            display_name="Save Anomaly Embeddings",
            category=CATEGORY,
            description="Writes the learned embeddings and spatial encoder into the output folder. To load "
            f"them later, move the file into models/{MODELS}.",
            is_output_node=True,
            inputs=[
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Anomaly or Train Masks."),
                io.String.Input(
                    "filename_prefix",
                    default="anomalydiffusion/embeddings",
                    tooltip="Path below the output folder; a number is added, nothing is overwritten.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, embeddings: Learned, filename_prefix: str) -> io.NodeOutput:
        from ..anomalydiffusion_core.method.artifact import save_artifact

        path = new_output(filename_prefix, ".safetensors")
        save_artifact(embeddings, path)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"Saved {path}"))


class LoadEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_LoadEmbeddings",
            display_name="Load Anomaly Embeddings",
            category=CATEGORY,
            description="Reads what Save Anomaly Embeddings or the command line wrote, from "
            f"models/{MODELS}; or the demo's embeddings, which fit the tiny base.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=[BUNDLED_DEMO, *folder_paths.get_filename_list(MODELS)],
                    default=BUNDLED_DEMO,
                    tooltip=f"A .safetensors file in models/{MODELS}; or the demo's leather and metal.",
                )
            ],
            outputs=[
                AnomalyEmbedding.Output("loaded", display_name="embeddings"),
                io.String.Output("types", display_name="defect types", tooltip="One category/defect a line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return file_stamp(embeddings_file(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from ..anomalydiffusion_core.method.artifact import load_artifact

        learned = load_artifact(embeddings_file(name))
        return io.NodeOutput(learned, "\n".join(sorted(learned.anomaly | learned.mask)))
