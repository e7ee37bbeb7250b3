"""A low-rank update of linear layers (LoRA, Hu et al., arXiv 2106.09685): W + up @ down, W frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPDATED = ("to_q", "to_k", "to_v", "to_out.0")  # layers of every attention, by the ends of their names


def updated_layers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of a U-Net's layers, by diffusers' names, that an update is learned for; in one order whatever
    the host's, since they start from random numbers.
    """
    return {name: layer for name, layer in sorted(layers.items()) if name.endswith(UPDATED)}


@contextmanager
def learned_update(
    layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator, device: torch.device
) -> Iterator[dict[str, nn.Parameter]]:
    """While active, an update that can be trained takes part in what linear layers compute: at first zero,
    in float32 whatever the layers' precision.

    Gives its parameters, `<layer>.down` (rank, inputs) and `<layer>.up` (outputs, rank).
    """
    parameters: dict[str, nn.Parameter] = {}
    with ExitStack() as stack:
        for name, layer in layers.items():
            weight: Any = layer.weight
            outputs, inputs = weight.shape
            start = torch.empty(rank, inputs)
            nn.init.kaiming_uniform_(start, 5**0.5, generator=generator)
            down = nn.Parameter(start.to(device))
            up = nn.Parameter(torch.zeros(outputs, rank, device=device))
            parameters |= {f"{name}.down": down, f"{name}.up": up}
            stack.callback(layer.register_forward_hook(partial(_updated, down, up)).remove)
        yield parameters


def _updated(down: Tensor, up: Tensor, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + F.linear(F.linear(inputs[0].to(down.dtype), down), up).to(output.dtype)
