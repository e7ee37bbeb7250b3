"""Attention with weights on some of its columns, and what layers of any size need for that.

q (B,H,N,c), k and v (B,H,T,c) throughout: B rows, H heads, N queries, T keys; w (B,N,1), 1 = unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Columns = slice | tuple[slice, ...]  # where inserted tokens stand: alike in all rows, or row by row


def marked(columns: Columns, value: Tensor) -> Tensor:
    """(B,T), 1 in the given columns of each row and 0 elsewhere, for values (B,H,T,c)."""
    rows, length = len(value), value.shape[2]
    marks = torch.zeros((rows, length), dtype=value.dtype)
    for row, part in enumerate((columns,) * rows if isinstance(columns, slice) else columns):
        marks[row, part] = 1
    return marks.to(value.device)


def attend(query: Tensor, key: Tensor, value: Tensor, w: Tensor, *, columns: Columns) -> Tensor:
    """Attention with post-softmax weights on some columns: (A * (1 + (w - 1) marked)) V.

    q (B,H,N,c), k and v (B,H,T,c), w (B,N,1) -> (B,H,N,c). A is made in full: with 77 keys that costs less
    than a fused kernel given a wider V, which takes its slow path twice as long.
    """
    attention = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
    return attention * (1 + marked(columns, value)[:, None, None] * (w[:, None] - 1)) @ value


def attend_logits(query: Tensor, key: Tensor, value: Tensor, w: Tensor, *, columns: Columns) -> Tensor:
    """The authors' site: logits of the anomaly columns and of column 0 times w, before the softmax."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    strengthened_columns = torch.maximum(marked(columns, value), marked(slice(0, 1), value))
    logits = logits * (1 + strengthened_columns[:, None, None] * (w[:, None] - 1))
    return logits.softmax(-1) @ value


def attend_all(query: Tensor, key: Tensor, value: Tensor, w: Tensor, *, columns: Columns) -> Tensor:
    """Eq. 7's site: the whole post-softmax map times w, whatever the columns, which scales each output."""
    return w[:, None] * F.scaled_dot_product_attention(query, key, value)


def level_size(height: int, width: int, count: int) -> tuple[int, int]:
    """Sides of the U-Net level with `count` queries, for a latent (or photo) of height x width.

    Raises ValueError when `count` queries are no factor-of-two reduction of it.
    """
    for level in range(8):
        size = -(-height // 2**level), -(-width // 2**level)
        if size[0] * size[1] == count:
            return size
    raise ValueError(
        f"{count} attention queries do not fit a latent of {height}x{width}: no level has that size."
    )


def to_queries(w: Tensor, count: int) -> Tensor:
    """Weight map (B,1,h,w) -> one weight per query (B,count,1) of a U-Net level, by area average.

    Raises ValueError when no level has `count` queries.
    """
    size = level_size(w.shape[-2], w.shape[-1], count)
    return F.adaptive_avg_pool2d(w, size).flatten(1)[..., None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B,N,H*c) -> (B,H,N,c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B,H,N,c) -> (B,N,H*c)."""
    return x.transpose(1, 2).flatten(2)
