"""The graph surface: one file per stage, each node a schema and a thin `execute`."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .base_models import LoadTinyBase
from .conditioning import AnomalyConditioning, EncodeMask, MaskConditioning
from .datasets import LoadDataset
from .embeddings import LoadEmbeddings, SaveEmbeddings
from .evaluation import EvaluateLocalizer, GenerationMetrics, TrainClassifier, TrainLocalizer
from .export import QualityGate, SaveDataset
from .generation import GeneratePairs
from .host.folders import register_model_folder
from .masks import BinarizeMasks, GenerateMasks, MixMasks, PlaceMasks
from .regions import CropRegions, StitchRegions
from .report import OpenReport
from .sampling import AttentionReweighting, KSampler
from .search import searchable
from .training import TrainAnomaly, TrainMasks
from .tuning import TuneSettings

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadTinyBase,
    LoadDataset,
    TrainAnomaly,
    TrainMasks,
    TuneSettings,
    SaveEmbeddings,
    LoadEmbeddings,
    GenerateMasks,
    BinarizeMasks,
    MixMasks,
    PlaceMasks,
    CropRegions,
    MaskConditioning,
    EncodeMask,
    AnomalyConditioning,
    AttentionReweighting,
    KSampler,
    GeneratePairs,
    StitchRegions,
    QualityGate,
    SaveDataset,
    OpenReport,
    GenerationMetrics,
    TrainLocalizer,
    EvaluateLocalizer,
    TrainClassifier,
)


class AnomalyDiffusion(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_model_folder()  # before schemas are asked for: loaders list its files
        return [searchable(node) for node in NODES]
