"""The command `doctor`: what is installed, which devices are found, and whether a base model loads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import typer

from .console import run_command, say
from .options import Base, Json

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "safetensors",
    "accelerate",
    "torchmetrics",
)


def doctor(base: Base = None, json: Json = None) -> None:
    """Says what is installed, which devices are found, and whether a base model loads."""

    def command() -> dict[str, Any]:
        findings = examine(base or "tiny")
        for name, finding in findings.items():
            say(f"{name:16} {finding}")
        return findings

    raise typer.Exit(run_command(command, json))


def examine(base: str) -> dict[str, Any]:
    """Findings by name, in the order to show them. A base that does not load is a finding, not an error."""
    findings: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            findings[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings[name] = "not installed"
    import torch

    findings["processors"] = os.cpu_count()
    findings["cuda"] = (
        ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"
    )
    findings["mps"] = "yes" if torch.backends.mps.is_available() else "none"
    findings[f"base {base}"] = _base_finding(base)
    return findings


def _base_finding(base: str) -> str:
    from ..bases.diffusers_model import load_base

    try:
        loaded = load_base(base)
    except (ValueError, OSError, ImportError) as error:
        return f"does not load: {' '.join(str(error).split())}"
    parameters = sum(p.numel() for p in loaded.unet.parameters()) / 1e6
    return (
        f"loads: family {loaded.fingerprint.family}, weights {loaded.fingerprint.weights}, "
        f"U-Net {parameters:.1f} M parameters, {loaded.latent_channels} latent channels, "
        f"{loaded.native_size} px"
    )
