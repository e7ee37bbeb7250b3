"""The page to judge a dataset by, written and opened from a graph."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

CATEGORY = "AnomalyDiffusion/export"


class OpenReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_Report",
            display_name="Open Report",
            category=CATEGORY,
            description="Writes a page that shows every pair of a dataset around its defect, to filter, look "
            "closely and reject; a button on the node opens it in the browser.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "folder",
                    default="anomalydiffusion/dataset",
                    tooltip="A dataset below ComfyUI's output folder; or connect the path of Save Anomaly "
                    "Dataset.",
                ),
                io.String.Input(
                    "reject",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="Pairs to take out, one a line, as the page lists them: they are moved to the "
                    "dataset's folder rejected.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The page's file.")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, reject: str | None = "") -> str:
        from .host.report import report_stamp

        return report_stamp(folder) if folder else ""

    @classmethod
    def execute(cls, folder: str, reject: str = "") -> io.NodeOutput:
        from .host.report import report_on

        page, said, address = report_on(folder, reject)
        return io.NodeOutput(str(page), ui={"text": (said,), "adiff_report": (address,)})
