"""anomalib's detectors on the same split: normal photos train them, and pairs calibrate their thresholds.

Photos reach them through anomalib's own Folder data module, from a temporary folder laid out for it.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..dataset.layout import Pair
from ..dataset.photos import read_mask, write_png
from .localization import TestPhotos
from .localizer import Predictions
from .split import Split

CALIBRATION_SHARE = 1 / 5  # of the normal photos: they calibrate thresholds, and train nothing


@dataclass(frozen=True)
class Thresholds:
    """Above which a photo, or a pixel, is defective: those of the greatest F1 on calibration photos."""

    image: float
    pixel: float


def new_detector(name: str) -> Any:
    """An untrained detector of anomalib (patchcore, padim, cflow, cfa, reverse_distillation, draem, ...), its
    backbone with published weights.

    Raises ValueError where anomalib is not installed, knows no such one, or weights cannot be had.
    """
    try:
        from anomalib.models import UnknownModelError, get_model, list_models
    except ImportError:
        raise ValueError(
            'Detectors need anomalib: pip install "comfyui-anomalydiffusion[detectors]".'
        ) from None
    try:
        with _quiet():
            return get_model(name, evaluator=False, visualizer=False)
    except UnknownModelError:
        known = ", ".join(sorted(list_models()))
        raise ValueError(f"anomalib has no detector {name!r}: it has {known}.") from None
    except OSError as error:
        raise ValueError(
            f"What anomalib's {name} starts from cannot be fetched ({str(error).splitlines()[0]}): run it "
            "once where there is access, and copy the caches of Hugging Face and torch."
        ) from None


def detect(
    detector: Any,
    split: Split,
    test: TestPhotos,
    calibrations: dict[str, list[Pair]],
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Predictions, dict[str, Thresholds]]:
    """Trains a detector for at most `steps` batches of 8, as many as its method takes, calibrates it on each
    set of pairs, and looks at the test photos: what it finds, in its own units, and its thresholds by set.

    Raises ValueError where there are fewer than two normal photos.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.seed import isolate_rng

    normals, held = _calibration_split(split.normals)
    with _quiet(), isolate_rng(), TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = _photos(folder / "train", normals, [])
        seed_everything(seed)
        detector.post_processor.enable_normalization = False  # which clips scores, and so ties them
        data = _data(split.category, photos, _photos(folder / "test", split.test_normals, split.test_pairs))
        engine = _engine(folder, device, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        engine.fit(detector, datamodule=data)
        thresholds = {}
        for number, (name, pairs) in enumerate(calibrations.items()):
            calibration = _data(split.category, photos, _photos(folder / f"calibration{number}", held, pairs))
            calibration.setup()
            _engine(folder, device).validate(
                detector, dataloaders=calibration.test_dataloader(), verbose=False
            )
            post = detector.post_processor
            thresholds[name] = Thresholds(float(post.image_threshold), float(post.pixel_threshold))
        batches = _engine(folder, device).predict(detector, dataloaders=data.test_dataloader()) or []
    found = {
        Path(path).name: (anomaly_map, score)
        for batch in batches
        for path, anomaly_map, score in zip(
            batch.image_path, batch.anomaly_map, batch.pred_score, strict=True
        )
    }
    wanted = [_name(pair) for pair in split.test_pairs] + [_name(path) for path in split.test_normals]
    size = test.images.shape[-1]
    maps = torch.stack([found[name][0].float().reshape(1, *found[name][0].shape[-2:]) for name in wanted])
    maps = F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)[:, 0]
    scores = torch.stack([found[name][1].float().reshape(()) for name in wanted])
    return Predictions(maps.cpu(), scores.cpu()), thresholds


def calibrated_f1(found: Predictions, thresholds: Thresholds, test: TestPhotos) -> tuple[float, float]:
    """F1 of pixels, and of photos, on the test photos at these thresholds."""
    return (
        _f1(found.maps.numpy() > thresholds.pixel, test.masks),
        _f1(found.scores.numpy() > thresholds.image, np.any(test.masks, axis=(1, 2))),
    )


def _f1(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


def _calibration_split(normals: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    if len(normals) < 2:
        raise ValueError(
            "Detectors need two normal photos in train/good, one of them to calibrate on: add some."
        )
    held = max(1, int(len(normals) * CALIBRATION_SHARE))
    return list(normals[:-held]), list(normals[-held:])


def _photos(folder: Path, normals: Sequence[Path], pairs: Sequence[Pair]) -> Path:
    """Writes good/, bad/ and mask/ below `folder`, each photo under a name of its own."""
    for path in normals:
        _show(path, folder / "good" / _name(path))
    for pair in pairs:
        _show(pair.image, folder / "bad" / _name(pair))
        mask = folder / "mask" / Path(_name(pair)).with_suffix(".png").name
        write_png(Image.fromarray(read_mask(pair.mask).astype(np.uint8) * 255), mask)
    return folder


def _show(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:  # not allowed to everyone on Windows
        shutil.copyfile(source, target)


def _name(photo: Pair | Path) -> str:
    if isinstance(photo, Path):
        return f"good_{photo.name}"
    return f"{photo.defect}_{photo.image.name}"


def _data(category: str, train: Path, test: Path) -> Any:
    from anomalib.data import Folder

    return Folder(
        name=category,
        normal_dir=train / "good",
        normal_test_dir=test / "good",
        abnormal_dir=test / "bad",
        mask_dir=test / "mask",
        val_split_mode="none",
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
    )


def _engine(folder: Path, device: torch.device | str, **options: Any) -> Any:
    from anomalib.engine import Engine

    kind = torch.device(device).type
    accelerator = {"cuda": "gpu"}.get(kind, kind)
    return Engine(
        default_root_dir=folder / "anomalib", accelerator=accelerator, devices=1, barebones=True, **options
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the packages' own lines, which would tear the progress apart."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
