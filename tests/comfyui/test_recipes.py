"""The recipes of docs/architecture.md in a real ComfyUI: the nodes have what is added to a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Callable[..., tuple]


def choices(run: Any, node_id: str, name: str) -> list[str]:
    schema = run.nodes[node_id].define_schema()
    return next(entry for entry in schema.inputs if entry.id == name).options


def test_a_mode_of_re_weighting_is_offered_and_samples(
    run: Run, generated: Run, masks: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.anomalydiffusion_core.method.reweighting import (  # type: ignore[import-not-found]
        MODES,
        ReweightingMode,
    )

    dummy = ReweightingMode(
        lambda moment, aar: moment.target.m_z,
        MODES["masked"].attention,
        lambda m_z, progress, steps, widening: m_z,
    )
    monkeypatch.setitem(MODES, "dummy", dummy)
    for node_id in ("ADiff_KSampler", "ADiff_AttentionReweighting"):
        assert choices(run, node_id, "mode") == list(MODES) and "dummy" in MODES
    images, marked, _, _ = generated(masks, mode="dummy")
    plain = generated(masks, mode="off")[0]
    difference = (images - plain).abs().amax(-1)
    assert float(difference[marked > 0].max()) > 0.01
    assert torch.equal(images[marked == 0], plain[marked == 0])
