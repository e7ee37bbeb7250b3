"""Evaluation on ComfyUI's batches, device, progress bar and cancel button."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.sd import VAE
from torch import Tensor

from ...anomalydiffusion_core.dataset.augmentation import resize_mask
from ...anomalydiffusion_core.dataset.layout import Dataset
from ...anomalydiffusion_core.evaluation.classifier import ClassifierConfig, train_and_classify
from ...anomalydiffusion_core.evaluation.generation_metrics import (
    defect_patch,
    defect_patches,
    memorisation_rate,
    pair_quality,
)
from ...anomalydiffusion_core.evaluation.localization import (
    measure_by_defect,
    predictions_beside_truth,
    read_test_photos,
    stack_images,
)
from ...anomalydiffusion_core.evaluation.localizer import (
    Localizer,
    LocalizerConfig,
    LocalizerData,
    OnLoss,
    predict,
    train_localizer,
)
from ...anomalydiffusion_core.evaluation.split import Split, check_apart, split_category
from .conditioning import binary_masks
from .gate import canvas_size, changed_regions, matched_pairs
from .pixels import pixels_of, to_core
from .sampling import match_batch, match_images


def real_split(dataset: Dataset, category: str, share: float) -> Split:
    """The category asked for, or the first one, split into what trained and what measures; 0 leaves the share
    to `split_pairs`.
    """
    name = category.strip() or next(iter(dataset.categories))
    if name not in dataset.categories:
        raise ValueError(f"There is no category {name!r}: the dataset has {', '.join(dataset.categories)}.")
    return split_category(dataset.categories[name], share or None)


@contextmanager
def training(steps: int) -> Iterator[OnLoss]:
    """Gradients, which nodes run without, and a callback that shows progress and obeys Cancel."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(step: int, total: int, loss: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, total)

    with torch.inference_mode(False), torch.enable_grad():
        yield on_step


def train_on_batch(images: Tensor, masks: Tensor, normals: Tensor, config: LocalizerConfig) -> Localizer:
    """A localiser from photos (B,H,W,3), masks (B,H,W) and normal photos (M,H,W,3), in [0,1]."""
    images, marked = match_images(images, binary_masks(masks))
    side = (config.size, config.size)
    data = LocalizerData(
        stack_images(list(to_core(images)), config.size),
        resize_mask(marked.to(torch.uint8).cpu(), side),
        stack_images(list(to_core(normals[..., :3])), config.size),
    )
    with training(config.steps) as on_step:
        # tensors of inference mode cannot be trained on
        trainable = LocalizerData(data.images.clone(), data.masks.clone(), data.normals.clone())
        return train_localizer(trainable, config, comfy.model_management.get_torch_device(), on_step)


def evaluate(network: Localizer, size: int, split: Split) -> tuple[str, float, Tensor]:
    """Figures by defect as text, pixel AP of all, and heat maps (1,H,W,3) in [0,1]."""
    test = read_test_photos(split, size)
    predictions = predict(network, test.images, comfy.model_management.get_torch_device())
    by_defect = measure_by_defect(predictions, test)
    lines = [
        f"{name}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in metrics.items())
        for name, metrics in by_defect.items()
    ]
    picture = torch.from_numpy(predictions_beside_truth(predictions.maps, test)).float()[None] / 255
    return "\n".join(lines), by_defect["all"]["pixel_ap"], picture


def generation_metrics(
    images: Tensor, masks: Tensor, normals: Tensor, vae: VAE, *, split: Split
) -> tuple[str, float, float]:
    """Mean fill, change outside and IoU, and the share of copies: as text; fill and copies as numbers."""
    before, shown = match_batch(normals, binary_masks(masks))  # first, so that empty masks are told
    size = canvas_size(None, normals, vae)
    regions = [
        list(changed_regions(*photos, vae, size=size)) for photos in matched_pairs(images, masks, normals)
    ]
    noises = [max(region.noise for region in pair) for pair in regions]
    photos, clean, marked = pixels_of(images), pixels_of(before), shown[:, 0].cpu().numpy() > 0
    qualities = [pair_quality(clean[i], photos[i], marked[i], noises[i]) for i in range(len(images))]
    fill, outside, iou, precision, boundary = np.mean([astuple(quality) for quality in qualities], 0)
    known = defect_patches(split.few_shot_pairs)
    copies = memorisation_rate([defect_patch(*pair) for pair in zip(photos, marked, strict=True)], known)
    report = (
        f"{len(images)} pairs\nfill {fill:.2f}\nchange outside {outside:.3f} grey levels\n"
        f"IoU of mask and change {iou:.2f}, of their boundaries {boundary:.2f}\n"
        f"share of the change that is marked {precision:.2f}\ncopies of training defects {copies:.0%}"
    )
    return report, float(fill), copies


def train_and_test_classifier(
    generated: Dataset, split: Split, config: ClassifierConfig
) -> tuple[str, float]:
    """Accuracy and confusion matrix as text, and the accuracy. Raises ValueError where types differ."""
    pairs = [p for p in generated.pairs if p.category == split.category and p.defect in split.defects]
    missing = sorted(set(split.defects) - {pair.defect for pair in pairs})
    if missing:
        raise ValueError(f"No generated pairs of {split.category}: {', '.join(missing)}; generate them too.")
    photos = [pair.image for pair in pairs] + list(generated.categories[split.category].normals)
    check_apart(split, photos, [generated.root])
    device = comfy.model_management.get_torch_device()
    with training(config.steps) as on_step:
        result = train_and_classify(pairs, split, config, device, on_step=on_step)
    width = max(len(name) for name in result.names)
    rows = [
        f"{name:{width}} " + " ".join(f"{count:4d}" for count in row)
        for name, row in zip(result.names, result.confusion, strict=True)
    ]
    return "\n".join([f"accuracy {result.accuracy:.1%}", *rows]), result.accuracy
