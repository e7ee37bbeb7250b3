"""The core's contexts as ComfyUI's CONDITIONING, and what nodes are told of masks and defect types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.latent_diffusion import Context

Conditioning = list[list[Any]]  # ComfyUI's CONDITIONING: [hidden states, options] of each entry
COLUMNS = "anomalydiffusion_columns"  # in a conditioning's options: where the inserted vectors stand
LEARNED = "anomalydiffusion_learned"  # and whose they are: embeddings, defect type


def conditioning(context: Context, **options: Any) -> Conditioning:
    """A context as ComfyUI's CONDITIONING: one entry for the whole batch."""
    pooled = {} if context.pooled is None else {"pooled_output": context.pooled}
    return [[context.hidden, {**pooled, **options}]]


def learned_in(conditioning: Conditioning) -> tuple[Learned | None, str]:
    """The embeddings and the defect type that a conditioning was made with; None and no name for others."""
    return next((options[LEARNED] for _, options in conditioning if LEARNED in options), (None, ""))


def chosen_type(embeddings: Learned, defect_type: str, table: str) -> str:
    """The type asked for, or the first one of `table` ("anomaly" or "mask") where none was."""
    return defect_type.strip() or next(iter(sorted(getattr(embeddings, table))), "")


def known_type(embeddings: Learned, defect_type: str, others: Iterable[str] = ()) -> str:
    """The type asked for, or the first with a mask embedding where none was.

    Raises ValueError for one that is neither learned nor among the `others`: it would have no placements.
    """
    name = chosen_type(embeddings, defect_type, "mask")
    known = {*embeddings.anomaly, *embeddings.mask, *others}
    if name and name not in known:
        raise ValueError(f"There is no defect type {name!r}: there are {', '.join(sorted(known))}.")
    return name


def binary_masks(mask: Tensor) -> Tensor:
    """ComfyUI's MASK (B,H,W) or (H,W) in [0,1] -> (B,1,H,W) in {0,1}; ValueError for an empty one."""
    marked = (mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5).float()
    empty = [i for i, m in enumerate(marked) if not m.any()]
    if empty:
        raise ValueError(f"Mask {empty[0]} is empty: give or invent one that marks where the defect goes.")
    return marked
