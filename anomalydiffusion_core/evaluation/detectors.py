"""anomalib's detectors on the same split: normal photos train them, and pairs calibrate their thresholds.

Photos reach them through anomalib's own Folder data module, from a temporary folder laid out for it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from ..dataset.photos import Photo, read_photo, write_png
from ..dataset.views import read_pair
from ..gate import imagenet
from .localization import TestPhotos
from .localizer import Predictions
from .split import Split

# Raise the number when the same photos and seed train, calibrate or measure a detector otherwise: results
# kept by it are then made again.
METHOD = "detectors/1"
PATCHCORE_LITE0 = "patchcore-lite0"  # anomalib's PatchCore on the gate's network: nothing is downloaded
CALIBRATION_SHARE = 1 / 5  # of the normal photos: they calibrate thresholds, and train nothing


@dataclass(frozen=True)
class Thresholds:
    """Above which a photo, or a pixel, is defective: those of the greatest F1 on calibration photos."""

    image: float
    pixel: float


def new_detector(name: str) -> Any:
    """An untrained detector of anomalib (patchcore, padim, cflow, cfa, reverse_distillation, draem, ...), its
    backbone with published weights; `patchcore-lite0` has those of the extra `features`.

    Raises ValueError where anomalib or the extra is not installed, knows no such one, or weights cannot be
    had.
    """
    if name == PATCHCORE_LITE0:
        imagenet.check_installed()
    try:
        with _quiet():
            from anomalib.models import UnknownModelError, get_model, list_models
    except ImportError:
        raise ValueError(
            'Detectors need anomalib: pip install "comfyui-anomalydiffusion[detectors]".'
        ) from None
    try:
        with _quiet():
            method, own = ("patchcore", _patchcore_options()) if name == PATCHCORE_LITE0 else (name, {})
            return get_model(method, evaluator=False, visualizer=False, **own)
    except UnknownModelError:
        known = ", ".join(sorted(list_models()))
        raise ValueError(f"anomalib has no detector {name!r}: it has {known}, {PATCHCORE_LITE0}.") from None
    except OSError as error:
        raise ValueError(
            f"What anomalib's {name} starts from cannot be fetched ({str(error).split('. ')[0]}): run it "
            "once where there is access, and copy the caches of Hugging Face and torch."
        ) from None


def _patchcore_options() -> dict[str, Any]:
    """PatchCore's own arguments for the network of the extra `features`, at strides 8 and 16."""
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    mean, deviation = imagenet.MEAN / 255, imagenet.DEVIATION / 255
    transform = Compose([Resize((256, 256), antialias=True), Normalize([mean] * 3, [deviation] * 3)])
    return {
        "backbone": imagenet.efficientnet_lite0(),
        "layers": ["blocks.2", "blocks.4"],
        "pre_processor": PreProcessor(transform=transform),
    }


def detect(
    make: Callable[[], Any],
    split: Split,
    test: TestPhotos,
    calibrations: dict[str, list[Pair]],
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Predictions, dict[str, Thresholds]]:
    """Makes a detector and trains it for at most `steps` batches of 8, as many as its method takes; its
    predictions of the test photos, in units of its own, and its thresholds by the pairs that calibrate them.

    Raises ValueError where there are fewer than two normal photos.
    """
    if len(split.normals) < 2:
        raise ValueError(
            "Detectors need two normal photos in train/good, one of them to calibrate on: add some."
        )
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.seed import isolate_rng

    held = max(1, int(len(split.normals) * CALIBRATION_SHARE))
    normals, calibrating = split.normals[:-held], split.normals[-held:]
    with _quiet(), isolate_rng(), TemporaryDirectory() as temporary:
        seed_everything(seed)
        detector = make()
        detector.post_processor.enable_normalization = False  # which clips scores, and so ties them
        folder = Path(temporary)
        train = _photos(folder / "train", normals, [])
        data = _data(split.category, train, _photos(folder / "test", split.test_normals, split.test_pairs))
        engine = _engine(folder, device, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        engine.fit(detector, datamodule=data)
        thresholds = {}
        for number, (name, pairs) in enumerate(calibrations.items()):
            shown = _photos(folder / f"calibration{number}", calibrating, pairs)
            thresholds[name] = _calibrated(detector, _data(split.category, train, shown), folder, device)
        batches = _engine(folder, device).predict(detector, dataloaders=data.test_dataloader()) or []
    return _in_test_order(batches, split, test.images.shape[-1]), thresholds


def _calibrated(detector: Any, data: Any, folder: Path, device: torch.device | str) -> Thresholds:
    data.setup()
    _engine(folder, device).validate(detector, dataloaders=data.test_dataloader(), verbose=False)
    post = detector.post_processor
    return Thresholds(float(post.image_threshold), float(post.pixel_threshold))


def _in_test_order(batches: Sequence[Any], split: Split, size: int) -> Predictions:
    """anomalib's batches in the order of the test photos: defective ones, then normal ones."""
    predicted = {
        Path(path).parts[-2:]: (anomaly_map.float(), score.float())
        for batch in batches
        for path, anomaly_map, score in zip(
            batch.image_path, batch.anomaly_map, batch.pred_score, strict=True
        )
    }
    rows = [
        predicted[folder, _name(number)]
        for folder, photos in (("bad", split.test_pairs), ("good", split.test_normals))
        for number in range(len(photos))
    ]
    maps = torch.stack([row.reshape(1, *row.shape[-2:]) for row, _ in rows])
    maps = F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)[:, 0]
    return Predictions(maps.cpu(), torch.stack([score.reshape(()) for _, score in rows]).cpu())


def calibrated_f1(predictions: Predictions, thresholds: Thresholds, test: TestPhotos) -> tuple[float, float]:
    """F1 of pixels, and of photos, on the test photos at these thresholds."""
    return (
        _f1(predictions.maps.numpy() > thresholds.pixel, test.masks),
        _f1(predictions.scores.numpy() > thresholds.image, np.any(test.masks, axis=(1, 2))),
    )


def _f1(flagged: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (flagged & truth).sum() / max(1, flagged.sum() + truth.sum()))


def _photos(folder: Path, normals: Sequence[Path], pairs: Sequence[Pair]) -> Path:
    """Writes good/, bad/ and mask/ below `folder`, numbered; as this package reads photos, since anomalib
    reads 16 bits, transparency and turned photos otherwise.
    """
    for number, path in enumerate(normals):
        write_png(_at_8_bits(read_photo(path)), folder / "good" / _name(number))
    for number, (photo, mask) in enumerate(map(read_pair, pairs)):
        write_png(_at_8_bits(photo), folder / "bad" / _name(number))
        write_png(Image.fromarray(mask[0].numpy() * 255), folder / "mask" / _name(number))
    return folder


def _at_8_bits(photo: Photo) -> Image.Image:
    return Photo(photo.pixels, photo.gray).image()


def _name(number: int) -> str:
    return f"{number:06d}.png"


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

    name = torch.device(device).type
    accelerator = {"cuda": "gpu"}.get(name, name)
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
