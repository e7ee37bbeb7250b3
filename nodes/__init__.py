"""The graph surface: one file per stage, each node a schema and a thin `execute`."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .base_models import LoadTinyBase

NODES: tuple[type[io.ComfyNode], ...] = (LoadTinyBase,)


class AnomalyDiffusion(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
