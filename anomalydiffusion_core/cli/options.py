"""What several commands share: their common options, and how these become devices, bases and artifacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..bases.diffusers_model import DiffusersModel
    from ..method.embeddings import Learned

BASE_AND_DEVICE, SCRIPTS = "Base model and device", "Repeating and scripts"  # groups of options in the help
MASKS, START, ATTENTION = "Masks", "What denoising starts from", "Attention re-weighting"
SAMPLING, GATE = "Sampling", "Quality gate"
DATA, WHAT, LEARNING = "Data", "What is learned", "Learning"
MEASURING, GOING_ON = "Measuring on held-out pairs", "Going on"

Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write a machine-readable summary to this file.", rich_help_panel=SCRIPTS),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="The base model is tiny, a diffusers folder, a hub id, or a .safetensors checkpoint; without "
        "this option it is tiny.",
        rich_help_panel=BASE_AND_DEVICE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Compute on cpu, cuda or mps; without this option on the best one found.",
        rich_help_panel=BASE_AND_DEVICE,
    ),
]
DefectTypes = Annotated[
    list[str] | None,
    typer.Option("--type", help="Take only this category/defect; repeat it for more.", rich_help_panel=DATA),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(
        help="Hold U-Net and text encoder in this precision; bf16 takes half the memory, on GPUs that "
        "know it.",
        rich_help_panel=BASE_AND_DEVICE,
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--checkpointing",
        help="Compute activations again for the gradient: a third more time for a fraction of their memory.",
        rich_help_panel=BASE_AND_DEVICE,
    ),
]
Reject = Annotated[
    Path | None,
    typer.Option(help="Leave out the pairs in this list, which the report lets you download."),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same result.", rich_help_panel=SCRIPTS),
]


def share_in(text: str) -> float:
    """A share of 0 to 1, written as 0.6 or as 1/3; raises typer.BadParameter for anything else."""
    try:
        share = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text!r} is no share from 0 to 1, such as 0.6 or 1/3")
    return share


def names_in(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes, in words for people."""

    words: str
    holds: Callable[[float], bool]


FROM_0 = Range("from 0 up", lambda value: 0 <= value < float("inf"))
OVER_0_TO_1 = Range("over 0 and up to 1", lambda value: 0 < value <= 1)


def number_by_type(
    option: str, texts: list[str], usual: float, allowed: Range
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """An option's number for all defect types, and those of single ones."""
    of_all, of_types = usual, []
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not allowed.holds(value):
            raise ValueError(
                f"{option} {text!r} is no number {allowed.words}, nor category/defect=number: correct it."
            )
        if equals:
            of_types.append((name, value))
        else:
            of_all = value
    return of_all, tuple(of_types)


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


def check_mask_embeddings(artifact: Path, learned: Learned, defect_types: list[str]) -> None:
    """Raises ValueError, saying how to get them, where types that are known have no mask embedding."""
    from ..training.files import TrainingFiles

    lacking = [name for name in defect_types if name in learned.anomaly and name not in learned.mask]
    if not lacking:
        return
    kept = TrainingFiles(artifact).checkpoints.folder
    remedy = "train with --mask-steps above 0"
    if kept.is_dir():
        remedy = f"its training was cut off before ({kept} keeps it), so train again with --resume"
    raise ValueError(
        f"{artifact} holds no mask embedding for {', '.join(lacking)}: {remedy}; 'generate' also takes "
        "masks of your own (--masks FOLDER), or draws them (--mask-sources procedural=1)."
    )
