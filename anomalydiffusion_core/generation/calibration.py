"""Gates calibrated for a defect type on its real pairs and on spots of normal photos; what they lack."""

from __future__ import annotations

from ..dataset.photos import read_mask
from ..gate.features import Backbone
from ..gate.gate import Gate
from ..gate.region_view import RegionView
from ..masks.sources import REAL, SourcedMask
from ..method.sampling import image_generator
from .drafting import Drafter, Unusable
from .regions import region_on_canvas, regions_on_canvas

SPOTS = 24  # on normal photos, to calibrate with


def calibrated_gate(drafter: Drafter, defect_type: str, backbone: Backbone) -> Gate:
    """The gate of a type by the drafter's real pairs; spots are these pairs' masks on its normal photos."""
    size = drafter.learned.image_size
    real = [regions_on_canvas(photo, mask, size) for photo, mask in drafter.real_pairs(defect_type)]
    masks, normals = drafter.real_masks(defect_type), len(drafter.normals)
    spots: list[RegionView] = []
    # photo by photo, so that each is read once
    for number in sorted(range(SPOTS if masks else 0), key=lambda number: number % normals):
        normal = drafter.normal(number % normals)
        mask = SourcedMask(read_mask(masks[number % len(masks)]), REAL, placed=True)
        generator = image_generator(0, number, f"{defect_type} spots")
        try:
            spot = drafter.defect(defect_type, mask, normal, generator)
        except Unusable:
            continue
        spots.append(region_on_canvas(normal.photo, spot.regions[0], size))
    return Gate(real, spots, backbone, drafter.config.gate)
