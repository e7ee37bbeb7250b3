"""Gates calibrated for a defect type: on its real pairs, and on spots of normal photos."""

from __future__ import annotations

from .backbone import Backbone
from .drafting import Drafter
from .gate import Canvas, Gate
from .mask_sources import REAL, SourcedMask
from .sampling import image_generator
from .stitching import regions_on_canvas

SPOTS = 24  # on normal photos, to calibrate with


def calibrated_gate(drafter: Drafter, defect_type: str, backbone: Backbone) -> Gate:
    """The gate of a type by the drafter's real pairs; spots are these pairs' masks on its normal photos."""
    size = drafter.model.image_size
    pairs = drafter.real_pairs(defect_type)
    real = [regions_on_canvas(photo, mask, size) for photo, mask in pairs]
    spots: list[Canvas] = []
    for number in range(SPOTS if pairs else 0):
        known = drafter.normal(number % len(drafter.normals))
        mask = SourcedMask(pairs[number % len(pairs)][1], REAL, placed=True)
        generator = image_generator(0, number, f"{defect_type} spots")
        laid, _ = drafter.mask(defect_type, mask, known, generator)
        if laid is not None:
            spots += regions_on_canvas(known.photo, laid, size)[:1]
    return Gate(real, spots, backbone, drafter.config.gate)
