"""AAR in the sampler, end to end against a slow sampler: loops over pixels, cells, heads and columns, full
attention maps, written from the formulas alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.attention import Columns, marked
from anomalydiffusion_core.method.latent_diffusion import Context
from anomalydiffusion_core.method.reweighting import MODES, AARConfig, ReweightingMode
from anomalydiffusion_core.method.sampling import (
    SamplingConfig,
    SamplingRequest,
    image_generator,
    sample_into,
)

WEIGHTED = [mode for mode in MODES if mode != "off"]
FACTOR = 8
Grid = dict[tuple[int, int], float]  # (row, column) -> value


@dataclass
class Scene:
    """Two photos of odd latent size with a mask each, and their contexts, vectors at different columns."""

    photo: Tensor
    mask: Tensor
    context: Context
    empty: Context


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class CalmModel(DiffusersModel):
    """A base whose U-Net tells z0 itself, so that estimates stay small and weights of all sizes occur."""

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (noisy - alpha * super().predict_noise(noisy, t, context)) / sigma


@pytest.fixture
def base(small_base: DiffusersModel) -> DiffusersModel:
    calm = copy.copy(small_base)
    calm.__class__ = CalmModel
    return calm


@pytest.fixture
def scene(base: DiffusersModel) -> Scene:
    photo, mask = randn(2, 3, 24, 40).clamp(-1, 1), torch.zeros(2, 1, 24, 40)
    mask[0, 0, 3:19, 10:30], mask[1, 0, 17:20, 1:21] = 1, 1
    with torch.no_grad():
        context = base.encode_prompts(["a photo of a {}", "a {}"], {"clip_l": randn(2, 3, 16)})
        return Scene(photo, mask, context, base.encode_prompts(["", ""]))


# --- the slow sampler


def cells(mask: Tensor) -> set[tuple[int, int]]:
    """m_z: every latent cell that the mask (H,W) touches."""
    return {(i // FACTOR, j // FACTOR) for i, j in mask.nonzero().tolist()}


def dilated(marked: set[tuple[int, int]], radius: int, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """Every cell with a marked one at most `radius` rows and columns away."""
    return {
        (i, j)
        for i in range(shape[0])
        for j in range(shape[1])
        if any(abs(i - a) <= radius and abs(j - b) <= radius for a, b in marked)
    }


def paper(photo: Tensor, decoded: Tensor, mask: Tensor, temperature: float) -> Grid:
    """Eq. 7-8 on pixels (3,H,W): ||m||_1 softmax(1/d) over the mask."""
    d = {
        (i, j): sum(float(photo[c, i, j] - decoded[c, i, j]) ** 2 for c in range(3))
        for i, j in mask.nonzero().tolist()
    }
    exponents = {pixel: 1 / (value * temperature) for pixel, value in d.items()}
    top = max(exponents.values())
    total = sum(math.exp(value - top) for value in exponents.values())
    return {pixel: len(d) * math.exp(value - top) / total for pixel, value in exponents.items()}


def released(noisy: Tensor, normal: Tensor, region: set[tuple[int, int]]) -> Grid:
    """||M||_1 (1/d) / sum(1/d) on cells (C,h,w), clipped to [1, 1.5]."""
    channels = len(noisy)
    inverse = {
        (i, j): channels / sum(float(noisy[c, i, j] - normal[c, i, j]) ** 2 for c in range(channels))
        for i, j in region
    }
    total = sum(inverse.values())
    return {cell: min(max(len(region) * v / total, 1.0), 1.5) for cell, v in inverse.items()}


def adaptive(clean: Tensor, normal: Tensor, m_z: set[tuple[int, int]], maximum: float) -> Grid:
    """1 / sqrt(d) on cells (C,h,w), clipped to [1, maximum]."""
    d = {
        (i, j): sum(float(clean[c, i, j] - normal[c, i, j]) ** 2 for c in range(len(clean))) / len(clean)
        for i, j in m_z
    }
    return {cell: min(max(1 / math.sqrt(value), 1.0), maximum) for cell, value in d.items()}


def spread(weights: Grid, shape: tuple[int, int], strength: float, outside: float) -> list[list[float]]:
    """1 + strength (w - 1), never negative, on a whole map."""
    return [
        [max(0.0, 1 + strength * (weights.get((i, j), outside) - 1)) for j in range(shape[1])]
        for i in range(shape[0])
    ]


def at_level(w: list[list[float]], count: int) -> list[float]:
    """The map's averages over the fields of a U-Net level with `count` queries; sides halve, rounding up."""
    height, width = len(w), len(w[0])
    rows, columns = height, width
    while rows * columns > count:
        rows, columns = -(-rows // 2), -(-columns // 2)
    assert rows * columns == count
    averages = []
    for i in range(rows):
        for j in range(columns):
            field = [
                w[a][b]
                for a in range(i * height // rows, -(-(i + 1) * height // rows))
                for b in range(j * width // columns, -(-(j + 1) * width // columns))
            ]
            averages.append(sum(field) / len(field))
    return averages


class SlowAttention:
    """Cross-attention entry by entry; `maps` holds a weight map per image."""

    def __init__(self, mode: str, maps: list[list[list[float]]], columns: list[range]) -> None:
        self.mode, self.maps, self.columns = mode, maps, columns

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).tolist()
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        out = []
        for b, w in enumerate(self.maps):
            weights = at_level(w, hidden_states.shape[1])
            heads = [
                self._head(q[b][h], k[b][h], v[b][h], weights, self.columns[b]) for h in range(attn.heads)
            ]
            out.append([[x for head in heads for x in head[i]] for i in range(len(weights))])
        return attn.to_out[0](torch.tensor(out))

    def _head(self, q: list, k: list, v: list, weights: list[float], columns: range) -> list[list[float]]:
        rows = []
        for query, w in zip(q, weights, strict=True):
            logits = [sum(map(mul, query, key)) / len(query) ** 0.5 for key in k]
            if self.mode == "released":
                logits = [x * w if t == 0 or t in columns else x for t, x in enumerate(logits)]
            top = max(logits)
            exponentials = [math.exp(x - top) for x in logits]
            total = sum(exponentials)
            a = [x / total for x in exponentials]
            if self.mode == "paper":
                a = [x * w for x in a]
            elif self.mode != "released":
                a = [x * w if t in columns else x for t, x in enumerate(a)]
            rows.append([sum(map(mul, a, channel)) for channel in zip(*v, strict=True)])
        return rows


@contextmanager
def slow_attention(base: DiffusersModel, attention: SlowAttention | None) -> Iterator[None]:
    former = dict(base.unet.attn_processors)
    if attention:
        base.unet.set_attn_processor({k: attention if ".attn2." in k else p for k, p in former.items()})
    try:
        yield
    finally:
        base.unet.set_attn_processor(former)


def maps_of_weights(
    scene: Scene, config: AARConfig, regions: list, z_t: Tensor, normal: Tensor, clean: Tensor | None,
    decode: Callable[[Tensor], Tensor],
) -> list[list[list[float]]] | None:  # fmt: skip
    latent, pixels = (z_t.shape[2], z_t.shape[3]), (scene.photo.shape[2], scene.photo.shape[3])
    maps = []
    for b in range(2):
        mask, outside, shape = scene.mask[b, 0], 1.0, latent
        if config.mode == "released":
            weights = released(z_t[b], normal[b], regions[b])
        elif config.mode == "masked":
            weights, outside = dict.fromkeys(cells(mask), 1.0), 0.0
        elif clean is None:
            return None
        elif config.mode == "adaptive":
            weights = adaptive(clean[b], normal[b], cells(mask), config.maximum)
        else:
            weights = paper(scene.photo[b], decode(clean)[b], mask, config.temperature)
            shape = pixels
        maps.append(spread(weights, shape, config.strength, outside))
    return maps


@torch.no_grad()
def slow_sampler(base: DiffusersModel, scene: Scene, config: SamplingConfig, seed: int) -> Tensor:
    """DDIM (Song et al., 2021, Eq. 12 and 16) with guidance, Eq. 1 before every step and after the last."""
    abar, aar, normal = base.schedule.alphas_cumprod, config.aar, base.encode(scene.photo)
    shape = normal.shape[2], normal.shape[3]
    generators = [image_generator(seed, b) for b in range(2)]
    start = torch.stack([torch.randn((4, *shape), generator=g) for g in generators])
    x, clean = start + abar[999].sqrt() * normal, None
    assert isinstance(scene.context.columns, tuple)
    columns = [range(part.start, part.stop) for part in scene.context.columns]
    masks = [cells(scene.mask[b, 0]) for b in range(2)]
    for step in range(config.steps):
        t, after = (round(1000 - i * 1000 / config.steps) - 1 for i in (step, step + 1))
        a, a_next = abar[t], abar[after] if after >= 0 else torch.tensor(1.0)
        radius = round(config.widening * max(shape) * t / 1000)
        if aar.mode == "released":
            radius = math.floor((t + 100) * (16 if config.steps == 50 else 8) / 1000)
        regions = [dilated(marked, radius, shape) for marked in masks]
        noised = a.sqrt() * normal + (1 - a).sqrt() * start
        for b in range(2):
            for i in range(shape[0]):
                for j in range(shape[1]):
                    if (i, j) not in regions[b]:
                        x[b, :, i, j] = noised[b, :, i, j]
        maps = None
        if aar.start <= step / config.steps < aar.end:
            maps = maps_of_weights(scene, aar, regions, x, normal, clean, base.decode)
        time = torch.full((2,), float(t))
        with slow_attention(base, SlowAttention(aar.mode, maps, columns) if maps else None):
            eps = base.predict_noise(x, time, scene.context)
        if config.guidance != 1:
            unguided = base.predict_noise(x, time, scene.empty)
            eps = unguided + config.guidance * (eps - unguided)
        clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = config.eta * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
        noise = torch.stack([torch.randn((1, 4, *shape), generator=g)[0] for g in generators])
        x = a_next.sqrt() * clean + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps + sigma * noise
    for b in range(2):
        for i in range(shape[0]):
            for j in range(shape[1]):
                if (i, j) not in masks[b]:
                    x[b, :, i, j] = normal[b, :, i, j]
    return x


# --- end to end


def generate(base: DiffusersModel, scene: Scene, config: SamplingConfig, seed: int = 0) -> Tensor:
    generators = [image_generator(seed, b) for b in range(2)]
    return sample_into(
        base, scene.photo, scene.mask, SamplingRequest(scene.context, scene.empty, generators), config=config
    )


@pytest.mark.parametrize(
    ("aar", "guidance"),
    [
        (AARConfig("paper"), 1.0),
        (AARConfig("paper", strength=0.3, temperature=20.0, start=0.5), 3.0),
        (AARConfig("released"), 3.0),
        (AARConfig("released", strength=4.0, end=0.5), 1.0),
        (AARConfig("adaptive"), 3.0),
        (AARConfig("adaptive", strength=2.0, maximum=1.3, start=0.25, end=0.75), 1.0),
        (AARConfig("masked", strength=0.8), 3.0),
    ],
    ids=lambda value: f"{value.mode} {value.strength}" if isinstance(value, AARConfig) else str(value),
)
def test_every_mode_is_the_slow_sampler(
    base: DiffusersModel, scene: Scene, aar: AARConfig, guidance: float
) -> None:
    config = SamplingConfig(steps=4, eta=0.6, guidance=guidance, aar=aar)
    expected = slow_sampler(base, scene, config, seed=0)
    torch.testing.assert_close(generate(base, scene, config), expected, rtol=1e-3, atol=1e-3)
    never = replace(config, aar=replace(aar, start=0.99, end=1.0))  # the mode's region without its weights
    assert (generate(base, scene, never) - expected).abs().max() > 0.05


@pytest.mark.parametrize(("steps", "factor"), [(49, 8), (50, 16), (51, 8)])
@pytest.mark.parametrize("t", [19, 399, 999])
def test_the_released_region_is_twice_as_wide_with_exactly_fifty_steps(
    steps: int, factor: int, t: int
) -> None:
    m_z = torch.zeros(1, 1, 30, 33)
    m_z[..., 14, 3] = 1
    region = AARConfig("released").blend_mask(m_z, t / 1000, steps, 0.5)
    expected = dilated({(14, 3)}, math.floor((t + 100) * factor / 1000), (30, 33))
    assert {(i, j) for _, _, i, j in region.nonzero().tolist()} == expected


@pytest.mark.parametrize("mode", WEIGHTED)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_strength_zero_is_exactly_the_plain_sampler_and_strength_one_is_not(
    base: DiffusersModel, scene: Scene, mode: str, guidance: float
) -> None:
    config = SamplingConfig(steps=3, guidance=guidance, aar=AARConfig("off"))
    plain = generate(base, scene, config)
    off = generate(base, scene, replace(config, aar=AARConfig(mode, strength=0.0)))
    on = generate(base, scene, replace(config, aar=AARConfig(mode)))
    assert torch.equal(off, plain)
    assert not torch.equal(on, plain)
    assert torch.isfinite(on).all()


def test_a_mode_that_is_added_to_the_table_samples(
    base: DiffusersModel, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of docs/architecture.md. The mode is `masked` told by its parts: weights m_z, attention by
    hand, the blend mask m_z itself, as `masked` has it without widening.
    """

    def by_hand(query: Tensor, key: Tensor, value: Tensor, w: Tensor, *, columns: Columns) -> Tensor:
        attention = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        inserted = marked(columns, value)[:, None, None]
        return (attention * (1 - inserted) + attention * inserted * w[:, None]) @ value

    dummy = ReweightingMode(
        lambda moment, aar: moment.target.m_z,
        "inside the mask",
        by_hand,
        lambda m_z, progress, steps, widening: m_z,
    )
    monkeypatch.setitem(MODES, "dummy", dummy)
    config = SamplingConfig(steps=3, widening=0.0, aar=AARConfig("dummy", strength=0.5))
    latent = generate(base, scene, config)
    expected = generate(base, scene, replace(config, aar=AARConfig("masked", strength=0.5)))
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)
    assert (latent - generate(base, scene, replace(config, aar=AARConfig("off")))).abs().max() > 0.01


def test_a_mode_that_the_table_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(
        ValueError, match="no AAR mode 'strong': choose from released, adaptive, paper, masked"
    ):
        AARConfig("strong")
