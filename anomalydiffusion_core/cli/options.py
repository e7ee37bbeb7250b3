"""What several commands share: their common options, and how these become devices, bases and artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..bases.diffusers_model import DiffusersModel
    from ..method.embeddings import Learned

Json = Annotated[Path | None, typer.Option("--json", help="Write a machine-readable summary to this file.")]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base model: tiny, a diffusers folder, a hub id, or a .safetensors checkpoint. Default: tiny."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps. Default: the best one found.")]
DefectTypes = Annotated[list[str] | None, typer.Option("--type", help="Only these category/defect (repeat).")]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(help="Of U-Net and text encoder; bf16 takes half the memory, on GPUs that know it."),
]
Checkpointing = Annotated[
    bool,
    typer.Option("--checkpointing", help="A third more time for a fraction of the activations' memory."),
]
Reject = Annotated[
    Path | None,
    typer.Option(help="Leave out the pairs in this list, which the report lets you download."),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]


def names_in(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def device_of(name: str | None) -> str:
    """The device of that name, or the best one; raises ValueError where it cannot be used."""
    import torch

    if name is None:
        return best_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device cpu."
        ) from None
    return name


def best_device() -> str:
    """cuda, mps or cpu: the first that is there."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def base_to_train_on(
    base: str | None, device: str | None, precision: str, checkpointing: bool
) -> DiffusersModel:
    """The base model, made to save memory before it moves to the device; raises ValueError as `load_base`."""
    from ..bases.diffusers_model import load_base

    on, loaded = device_of(device), load_base(base or "tiny")
    loaded.save_memory(bf16=precision == "bf16", checkpointing=checkpointing)
    loaded.to(on)
    return loaded


def load_with_base(artifact: Path, base: str | None, device: str | None) -> tuple[DiffusersModel, Learned]:
    """The base model, and the artifact on it; raises ValueError where they do not fit."""
    from ..bases.diffusers_model import load_base, load_onto
    from ..method.artifact import load_artifact

    trained_on = load_artifact(artifact).base.family
    if base is None and trained_on != "tiny":
        raise ValueError(
            f"{artifact} was trained on base family {trained_on!r}: say with --base where that model is."
        )
    loaded = load_base(base or "tiny", device_of(device))
    return loaded, load_onto(loaded, artifact)
