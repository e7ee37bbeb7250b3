"""Finished trainings on disk, by all that decides what they learn: a graph that runs again need not train
again, where the host dropped what the node gave from its memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image, PngImagePlugin
from torch import Tensor

from ...anomalydiffusion_core.method.artifact import learned_hash, load_artifact, save_artifact
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.latent_diffusion import hash_weights
from ...anomalydiffusion_core.training.config import FitConfig
from ...anomalydiffusion_core.training.jobs import TrainingJob
from .base_model import ComfyModel
from .pixels import pixels_of

log = logging.getLogger(__name__)
FOLDER = Path("anomalydiffusion") / "trained"  # below ComfyUI's output folder
KEPT = 8  # trainings, those used last
METHOD = "finished/1"  # raised when the same settings learn something else


@dataclass(frozen=True)
class FinishedTraining:
    """Where a training is kept once it is finished: what it learned, and the picture and words of its node.
    Nowhere (`path` None) where it cannot be told from others.
    """

    path: Path | None

    @classmethod
    def of(
        cls, name: str, job: TrainingJob, config: FitConfig, base: ComfyModel, into: Learned | None = None
    ) -> FinishedTraining:
        """That of a job by `config` on `base`, whose outcome holds `into` as well."""
        if (host := host_state(base)) is None:
            return cls(None)
        known = learned_hash(into) + into.training_json() if into else ""
        settings = [METHOD, name, job.origin(), asdict(config), host, known]
        identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return cls(Path(folder_paths.get_output_directory()) / FOLDER / f"{identity}.safetensors")

    def load(self) -> tuple[Learned, str, Tensor] | None:
        """What was learned, the words, which say where they are from, and the picture (1,H,W,3) in [0,1];
        None where nothing is kept, or it is damaged.
        """
        if not self.path or not self.path.exists():
            return None
        try:
            learned = load_artifact(self.path)
            with Image.open(self.path.with_suffix(".png")) as picture:
                words = str(picture.info.get("summary", ""))
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
        except (OSError, ValueError) as error:
            log.warning("The finished training %s cannot be read (%s): training again.", self.path, error)
            return None
        os.utime(self.path)
        where = Path(*self.path.parts[-3:])
        return (
            learned,
            f"Trained before with the same settings: taken from output/{where}. {words}",
            pixels[None],
        )

    def save(self, learned: Learned, words: str, picture: Tensor) -> None:
        """Keeps it, instead of those that were used longest ago."""
        if not self.path:
            return
        noted = PngImagePlugin.PngInfo()
        noted.add_text("summary", words)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_of(picture)[0]).save(self.path.with_suffix(".png"), pnginfo=noted)
            save_artifact(learned, self.path)
            kept = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for old in kept[:-KEPT]:
                old.unlink()
                old.with_suffix(".png").unlink(missing_ok=True)
        except OSError as error:  # a full disk, say; what was learned goes on in the graph
            log.warning("The finished training could not be kept in %s: %s", self.path, error)


def host_state(base: ComfyModel) -> list[Any] | None:
    """All of the host's objects that decides what is learned and is not in the base's fingerprint: patches of
    the weights, the schedule, the text encoder's layer, the autoencoder. None where it cannot be told.
    """
    schedule = hash_weights({base.schedule.prediction: base.schedule.alphas_cumprod})
    vae = hash_weights(base.vae.patcher.model.state_dict())
    try:
        patches = [_patches(patcher) for patcher in (base.model, base.clip.patcher)]
    except LookupError:
        return None
    return [schedule, vae, base.clip.layer_idx, patches]


def _patches(patcher: ModelPatcher) -> str:
    """Hash of what weights are patched with; LookupError where something else than values changes them."""
    if patcher.injections or patcher.weight_wrapper_patches:
        raise LookupError
    digest = hashlib.sha256()
    for name in sorted(patcher.patches, key=str):
        digest.update(f"{name}{_content(patcher.patches[name])}".encode())
    return digest.hexdigest()[:16]


def _content(value: Any) -> str:
    """A patch in words and hashes of tensors."""
    if isinstance(value, Tensor):
        return hash_weights({"": value})
    if isinstance(value, (list, tuple)):
        return f"({' '.join(map(_content, value))})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if hasattr(value, "weights"):  # of the host's classes of LoRA
        return f"{type(value).__name__}{_content(value.weights)}"
    raise LookupError
