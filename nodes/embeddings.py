"""Saving and loading what training learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io

from .host.folders import (
    BUNDLED_DEMO,
    LORA,
    MODELS,
    SAVED,
    embeddings_file,
    embeddings_names,
    file_stamp,
    listed_as,
    new_embeddings,
)
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
            description="Writes the learned embeddings and spatial encoder into the output folder, where "
            "Load Anomaly Embeddings finds them (press R to refresh its list).",
            is_output_node=True,
            inputs=[
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Anomaly or Train Masks."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{SAVED}/embeddings",
                    tooltip=f"Path below output/{SAVED}; a number is added, nothing is overwritten.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, embeddings: Learned, filename_prefix: str) -> io.NodeOutput:
        from ..anomalydiffusion_core.method.artifact import export_lora, save_artifact
        from .pictures import card, shown

        path = new_embeddings(filename_prefix)
        save_artifact(embeddings, path)
        lines = [str(path), f"Load Anomaly Embeddings lists it as {listed_as(path)} once you press R."]
        if embeddings.adapter:
            lora = path.with_suffix(LORA)
            export_lora(embeddings, lora)
            lines.append(f"The update of the base, for other samplers: {lora}")
        return io.NodeOutput(str(path), ui=shown([card("Saved", lines)], "\n".join(lines), cls))


class LoadEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_LoadEmbeddings",
            display_name="Load Anomaly Embeddings",
            category=CATEGORY,
            description="Reads what Save Anomaly Embeddings or the command line wrote, from "
            f"output/{SAVED} or models/{MODELS}; or the demo's embeddings, which fit the tiny base.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=[BUNDLED_DEMO, *embeddings_names()],
                    default=BUNDLED_DEMO,
                    tooltip=f"A .safetensors file in output/{SAVED} or models/{MODELS}; or the demo's "
                    "leather and metal. Press R to see new files.",
                )
            ],
            outputs=[
                AnomalyEmbedding.Output("loaded", display_name="embeddings"),
                io.String.Output("types", display_name="defect types", tooltip="One category/defect a line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        try:
            return name is None or bool(embeddings_file(name))  # None: it comes by a link
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        return "" if name is None else file_stamp(embeddings_file(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from ..anomalydiffusion_core.method.artifact import load_artifact

        learned = load_artifact(embeddings_file(name))
        return io.NodeOutput(learned, "\n".join(sorted(learned.anomaly | learned.mask)))
