"""What training learns, together: anomaly embeddings, mask embeddings and the spatial encoder, for one
base.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .latent_diffusion import Fingerprint
from .spatial_encoder import SpatialEncoder

TokensByEncoder = dict[str, Tensor]  # {"clip_l": (k, d)}


@dataclass(frozen=True)
class Pose:
    """How a training mask lies in the frame of its object (`object_frame.Frame`)."""

    centre: tuple[float, float]  # (along, across) of its centroid, in the object's half extents
    direction: float | None  # radians from along towards across; None where it has no main direction
    length: float  # along its main direction, in square roots of the photo's area


@dataclass(frozen=True)
class Placement:
    """A training mask's longest side and its area, and its centre (y, x) or None for anywhere, in shares of
    the photo; the share of it that lies on the object, and its pose there, None where there is no object; and
    the sides of the photo that it runs into (`masks.edges.SIDES`).
    """

    extent: float
    area: float
    centre: tuple[float, float] | None
    on_object: float = 1.0
    pose: Pose | None = None
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """The settings that suit a defect type: what denoising starts from (`pasted` or `noise`), the share of
    the schedule a pasted defect is noised to, guidance, and attention re-weighting; and how many of how many
    `tries` with them the gate `accepted`.
    """

    start: str
    denoise: float
    guidance: float
    aar_mode: str
    aar_strength: float
    accepted: int = 0
    tries: int = 0


@dataclass
class Learned:
    """Learned vectors by defect type (`category/defect`) and the shared spatial encoder."""

    base: Fingerprint
    image_size: int  # pixels per side of the training views
    templates: tuple[str, ...]
    anomaly: dict[str, TokensByEncoder] = field(default_factory=dict)
    mask: dict[str, TokensByEncoder] = field(default_factory=dict)
    spatial_encoders: dict[str, SpatialEncoder] = field(default_factory=dict)  # one per text encoder
    training: dict[str, object] = field(
        default_factory=dict
    )  # configuration, step and losses, for the record
    dataset_fingerprint: str = ""
    mask_areas: dict[str, float] = field(default_factory=dict)  # smallest training mask, share of the photo
    mask_placements: dict[str, list[Placement]] = field(default_factory=dict)  # of the training masks
    trained_on: dict[str, list[str]] = field(default_factory=dict)  # short hashes of the training photos
    tunings: dict[str, Tuning] = field(default_factory=dict)  # of the types whose settings were tried
    # low-rank update of the base that all was learned on: `<layer>.down` (r,in) and `<layer>.up` (out,r)
    adapter: dict[str, Tensor] = field(default_factory=dict)

    def remember(self, defect_type: str, photos: Iterable[str]) -> None:
        """Adds photos to those that a type was trained on."""
        self.trained_on[defect_type] = sorted({*self.trained_on.get(defect_type, []), *photos})

    def copied(self) -> Learned:
        """The same, in tables of its own, that may be added to."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: dict(value) for name, value in values.items() if isinstance(value, dict)}
        )

    def anomaly_tokens(self, defect_type: str) -> TokensByEncoder:
        """e_a of one defect type; raises ValueError naming those that exist."""
        return _look_up(self.anomaly, defect_type, "anomaly embedding")

    def mask_tokens(self, defect_type: str) -> TokensByEncoder:
        """e_m of one defect type; raises ValueError naming those that exist."""
        return _look_up(self.mask, defect_type, "mask embedding")

    def training_json(self) -> str:
        return json.dumps(self.training, sort_keys=True)


def _look_up(table: dict[str, TokensByEncoder], defect_type: str, what: str) -> TokensByEncoder:
    if defect_type not in table:
        known = ", ".join(sorted(table)) or "none"
        raise ValueError(f"There is no {what} for {defect_type!r}: this artifact has {known}.")
    return table[defect_type]


def starting_tokens(word_vectors: TokensByEncoder, count: int, generator: torch.Generator) -> TokensByEncoder:
    """`count` vectors (count,d) around the mean of some words' vectors, told apart by a little noise."""
    tokens = {}
    for encoder, vectors in word_vectors.items():
        mean = vectors.mean(0, keepdim=True).cpu()
        noise = torch.randn((count, mean.shape[1]), generator=generator)
        tokens[encoder] = mean + 0.1 * mean.square().mean().sqrt() * noise
    return tokens
