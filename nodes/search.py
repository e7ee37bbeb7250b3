"""Other words that the host's node search finds the nodes by, where the host has such."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

SYNTHESIS = ["defect", "synthetic", "inspection", "inpaint", "anomaly", "augmentation"]
TRAINING = ["defect", "inspection", "textual inversion", "few-shot", "fine-tune"]
MASKS = ["defect", "mask", "synthetic mask", "segmentation"]
MEASURING = ["inspection", "metrics", "defect detection", "anomaly detection"]
ALIASES = {
    "ADiff_LoadTinyBase": ["checkpoint", "load model", "demo model", "synthetic"],
    "ADiff_LoadDataset": ["defect photos", "inspection", "mvtec", "image folder"],
    "ADiff_TrainAnomaly": TRAINING,
    "ADiff_TrainMasks": [*TRAINING, "mask"],
    "ADiff_TuneSettings": [*TRAINING, "denoise", "calibrate"],
    "ADiff_SaveEmbeddings": ["defect", "textual inversion", "save training"],
    "ADiff_LoadEmbeddings": ["defect", "textual inversion", "load training"],
    "ADiff_GenerateMasks": MASKS,
    "ADiff_BinarizeMasks": [*MASKS, "threshold"],
    "ADiff_MixMasks": MASKS,
    "ADiff_PlaceMasks": [*MASKS, "position"],
    "ADiff_CropRegions": ["defect", "inpaint crop", "native resolution", "tile"],
    "ADiff_MaskConditioning": [*MASKS, "prompt"],
    "ADiff_EncodeMask": [*MASKS, "spatial encoder"],
    "ADiff_AnomalyConditioning": ["defect", "inpaint", "prompt", "synthetic"],
    "ADiff_AttentionReweighting": ["defect", "inpaint", "attention"],
    "ADiff_KSampler": SYNTHESIS,
    "ADiff_GeneratePairs": [*SYNTHESIS, "dataset", "batch"],
    "ADiff_StitchRegions": ["defect", "inpaint stitch", "native resolution", "tile"],
    "ADiff_QualityGate": ["defect", "inspection", "filter", "reject"],
    "ADiff_Report": ["defect", "inspection", "review", "reject"],
    "ADiff_SaveDataset": ["defect", "synthetic dataset", "mvtec", "export"],
    "ADiff_GenerationMetrics": [*MEASURING, "synthetic", "LPIPS", "IS"],
    "ADiff_TrainLocalizer": [*MEASURING, "segmentation"],
    "ADiff_EvaluateLocalizer": [*MEASURING, "segmentation"],
    "ADiff_TrainClassifier": [*MEASURING, "classification"],
}


def searchable(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, found by its `ALIASES` too; as it is in a host whose search knows none."""
    define = node.define_schema

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        schema = define()
        if hasattr(schema, "search_aliases"):
            schema.search_aliases = [*ALIASES.get(schema.node_id, ())]  # type: ignore[attr-defined]
        return schema

    node.define_schema = classmethod(define_schema)  # type: ignore[method-assign, assignment]
    return node
