"""Reading few-shot datasets: image-mask pairs and normal photos in MVTec's layout."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..anomalydiffusion_core.training.config import DEMO
from .host.folders import files_stamp, graph_folder
from .host.pixels import photo_batch
from .sockets import FewShotDataset

DRAWN_DEMO = "demo (drawn by the pack)"
FOLDER = "folder"
DEMO_FOLDER, DEMO_SIZE = "anomalydiffusion_demo", DEMO.image_size


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_LoadDataset",
            display_name="Load Few-Shot Dataset",
            category="AnomalyDiffusion/dataset",
            description="Defect photos with their masks, and normal photos, in MVTec's layout: "
            "<category>/train/good, test/<defect>, ground_truth/<defect>.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[DRAWN_DEMO, FOLDER],
                    default=DRAWN_DEMO,
                    tooltip="The demo set (leather and metal, ten pairs of two defects each), which the pack "
                    "draws into the input folder, or a folder of yours.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Of the dataset, relative to ComfyUI's input folder. Not used for the demo set.",
                ),
                io.String.Input(
                    "category", default="", tooltip="Only this category, such as leather. Empty: all."
                ),
                io.String.Input(
                    "defects", default="", tooltip="Only these defects, with commas between. Empty: all."
                ),
                io.Int.Input(
                    "normal_count",
                    default=8,
                    min=0,
                    max=4096,
                    tooltip="How many normal photos to give out, evenly chosen, of the first category.",
                ),
                io.Int.Input(
                    "demo_size",
                    optional=True,
                    default=DEMO_SIZE,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Pixels per side of the demo set's photos. Not used for a folder.",
                ),
            ],
            outputs=[
                FewShotDataset.Output("few_shot", display_name="dataset"),
                io.Image.Output(
                    "normals", display_name="normals", tooltip="Normal photos of the first category."
                ),
                io.String.Output("types", display_name="defect types", tooltip="One category/defect a line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, folder: str, **_: str) -> str:
        return DRAWN_DEMO if source == DRAWN_DEMO else files_stamp(graph_folder(folder))

    @classmethod
    def execute(
        cls,
        source: str,
        folder: str,
        category: str,
        defects: str,
        *,
        normal_count: int,
        demo_size: int = DEMO_SIZE,
    ) -> io.NodeOutput:
        from ..anomalydiffusion_core.dataset.layout import find_dataset
        from ..anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

        if source == DRAWN_DEMO:
            folder = DEMO_FOLDER if demo_size == DEMO_SIZE else f"{DEMO_FOLDER}_{demo_size}"
        root = graph_folder(folder)
        if source == DRAWN_DEMO:
            write_few_shot_dataset(root, demo_size)
        chosen = [name.strip() for name in defects.split(",") if name.strip()]
        dataset = find_dataset(root, category.strip() or None, chosen or None)
        normals = next(iter(dataset.categories.values())).normals
        return io.NodeOutput(
            dataset, photo_batch(normals, normal_count), "\n".join(sorted(dataset.by_type()))
        )
