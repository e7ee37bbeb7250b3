"""The core's contexts as ComfyUI's CONDITIONING, and what nodes are told of masks and defect types."""

from __future__ import annotations

from typing import Any

from ...anomalydiffusion_core.method.latent_diffusion import Context

COLUMNS = "anomalydiffusion_columns"  # in a conditioning's options: where the inserted vectors stand
LEARNED = "anomalydiffusion_learned"  # and whose they are: embeddings, defect type


def conditioning(context: Context, **options: Any) -> list[list[Any]]:
    """A context as ComfyUI's CONDITIONING: one entry for the whole batch."""
    pooled = {} if context.pooled is None else {"pooled_output": context.pooled}
    return [[context.hidden, {**pooled, **options}]]


def chosen_type(embeddings: Any, defect_type: str, kind: str) -> str:
    """The type asked for, or the first one of `kind` ("anomaly" or "mask") where none was."""
    return defect_type.strip() or next(iter(sorted(getattr(embeddings, kind))), "")


def binary_masks(mask: Any) -> Any:
    """ComfyUI's MASK (B,H,W) or (H,W) in [0,1] -> (B,1,H,W) in {0,1}; ValueError for an empty one."""
    marked = (mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5).float()
    empty = [i for i, m in enumerate(marked) if not m.any()]
    if empty:
        raise ValueError(f"Mask {empty[0]} is empty: draw or generate one that marks where the defect goes.")
    return marked
