"""Guards procedural/few_shot.py: the demo's dataset."""

import numpy as np

from anomalydiffusion_core.dataset.photos import list_images, read_photo
from anomalydiffusion_core.procedural import few_shot
from anomalydiffusion_core.procedural.defects import DEFECTS


def test_the_few_shot_dataset_has_defects_the_base_never_saw_and_is_written_once(tmp_path):
    few_shot.write_few_shot_dataset(tmp_path, 48, pairs=2, normals=3)
    for category, (_, _, defects) in few_shot.CATEGORIES.items():
        assert not set(defects) & set(DEFECTS)
        assert len(list_images(tmp_path / category / "train" / "good")) == 3
        for defect in defects:
            for path in list_images(tmp_path / category / "test" / defect):
                mask = read_photo(tmp_path / category / "ground_truth" / defect / f"{path.stem}_mask.png")
                assert set(np.unique(mask.pixels)) == {0, 255}
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    few_shot.write_few_shot_dataset(tmp_path, 48, pairs=2, normals=3, seed=9)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before
