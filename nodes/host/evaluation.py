"""Evaluation on ComfyUI's batches, device, progress bar and cancel button."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
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
    predict,
    train_localizer,
)
from ...anomalydiffusion_core.evaluation.split import Split, check_apart, split_category
from .conditioning import binary_masks
from .gate import canvas_size, made_regions
from .pixels import pixels_of, to_core
from .sampling import match_batch

OnStep = Callable[[int, int, float], None]


def real_split(dataset: Dataset, category: str, share: float) -> Split:
    """The category asked for, or the first one, split into what trained and what measures."""
    name = category.strip() or next(iter(dataset.categories))
    if name not in dataset.categories:
        raise ValueError(f"There is no category {name!r}: the dataset has {', '.join(dataset.categories)}.")
    return split_category(dataset.categories[name], share)


@contextmanager
def training(steps: int) -> Iterator[OnStep]:
    """Gradients, which nodes run without, and a callback that shows progress and obeys Cancel."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(step: int, total: int, loss: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, total)

    with torch.inference_mode(False), torch.enable_grad():
        yield on_step


def train_on_batch(images: Tensor, masks: Tensor, normals: Tensor, config: LocalizerConfig) -> Localizer:
    """A localiser from photos (B,H,W,3), masks (B,H,W) and normal photos (M,H,W,3), in [0,1]."""
    images, marked = match_batch(images, binary_masks(masks))
    side = (config.size, config.size)
    data = LocalizerData(
        stack_images(list(to_core(images)), config.size),
        resize_mask(marked.to(torch.uint8).cpu(), side),
        stack_images(list(to_core(normals[..., :3])), config.size),
    )
    with training(config.steps) as on_step:
        # tensors of inference mode cannot be trained on
        own = LocalizerData(data.images.clone(), data.masks.clone(), data.normals.clone())
        return train_localizer(own, config, comfy.model_management.get_torch_device(), on_step)


def evaluate(
    network: Localizer, size: int, dataset: Dataset, category: str, share: float
) -> tuple[str, float, Tensor]:
    """Figures by defect as text, pixel AP of all, and heat maps (1,H,W,3) in [0,1]."""
    test = read_test_photos(real_split(dataset, category, share), size)
    predictions = predict(network, test.images, comfy.model_management.get_torch_device())
    found = measure_by_defect(predictions, test)
    lines = [
        f"{name}: " + ", ".join(f"{metric} {100 * value:.1f}" for metric, value in vars(figures).items())
        for name, figures in found.items()
    ]
    picture = torch.from_numpy(predictions_beside_truth(predictions.maps, test)).float()[None] / 255
    return "\n".join(lines), found["all"].pixel_ap, picture


def generation_metrics(
    images: Tensor, masks: Tensor, normals: Tensor, vae: Any, dataset: Dataset, category: str, share: float
) -> tuple[str, float, float]:
    """Mean fill, change outside and IoU, and the share of copies: as text; fill and copies as numbers."""
    before, shown = match_batch(normals, binary_masks(masks))  # first, so that empty masks are told
    regions = made_regions(images, masks, normals, vae, canvas_size(None, normals, vae))
    noises = [max(made.noise for made in pair) for pair in regions]
    made, good, marked = pixels_of(images), pixels_of(before), shown[:, 0].cpu().numpy() > 0
    found = [pair_quality(good[i], made[i], marked[i], noises[i]) for i in range(len(images))]
    fill, outside, iou = np.mean([(q.fill, q.background, q.iou) for q in found], 0)
    known = defect_patches(real_split(dataset, category, share).few_shot_pairs)
    copies = memorisation_rate([defect_patch(*pair) for pair in zip(made, marked, strict=True)], known)
    report = (
        f"{len(images)} pairs\nfill {fill:.2f}\nchange outside {outside:.3f} grey levels\n"
        f"IoU of mask and change {iou:.2f}\ncopies of training defects {copies:.0%}"
    )
    return report, float(fill), copies


def train_and_test_classifier(
    generated: Dataset, dataset: Dataset, category: str, share: float, config: ClassifierConfig
) -> tuple[str, float]:
    """Accuracy and confusion matrix as text, and the accuracy. Raises ValueError where types differ."""
    split = real_split(dataset, category, share)
    pairs = [p for p in generated.pairs if p.category == split.category and p.defect in split.defects]
    missing = sorted(set(split.defects) - {pair.defect for pair in pairs})
    if missing:
        raise ValueError(f"No generated pairs of {split.category}: {', '.join(missing)}; generate them too.")
    photos = [pair.image for pair in pairs] + list(generated.categories[split.category].normals)
    check_apart(split, photos, [generated.root])
    device = comfy.model_management.get_torch_device()
    with training(config.steps) as on_step:
        found = train_and_classify(pairs, split, config, device, on_step)
    width = max(len(name) for name in found.names)
    rows = [
        f"{name:{width}} " + " ".join(f"{count:4d}" for count in row)
        for name, row in zip(found.names, found.confusion, strict=True)
    ]
    return "\n".join([f"accuracy {found.accuracy:.1%}", *rows]), found.accuracy
