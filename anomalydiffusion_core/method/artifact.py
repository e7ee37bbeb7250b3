"""What was learned as one .safetensors file, in the format `FORMAT`, written atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from .embeddings import Learned, Placement, Pose, Tuning
from .latent_diffusion import Fingerprint
from .reweighting import AARConfig
from .sampling import NOISE, PASTED, SamplingConfig
from .spatial_encoder import SpatialEncoder, SpatialEncoderConfig

log = logging.getLogger(__name__)
FORMAT = "anomalydiffusion/1"


def save_artifact(learned: Learned, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes what was learned to `path` through a temporary file; raises OSError where that is impossible."""
    tensors = {name: tensor.to(dtype) for name, tensor in _tensors(learned).items()}
    metadata = {
        "format": FORMAT,
        "base_family": learned.base.family,
        "base_weights": learned.base.weights,
        "base_signs": learned.base.signs,
        "image_size": str(learned.image_size),
        "templates": json.dumps(learned.templates),
        "token_counts": json.dumps(
            {
                key: list(value.shape)[0]
                for key, value in tensors.items()
                if key.startswith(("anomaly/", "mask/"))
            }
        ),
        "spatial_encoder": json.dumps(
            {name: json.loads(encoder.config.to_json()) for name, encoder in learned.spatial_encoders.items()}
        ),
        "training": learned.training_json(),
        "dataset_fingerprint": learned.dataset_fingerprint,
        "mask_areas": json.dumps(learned.mask_areas),
        "mask_places": json.dumps(
            {
                name: [asdict(placement) for placement in placements]
                for name, placements in learned.mask_placements.items()
            }
        ),
        "trained_on": json.dumps(learned.trained_on),
        "tunings": json.dumps({name: asdict(tuning) for name, tuning in learned.tunings.items()}),
        "package_version": __version__,
    }
    if learned.adapter:
        rank = next(len(tensor) for name, tensor in learned.adapter.items() if name.endswith(".down"))
        metadata["adapter"] = json.dumps({"rank": rank, "alpha": rank})
    write_atomically(path, tensors, metadata)


def learned_hash(learned: Learned) -> str:
    """SHA-256 (hex) over the names and values of all that was learned and that pairs depend on, whether or
    not it is in a file.
    """
    about = (
        learned.base.family, learned.image_size, learned.templates, learned.mask_areas, learned.trained_on,
        {name: list(map(asdict, placements)) for name, placements in learned.mask_placements.items()},
        {name: asdict(tuning) for name, tuning in learned.tunings.items()},
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(_tensors(learned).items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _tensors(learned: Learned) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name_space, table in (("anomaly", learned.anomaly), ("mask", learned.mask)):
        for defect_type, by_encoder in table.items():
            tensors |= {f"{name_space}/{defect_type}/{name}": t.detach() for name, t in by_encoder.items()}
    several = len(learned.spatial_encoders) > 1
    for name, encoder in learned.spatial_encoders.items():
        prefix = f"spatial_encoder/{name}/" if several else "spatial_encoder/"
        tensors |= {prefix + key: value for key, value in encoder.state_dict().items()}
    tensors |= {f"adapter/{name}": tensor for name, tensor in learned.adapter.items()}
    return {key: value.float() for key, value in tensors.items()}


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """safetensors to a temporary file in the same folder, then a rename; whole or not at all.

    Raises OSError naming `path` where it cannot be written.
    """
    # a copy of each, since safetensors refuses tensors that share memory
    copies = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
    copies = {key: value.contiguous() for key, value in copies.items()}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
        os.close(handle)
        save_file(copies, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except SafetensorError as error:  # safetensors reports a full disk as its own error
        raise OSError(f"{path} could not be written ({error}): check the free space.") from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def load_artifact(path: Path, base: Fingerprint | None = None) -> Learned:
    """Reads an artifact. Raises ValueError when it is none, is damaged, or is of another family than `base`.

    Other weights of the same family only give a warning.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file that 'train' wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # cloned: in the file they lie unaligned, which changes the last digits of what is computed
            tensors = {key: file.get_tensor(key).clone().float() for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"Artifact {path} does not exist: check the path.") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read as an artifact ({error}): give a file that 'train' wrote."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT} artifact: give a file written by 'anomalydiffusion train'.")
    try:
        learned = _learned_from(tensors, metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"Artifact {path} is damaged ({reason}): restore or train it again.") from error
    if base:
        check_base(learned.base, base, str(path), f"use --base {learned.base.family} or train again")
    return learned


def check_base(trained_on: Fingerprint, base: Fingerprint, what: str, remedy: str) -> None:
    """Raises ValueError where `what` was trained on another family than `base`; warns of other weights."""
    if base.family != trained_on.family:
        raise ValueError(
            f"{what} was trained on base family {trained_on.family!r} but the base given is "
            f"{base.family!r}: {remedy}."
        )
    if not base.same_weights(trained_on):
        log.warning("%s was trained on other weights of family %s; results may differ.", what, base.family)


def _learned_from(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Learned:
    learned = Learned(
        Fingerprint(metadata["base_family"], metadata["base_weights"], metadata.get("base_signs", "")),
        int(metadata["image_size"]),
        tuple(json.loads(metadata["templates"])),
        training=json.loads(metadata["training"]),
        dataset_fingerprint=metadata["dataset_fingerprint"],
        mask_areas=json.loads(metadata.get("mask_areas", "{}")),
        mask_placements={
            name: [_placement_from(placement) for placement in placements]
            for name, placements in json.loads(metadata.get("mask_places", "{}")).items()
        },
        trained_on=json.loads(metadata.get("trained_on", "{}")),
        tunings={
            name: tuning_from(tuning) for name, tuning in json.loads(metadata.get("tunings", "{}")).items()
        },
    )
    for key, tensor in tensors.items():
        name_space, _, rest = key.partition("/")
        if name_space in ("anomaly", "mask"):
            defect_type, _, encoder = rest.rpartition("/")
            check_type(defect_type)
            getattr(learned, name_space).setdefault(defect_type, {})[encoder] = tensor
        elif name_space == "adapter":
            learned.adapter[rest] = tensor
    configs = json.loads(metadata["spatial_encoder"])
    for name, config in configs.items():
        prefix = f"spatial_encoder/{name}/" if len(configs) > 1 else "spatial_encoder/"
        with torch.device("meta"):
            encoder = SpatialEncoder(SpatialEncoderConfig(**config))
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        encoder.load_state_dict(state, assign=True)
        learned.spatial_encoders[name] = encoder.eval()
    return learned


def _placement_from(fields: dict[str, Any]) -> Placement:
    pose = fields.get("pose")
    return Placement(
        fields["extent"],
        fields["area"],
        fields["centre"] and tuple(fields["centre"]),
        fields.get("on_object", 1.0),
        pose and Pose(tuple(pose["centre"]), pose["direction"], pose["length"]),
        tuple(fields.get("sides", ())),
    )


def tuning_from(fields: dict[str, Any]) -> Tuning:
    """Raises ValueError where settings are none that pairs can be made with."""
    tuning = Tuning(**fields)
    if tuning.start not in (PASTED, NOISE) or not 0 <= tuning.aar_strength < float("inf"):
        raise ValueError(f"no pair starts from {tuning.start!r} at strength {tuning.aar_strength}")
    if {type(tuning.accepted), type(tuning.tries)} != {int}:
        raise ValueError(f"{tuning.accepted!r} of {tuning.tries!r} tries are no numbers")
    SamplingConfig(
        guidance=tuning.guidance, denoise=tuning.denoise, aar=AARConfig(tuning.aar_mode, tuning.aar_strength)
    )
    return tuning


def check_type(defect_type: str) -> None:
    """Types become folder names, so one that leads elsewhere is refused (ValueError)."""
    parts = defect_type.split("/")
    leads_away = {".", ".."} & set(parts) or any(PureWindowsPath(part).drive for part in parts)
    if len(parts) != 2 or not all(parts) or leads_away or "\\" in defect_type:
        raise ValueError(f"{defect_type!r} is no category/defect, such as leather/burn")


def export_textual_inversion(learned: Learned, defect_type: str, path: Path) -> None:
    """One type's e_a as an ordinary textual-inversion file for ComfyUI's `embeddings` folder.

    ComfyUI reads one tensor per text encoder (`clip_l`, `clip_g`); a single encoder's is named `emb_params`.
    """
    tokens = learned.anomaly_tokens(defect_type)
    tensors = {"emb_params": next(iter(tokens.values()))} if len(tokens) == 1 else tokens
    write_atomically(path, {key: value.float() for key, value in tensors.items()}, {})


def export_lora(learned: Learned, path: Path) -> None:
    """The base's adapter as an ordinary LoRA file of a U-Net, in the names that ComfyUI, kohya's scripts and
    diffusers read; its strength 1 is what the model was trained on.
    """
    write_atomically(path, lora_state(learned.adapter), {})


def lora_state(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter by the names of a LoRA file."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        layer, _, direction = name.rpartition(".")
        key = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{key}.lora_{direction}.weight"] = tensor.float()
        if direction == "down":
            tensors[f"{key}.alpha"] = torch.tensor(float(len(tensor)))
    return tensors
