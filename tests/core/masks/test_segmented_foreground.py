"""Foregrounds by a segmentation model: sizes and labels, on a small random network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from anomalydiffusion_core.masks.segmented_foreground import segmented_foreground


def written(folder: Path, chosen: int, labels: tuple[str, ...]) -> str:
    """A Segformer that labels every pixel `chosen`."""
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.copy_(torch.eye(len(labels))[chosen])
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_everything_but_background_is_object_at_the_photo_s_size(tmp_path: Path) -> None:
    labels = ("Background", "part", "clamp")
    for chosen in range(3):
        find = segmented_foreground(written(tmp_path / str(chosen), chosen, labels))
        for size in ((40, 70), (1100, 600)):
            foreground = find(np.zeros((*size, 3), np.uint8))
            assert foreground.shape == size and foreground.dtype == bool
            assert foreground.all() == foreground.any() == (chosen != 0)


def test_models_that_cannot_serve_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no label 'background' but part, wall: choose"):
        segmented_foreground(written(tmp_path / "other", 0, ("wall", "part")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded .*: give a folder"):
        segmented_foreground(str(tmp_path / "empty"))
