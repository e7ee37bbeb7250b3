"""Adaptive attention re-weighting (AAR) and the narrowing blend mask on a MODEL clone, for any sampler.

All of ComfyUI's sampling quirks live here. Each run of a sampler has state of its own (`_Run`); the weights
of the moment travel in a copy of `transformer_options`, where the attention of every block finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...anomalydiffusion_core.method.attention import Columns, merge_heads, split_heads
from ...anomalydiffusion_core.method.attention_maps import AttentionMaps
from ...anomalydiffusion_core.method.blending import blend
from ...anomalydiffusion_core.method.inpainting import Decode, Inpainting
from ...anomalydiffusion_core.method.reweighting import (
    AARConfig,
    AttentionWeights,
    Moment,
    reweighted_attention,
)

KEY = "anomalydiffusion"  # of our wrappers
RUN = "anomalydiffusion_run"  # in transformer_options: the state of a sampler's run
WEIGHTS = "anomalydiffusion_weights"  # in transformer_options: what attention reads
CONDITIONAL = 0  # in cond_or_uncond


@dataclass
class _Run:
    """One run of a sampler: its target, its noise levels, and the last estimate of z0."""

    target: Inpainting
    sigmas: Tensor
    clean_hat: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def done(self, sigma: float) -> float:
        """Share of the steps that came before noise level `sigma`."""
        return float((self.sigmas[:-1] > sigma * (1 + 1e-4)).sum()) / self.steps


@dataclass(frozen=True)
class Pixels:
    """What AAR modes of pixels compare: photos (B,3,H,W) in [-1,1] and masks (B,1,H,W), on the device of the
    model, and how its latents are decoded.
    """

    image: Tensor
    mask: Tensor
    decode: Decode


@dataclass(frozen=True)
class Reweighting:
    """AAR on one MODEL clone. Some modes need `pixels`; `maps` record what the inserted tokens look at, in
    any mode.
    """

    config: AARConfig
    columns: Columns
    widening: float
    pixels: Pixels | None = None
    maps: AttentionMaps | None = None

    def patch(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of `model` whose samplers blend with a narrowing mask and re-weight attention.

        Patches, LoRAs and wrappers that `model` has stay in force.
        """
        clone: ModelPatcher = model.clone()
        earlier: Any = clone.model_options.get("denoise_mask_function")
        if self.config.enabled or self.maps is not None:
            clone = with_reweighted_attention(model)
            clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self._around_prediction)
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self._around_sampler)
        clone.set_model_denoise_mask_function(_Narrowing(self, earlier))
        return clone

    def _around_sampler(
        self,
        sampler: Callable[..., Tensor],
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if latent_image is None or denoise_mask is None:
            raise ValueError(
                "Attention re-weighting compares with a normal photo: give the sampler the encoded photo "
                "with its noise mask (Set Latent Noise Mask)."
            )
        image, mask = (self.pixels.image, self.pixels.mask) if self.pixels else (None, None)
        target = Inpainting(latent_image, (denoise_mask[:, :1] > 0).to(latent_image), image, mask)
        options = extra_args["model_options"]
        options["transformer_options"] = {**options["transformer_options"], RUN: _Run(target, sigmas)}
        samples = sampler(
            guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs
        )
        if sigmas[-1] > 0:  # another sampler goes on from here
            return samples
        # the region of the last step may still be wider than m_z
        return blend(samples, latent_image, target.m_z)

    def _around_prediction(
        self,
        predict: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        options = model_options["transformer_options"]
        run: _Run = options[RUN]
        guider = predict.class_obj  # type: ignore[attr-defined]
        weights = self._weights(run, x, sigma, guider.inner_model.model_sampling)
        model_options = {**model_options, "transformer_options": {**options, WEIGHTS: weights}}
        # before blending, unlike what a sampler's callback is given
        run.clean_hat = predict(x, sigma, model_options, *args, **kwargs)
        return run.clean_hat

    def _weights(self, run: _Run, x: Tensor, sigma: Tensor, model_sampling: Any) -> AttentionWeights:
        weights = AttentionWeights(self.config.mode, self.columns, maps=self.maps)
        level = sigma.flatten()[:1]
        done = run.done(float(level))
        if self.maps is not None:
            self.maps.begin(done)
        if self.config.acts(done):
            z_t = x / (1 + level**2).sqrt()  # x has unit signal, z_t unit variance
            blend_mask = self.blend_mask(run.target.m_z, level, run.steps, model_sampling)
            moment = Moment(run.target, z_t, run.clean_hat, blend_mask, self._decode)
            weights.w = self.config.weight_map(moment)
        return weights

    def blend_mask(self, m_z: Tensor, sigma: Tensor, steps: int, model_sampling: Any) -> Tensor:
        """The mask of Eq. 1 (B,1,h,w) at noise level `sigma` (1,)."""
        progress = float(model_sampling.timestep(sigma)) / len(model_sampling.sigmas)
        return self.config.blend_mask(m_z, progress, steps, self.widening)

    def _decode(self, latent: Tensor) -> Tensor:
        if self.pixels is None:
            raise ValueError(f"AAR mode {self.config.mode!r} compares pixels: connect image, mask and VAE.")
        return self.pixels.decode(latent)


@dataclass(frozen=True)
class _Narrowing:
    """ComfyUI's denoise mask at a noise level: an earlier function's, else ours, which narrows to m_z."""

    reweighting: Reweighting
    earlier: Callable[..., Tensor] | None

    def __call__(self, sigma: Tensor, denoise_mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        if self.earlier is not None:
            return self.earlier(sigma, denoise_mask, extra_options=extra_options)
        m_z = (denoise_mask[:, :1] > 0).to(denoise_mask)
        steps = len(extra_options["sigmas"]) - 1
        model_sampling = extra_options["model"].inner_model.model_sampling
        blend_mask = self.reweighting.blend_mask(m_z, sigma.flatten()[:1], steps, model_sampling)
        return blend_mask.expand_as(denoise_mask)


def with_reweighted_attention(model: ModelPatcher) -> ModelPatcher:
    """A clone whose cross-attention, in every block, obeys `transformer_options[WEIGHTS]` where it is set.

    A replacement that is there stays: what re-weighting adds to plain attention is added to its result.
    """
    clone = model.clone()
    unet = model.model.diffusion_model
    keys: set[tuple] = {("middle", 0)}
    keys |= {("input", i) for i in range(len(unet.input_blocks))}
    keys |= {("output", i) for i in range(len(unet.output_blocks))}
    earlier = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for key in sorted(keys | set(earlier), key=str):
        attention = _ReweightedAttention(earlier.get(key, earlier.get(key[:2])))
        clone.set_model_attn2_replace(attention, *key)
    return clone


@dataclass(frozen=True)
class _ReweightedAttention:
    """ComfyUI's attention replacement: q (N,n,H*c), k and v (N,T,H*c), N rows = chunks x images."""

    earlier: Callable[..., Tensor] | None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], *args: Any, **kw: Any
    ) -> Tensor:
        weights: AttentionWeights | None = options.get(WEIGHTS)
        if weights is None or weights.idle:
            return self._plain(q, k, v, options, *args, **kw)
        chunks = _chunks(q, k, v, options, weights)
        if weights.maps is not None:
            _record(weights.maps, chunks, options, weights.columns)
        if weights.w is None:
            return self._plain(q, k, v, options, *args, **kw)
        reweighted = torch.cat([_reweighted(chunk, options, weights) for chunk in chunks])
        if self.earlier is None:
            return reweighted
        difference = reweighted - _optimized(q, k, v, options)
        return self.earlier(q, k, v, options, *args, **kw) + difference

    def _plain(
        self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], *args: Any, **kw: Any
    ) -> Tensor:
        if self.earlier is None:
            return _optimized(q, k, v, options)
        return self.earlier(q, k, v, options, *args, **kw)


class _Chunk(NamedTuple):
    """The rows of all images under one conditioning."""

    conditioning: int  # CONDITIONAL, or not
    q: Tensor
    k: Tensor
    v: Tensor


def _chunks(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], weights: AttentionWeights
) -> list[_Chunk]:
    conditionings = options["cond_or_uncond"]
    images = len(q) // len(conditionings) if weights.w is None else len(weights.w)
    if len(q) != len(conditionings) * images:
        raise ValueError(
            f"The sampler asks for {len(q)} rows in {len(conditionings)} chunks for {images} masks: "
            "attention re-weighting takes one conditioning per image, without areas or context windows."
        )
    parts = (x.split(images) for x in (q, k, v))
    return [_Chunk(*chunk) for chunk in zip(conditionings, *parts, strict=True)]


def _record(maps: AttentionMaps, chunks: list[_Chunk], options: dict[str, Any], columns: Columns) -> None:
    for chunk in chunks:
        if chunk.conditioning == CONDITIONAL:
            q, k = (split_heads(x, options["n_heads"]) for x in (chunk.q, chunk.k))
            maps.record(q, k, columns)


def _reweighted(chunk: _Chunk, options: dict[str, Any], weights: AttentionWeights) -> Tensor:
    if chunk.conditioning != CONDITIONAL:
        return _optimized(chunk.q, chunk.k, chunk.v, options)
    q, k, v = (split_heads(x, options["n_heads"]) for x in (chunk.q, chunk.k, chunk.v))
    return merge_heads(reweighted_attention(q, k, v, weights)).to(q.dtype)


def _optimized(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )
