"""AAR on a diffusers U-Net: a cross-attention processor that reads the weights of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..method.attention import merge_heads, split_heads
from ..method.reweighting import AttentionWeights, reweighted_attention


class _ReweightedCrossAttention:
    """diffusers' attention processor for attn2; follows the fused default where nothing is asked."""

    def __init__(self, weights: AttentionWeights, plain: Any) -> None:
        self.weights, self.plain = weights, plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        weights = self.weights
        if weights.idle or encoder_hidden_states is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        if weights.maps is not None:
            weights.maps.record(query, key, weights.columns)
        if weights.w is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        value = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        merged = merge_heads(reweighted_attention(query, key, value, weights)).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](merged))


@contextmanager
def reweighted(unet: Any, weights: AttentionWeights) -> Iterator[None]:
    """While active, every cross-attention of `unet` obeys `weights`; its own processors come back after."""
    former = dict(unet.attn_processors)
    unet.set_attn_processor(
        {
            name: _ReweightedCrossAttention(weights, processor) if ".attn2." in name else processor
            for name, processor in former.items()
        }
    )
    try:
        yield
    finally:
        unet.set_attn_processor(former)
