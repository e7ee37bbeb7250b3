"""The same weights give the same numbers in ComfyUI as headless: text, photos, sampling, training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.method import sampling
from anomalydiffusion_core.method.attention_maps import AttentionMaps
from anomalydiffusion_core.method.conditioning import empty_context
from anomalydiffusion_core.method.latent_diffusion import Context
from anomalydiffusion_core.method.reweighting import MODES, AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig, SamplingRequest, sample_into
from anomalydiffusion_core.training.losses import masked_loss

PROMPT = "a photo of a {}"
ADAPTIVE = AARConfig("adaptive")
STEPS, GUIDANCE, WIDENING = 6, 2.5, 0.5


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def hosts(pack: Any) -> SimpleNamespace:
    """The embedded base in both hosts, and a batch of two photos with masks, noise and inserted vectors."""
    from adiff_pack.nodes.base_models import LoadTinyBase  # type: ignore[import-not-found]
    from adiff_pack.nodes.host import base_model as comfy_model  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.trainable import trainable  # type: ignore[import-not-found]

    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        model, clip, vae = LoadTinyBase.execute().args
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 1, 128, 128)
    masks[0, :, 20:50, 30:70], masks[1, :, 81:99, 63:120] = 1, 1
    return SimpleNamespace(
        model=model,
        comfy=comfy_model.ComfyModel(model, clip, vae),
        headless=load_base("tiny"),
        trainable=trainable,
        images=torch.rand(2, 3, 128, 128, generator=generator) * 2 - 1,
        masks=masks,
        noise=torch.randn(2, 8, 16, 16, generator=generator),
        vectors={"clip_l": torch.randn(2, 12, 192, generator=generator)},
    )


def test_the_fingerprint_is_the_same(hosts: Any) -> None:
    # the pack's classes are not those of the installed package
    assert vars(hosts.comfy.fingerprint) == vars(hosts.headless.fingerprint)
    assert hosts.comfy.token_widths == hosts.headless.token_widths
    assert (hosts.comfy.native_size, hosts.comfy.factor) == (hosts.headless.native_size, 8)
    for name in ("alphas_cumprod",):
        torch.testing.assert_close(
            getattr(hosts.comfy.schedule, name), hosts.headless.schedule.alphas_cumprod
        )


@torch.no_grad()
def test_prompts_with_inserted_vectors_are_encoded_alike(hosts: Any) -> None:
    prompts = ["a photo of a {}", "a close-up photo of the {} at the upper left"]
    ours, theirs = (host.encode_prompts(prompts, hosts.vectors) for host in (hosts.comfy, hosts.headless))
    assert ours.columns == theirs.columns == (slice(5, 17), slice(8, 20))
    torch.testing.assert_close(ours.hidden, theirs.hidden, atol=1e-5, rtol=1e-4)
    long = ["the " * 90, ""]
    ours, theirs = (host.encode_prompts(long).hidden for host in (hosts.comfy, hosts.headless))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    words = "scratch hole"
    assert torch.equal(
        hosts.comfy.word_vectors(words)["clip_l"], hosts.headless.word_vectors(words)["clip_l"]
    )


def test_vectors_that_do_not_fit_are_refused(hosts: Any) -> None:
    with pytest.raises(ValueError, match="do not fit: 'clip_l' of this base takes"):
        hosts.comfy.encode_prompts([PROMPT], {"clip_l": torch.zeros(1, 4, 768)})
    with pytest.raises(ValueError, match="must hold"):
        hosts.comfy.encode_prompts(["a photo"], {"clip_l": torch.zeros(1, 4, 192)})


@torch.no_grad()
def test_photos_go_to_the_same_latents_and_back(hosts: Any) -> None:
    ours, theirs = hosts.comfy.encode(hosts.images), hosts.headless.encode(hosts.images)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # ComfyUI's VAE clamps to what can be seen
    torch.testing.assert_close(
        hosts.comfy.decode(ours), hosts.headless.decode(theirs).clamp(-1, 1), atol=1e-5, rtol=1e-4
    )


def contexts(host: Any, vectors: dict[str, Tensor]) -> tuple[Context, Context]:
    return host.encode_prompts([PROMPT] * 2, vectors), empty_context(host, 2)


def comfy_samples(
    hosts: Any, model: Any, guidance: float, sigmas: Tensor, noise_mask: Tensor | None
) -> Tensor:
    import comfy.sample  # type: ignore[import-not-found]
    import comfy.samplers  # type: ignore[import-not-found]

    context, empty = contexts(hosts.comfy, hosts.vectors)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            hosts.noise,
            guidance,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            [[context.hidden, {}]],
            [[empty.hidden, {}]],
            hosts.headless.encode(hosts.images),
            noise_mask=noise_mask,
            disable_pbar=True,
        ).clone()


def euler_sigmas(hosts: Any) -> Tensor:
    scheduler = sampling.make_scheduler(hosts.headless.schedule, "euler")
    scheduler.set_timesteps(STEPS)
    return scheduler.sigmas.clone()


def reweighted(hosts: Any, aar: AARConfig, model: Any = None, maps: Any = None) -> Any:
    from adiff_pack.anomalydiffusion_core.method import reweighting  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.reweighting import Pixels, Reweighting  # type: ignore[import-not-found]

    part = {"start": aar.start, "end": aar.end}
    config = reweighting.AARConfig(aar.mode, aar.strength, aar.maximum, **part)
    columns = contexts(hosts.comfy, hosts.vectors)[0].columns
    pixels = Pixels(hosts.images, hosts.masks, hosts.comfy.decode)
    return Reweighting(config, columns, WIDENING, pixels, maps).patch(model or hosts.model)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_sampling_gives_the_same_latents(
    hosts: Any, mode: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_noise", lambda *_: hosts.noise)
    aar = AARConfig(mode)
    config = SamplingConfig("euler", STEPS, guidance=guidance, widening=WIDENING, aar=aar)
    context, empty = contexts(hosts.headless, hosts.vectors)
    theirs = sample_into(
        hosts.headless,
        hosts.images,
        hosts.masks,
        SamplingRequest(context, empty, [torch.Generator()] * 2),
        config=config,
    )
    m_z = F.max_pool2d(hosts.masks, 8)
    ours = comfy_samples(hosts, reweighted(hosts, aar), guidance, euler_sigmas(hosts), m_z)
    assert relative(ours, theirs) < 1e-3
    assert relative(theirs, hosts.headless.encode(hosts.images)) > 0.1  # something was drawn


@pytest.mark.parametrize("aar", [AARConfig("off"), AARConfig(strength=2.0, start=0.3, end=0.8)])
@torch.no_grad()
def test_attention_maps_and_a_part_of_the_steps_are_the_same(
    hosts: Any, aar: AARConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.anomalydiffusion_core.method import attention_maps  # type: ignore[import-not-found]

    monkeypatch.setattr(sampling, "_noise", lambda *_: hosts.noise)
    config = SamplingConfig("euler", STEPS, guidance=GUIDANCE, widening=WIDENING, aar=aar)
    context, empty = contexts(hosts.headless, hosts.vectors)
    theirs, ours = AttentionMaps(2, (16, 16)), attention_maps.AttentionMaps(2, (16, 16))
    generators = [torch.Generator()] * 2
    latent = sample_into(
        hosts.headless,
        hosts.images,
        hosts.masks,
        SamplingRequest(context, empty, generators, maps=theirs),
        config=config,
    )
    patched, m_z = reweighted(hosts, aar, maps=ours), F.max_pool2d(hosts.masks, 8)
    assert relative(comfy_samples(hosts, patched, GUIDANCE, euler_sigmas(hosts), m_z), latent) < 1e-3
    assert relative(ours.mean, theirs.mean) < 1e-3
    assert (theirs.mean > 0).all() and relative(theirs.mean[:, 0], theirs.mean[:, 3]) > 0.01


@torch.no_grad()
def test_strength_zero_is_the_plain_sampler_and_a_patch_leaves_the_model_as_it_was(hosts: Any) -> None:
    m_z, sigmas = F.max_pool2d(hosts.masks, 8), euler_sigmas(hosts)
    before = comfy_samples(hosts, hosts.model, GUIDANCE, sigmas, m_z)
    off = comfy_samples(hosts, reweighted(hosts, AARConfig("off")), GUIDANCE, sigmas, m_z)
    zero = comfy_samples(hosts, reweighted(hosts, AARConfig(strength=0)), GUIDANCE, sigmas, m_z)
    acts = comfy_samples(hosts, reweighted(hosts, ADAPTIVE), GUIDANCE, sigmas, m_z)
    assert torch.equal(off, zero) and not torch.allclose(off, acts, atol=1e-2)
    assert torch.equal(before, comfy_samples(hosts, hosts.model, GUIDANCE, sigmas, m_z))


@torch.no_grad()
def test_a_replacement_that_is_there_already_stays_in_force(hosts: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention  # type: ignore[import-not-found]

    def halved(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        return 0.5 * optimized_attention(q, k, v, options["n_heads"])

    m_z, sigmas = F.max_pool2d(hosts.masks, 8), euler_sigmas(hosts)
    other = hosts.model.clone()
    other.set_model_attn2_replace(halved, "middle", 0)
    samples = {
        (name, mode): comfy_samples(hosts, reweighted(hosts, AARConfig(mode), model), GUIDANCE, sigmas, m_z)
        for name, model in (("plain", hosts.model), ("halved", other))
        for mode in ("off", "adaptive")
    }
    for mode in ("off", "adaptive"):
        assert not torch.allclose(samples["plain", mode], samples["halved", mode], atol=1e-3)
    assert not torch.allclose(samples["halved", "off"], samples["halved", "adaptive"], atol=1e-2)


@torch.no_grad()
def test_a_part_of_the_steps_is_sampled_as_ksampler_advanced_asks_for_it(hosts: Any) -> None:
    import comfy.sample  # type: ignore[import-not-found]

    context, empty = contexts(hosts.comfy, hosts.vectors)
    photo, m_z = hosts.headless.encode(hosts.images), F.max_pool2d(hosts.masks, 8)

    def part(**steps: Any) -> Tensor:
        with torch.inference_mode():
            return comfy.sample.sample(
                reweighted(hosts, ADAPTIVE), hosts.noise, STEPS, GUIDANCE, "euler", "normal",
                [[context.hidden, {}]], [[empty.hidden, {}]], photo, noise_mask=m_z, disable_pbar=True,
                **steps,
            ).clone()  # fmt: skip

    first, last = part(last_step=3), part(start_step=3)
    outside = (m_z == 0).expand_as(photo)
    assert float((first - photo)[outside].std()) > 0.1  # noise is left there for the next sampler
    torch.testing.assert_close(last[outside], photo[outside])
    assert relative(last[~outside], part()[~outside]) > 0.1


def test_a_mask_is_asked_for(hosts: Any) -> None:
    with pytest.raises(ValueError, match="give the sampler the encoded photo with its noise mask"):
        comfy_samples(hosts, reweighted(hosts, ADAPTIVE), GUIDANCE, euler_sigmas(hosts), None)


def training_loss(host: Any, hosts: Any, vectors: Tensor) -> Tensor:
    latents = hosts.headless.encode(hosts.images)
    t = torch.tensor([250, 730])
    context = host.encode_prompts([PROMPT] * 2, {"clip_l": vectors})
    eps = host.predict_noise(host.schedule.add_noise(latents, hosts.noise, t), t, context)
    weight = host.schedule.loss_weight(t)
    return masked_loss(eps, hosts.noise, F.max_pool2d(hosts.masks, 8), weight, normalisation="mask").mean()


def test_a_training_step_has_the_same_loss_and_the_same_gradient(hosts: Any) -> None:
    theirs = hosts.vectors["clip_l"].clone().requires_grad_(True)
    expected = training_loss(hosts.headless, hosts, theirs)
    expected.backward()
    with torch.inference_mode(), hosts.trainable(hosts.comfy):
        ours = hosts.vectors["clip_l"].clone().requires_grad_(True)
        loss = training_loss(hosts.comfy, hosts, ours)
        loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert ours.grad is not None and theirs.grad is not None
    assert float(theirs.grad.norm()) > 0 and relative(ours.grad, theirs.grad) < 1e-3


def frugal(hosts: Any) -> Any:
    """The same model, trained through in low memory."""
    whole = hosts.comfy
    base = type(whole)(whole.model, whole.clip, whole.vae)
    base.save_memory()
    return base


def test_in_low_memory_a_step_keeps_less_and_has_the_same_gradient(hosts: Any) -> None:
    gradients, kept = [], []
    for host in (hosts.comfy, frugal(hosts)):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.inference_mode(), hosts.trainable(host):
            vectors = hosts.vectors["clip_l"].clone().requires_grad_(True)
            context = host.encode_prompts([PROMPT] * 2, {"clip_l": vectors})
            t = torch.tensor([250, 730])
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                eps = host.predict_noise(hosts.noise, t, context)
            eps.square().mean().backward()
        assert vectors.grad is not None
        gradients.append(vectors.grad)
        kept.append(sum(sizes))
    assert relative(gradients[1], gradients[0]) < 1e-5
    assert kept[1] < 0.25 * kept[0], kept


def test_in_low_memory_a_card_that_does_bfloat16_well_computes_in_it(
    hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_: True)
    unet, gradients, types = hosts.model.model.diffusion_model, [], []
    note = unet.register_forward_pre_hook(lambda module, _: types.append(module.dtype))
    for host in (hosts.comfy, frugal(hosts)):
        with torch.inference_mode(), hosts.trainable(host):
            vectors = hosts.vectors["clip_l"].clone().requires_grad_(True)
            training_loss(host, hosts, vectors).backward()
        assert vectors.grad is not None and vectors.grad.dtype == torch.float32
        gradients.append(vectors.grad)
    note.remove()
    assert types == [torch.float32, torch.bfloat16] and unet.dtype == torch.float32
    assert 0 < relative(gradients[1], gradients[0]) < 0.1


@pytest.mark.parametrize("low_memory", [False, True])
def test_training_leaves_the_model_as_it_was(
    hosts: Any, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_: True)
    m_z, sigmas = F.max_pool2d(hosts.masks, 8), euler_sigmas(hosts)
    before = comfy_samples(hosts, hosts.model, GUIDANCE, sigmas, m_z)
    needed = [p.requires_grad for p in hosts.model.model.parameters()]
    host = frugal(hosts) if low_memory else hosts.comfy
    with pytest.raises(RuntimeError, match="stop"), torch.inference_mode(), hosts.trainable(host):
        vectors = hosts.vectors["clip_l"].clone().requires_grad_(True)
        training_loss(host, hosts, vectors).backward()
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in hosts.model.model.modules())
    assert torch.is_grad_enabled() and needed == [p.requires_grad for p in hosts.model.model.parameters()]
    assert torch.equal(before, comfy_samples(hosts, hosts.model, GUIDANCE, sigmas, m_z))


class Packed(torch.Tensor):
    """A quantised tensor that names the type it would be unpacked to, as later ComfyUI versions hold."""


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.bfloat16).as_subclass(Packed), "Packed"),
    ],
)
def test_quantised_weights_are_refused_for_training(hosts: Any, weight: torch.Tensor, told: str) -> None:
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    unet = hosts.model.model.diffusion_model
    unet.register_parameter("quantised", parameter)
    try:
        with (
            pytest.raises(ValueError, match=f"MODEL holds {told} weights"),
            hosts.trainable(hosts.comfy),
        ):
            pass
    finally:
        del unet.quantised
