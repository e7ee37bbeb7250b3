"""Reading few-shot datasets: image-mask pairs and normal photos in MVTec's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io

from ..anomalydiffusion_core.training.config import DEMO
from .host.folders import files_stamp, graph_folder, input_folders
from .host.pixels import photo_batch
from .sockets import FewShotDataset

if TYPE_CHECKING:
    from ..anomalydiffusion_core.dataset.layout import Dataset

DRAWN_DEMO = "demo (drawn by the pack)"
FOLDER = "folder"
NO_FOLDER = "(choose one)"
GOOD_PHOTOS = "put photos of good parts into train/good, or into good beside images and masks"
LISTED = 12  # folders in an error
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
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *input_folders()],
                    default=NO_FOLDER,
                    tooltip="Of the dataset, in ComfyUI's input folder; press R to see new ones; "
                    f"{NO_FOLDER} for the demo set. By a link or the API any path below input or output "
                    "will do.",
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
    def validate_inputs(cls, folder: str | None, input_types: dict[str, str]) -> bool:
        """Takes a folder that is not in the list, and one by a link from a text: `execute` says what is
        wrong with it.
        """
        return True

    @classmethod
    def fingerprint_inputs(cls, source: str | None, folder: str | None, **_: str) -> str:
        return DRAWN_DEMO if source == DRAWN_DEMO or not folder else files_stamp(graph_folder(folder))

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
        from comfy_execution.graph_utils import ExecutionBlocker

        from ..anomalydiffusion_core.dataset.layout import find_dataset
        from ..anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset
        from .pictures import card, shown

        if source == DRAWN_DEMO:
            if folder.strip() not in ("", NO_FOLDER):
                raise ValueError(
                    f"The folder '{folder}' is chosen, but the source is the demo set: set source to "
                    f"'{FOLDER}' to use your photos, or folder to '{NO_FOLDER}'."
                )
            folder = DEMO_FOLDER if demo_size == DEMO_SIZE else f"{DEMO_FOLDER}_{demo_size}"
        root = _chosen(folder)
        if source == DRAWN_DEMO:
            write_few_shot_dataset(root, demo_size)
        names = [name.strip() for name in defects.split(",") if name.strip()]
        dataset = find_dataset(root, category.strip() or None, names or None)
        normals: Any = photo_batch(next(iter(dataset.categories.values())).normals, normal_count)
        lines = contents(dataset) + given_out(dataset, 0 if normals is None else len(normals), normal_count)
        if normals is None:  # only what is connected to it is not run
            normals = ExecutionBlocker(
                f"{root} gives no normal photos: {GOOD_PHOTOS}, or raise normal_count."
            )
        types = "\n".join(sorted(dataset.by_type()))
        return io.NodeOutput(
            dataset, normals, types, ui=shown([card(root.name, lines)], "\n".join(lines), cls)
        )


def _chosen(folder: str) -> Path:
    """The folder that a graph names; ValueError where it names none."""
    if folder.strip() in ("", NO_FOLDER):
        known = ", ".join(input_folders()[:LISTED]) or "none yet"
        raise ValueError(
            "No folder is chosen: put the dataset's folder into ComfyUI's input folder, press R, and choose "
            f"it in the field folder (there: {known})."
        )
    return graph_folder(folder)


def given_out(dataset: Dataset, given: int, count: int) -> list[str]:
    """What else has to be known of the `given` normal photos that come out as IMAGE, of `count` asked for."""
    name, category = next(iter(dataset.categories.items()))
    asked = min(count, len(category.normals))
    lines = []
    if 0 < given < asked:
        lines.append(
            f"normals: {given} of {asked}, since the others differ in size from the first; Generate Pairs "
            "takes all."
        )
    if given and len(dataset.categories) > 1:
        lines.append(f"normals are those of {name}: choose another one by category.")
    return lines


def contents(dataset: Dataset) -> list[str]:
    """What a dataset holds, a line for each defect type and for what lacks."""
    lines = [f"{name}: {len(pairs)} pairs" for name, pairs in sorted(dataset.by_type().items())]
    for name, category in dataset.categories.items():
        lines.append(f"{name}: {len(category.normals)} normal photos")
        if not category.pairs:
            lines.append(
                f"{name} has no defect pairs, so that nothing can be trained on it: put photos into "
                "test/<defect>, and their masks into ground_truth/<defect>."
            )
        if not category.normals:
            lines.append(f"{name} has no normal photos to put defects on: {GOOD_PHOTOS}.")
    return lines
