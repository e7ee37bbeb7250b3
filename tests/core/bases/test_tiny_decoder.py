"""Tiny decoders: both forms of a file, the latents they fit, and mode `paper` seeing through one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalydiffusion_core.bases.tiny_decoder import load_tiny_decoder
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import (
    SamplingConfig,
    SamplingRequest,
    image_generator,
    sample_into,
)


def random_autoencoder(channels: int = 4) -> AutoencoderTiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderTiny(latent_channels=channels)


def original_names(autoencoder: AutoencoderTiny) -> dict[str, Tensor]:
    """The decoder as its authors name it: a sequence whose first member, the clamp, has no weights."""
    state = autoencoder.decoder.layers.state_dict()
    return {
        f"{int(name.split('.')[0]) + 1}.{name.partition('.')[2]}": weight for name, weight in state.items()
    }


def latents(seed: int = 0) -> Tensor:
    return torch.randn((2, 4, 5, 6), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_files_in_either_form_and_folders_with_them_decode_alike(
    tmp_path: Path, fake_base: LatentDiffusion
) -> None:
    autoencoder = random_autoencoder()
    autoencoder.save_pretrained(tmp_path / "diffusers")
    (tmp_path / "approx").mkdir()
    save_file(original_names(autoencoder), tmp_path / "approx" / "taesd_decoder.safetensors")
    expected = autoencoder.decode(latents()).sample
    assert expected.shape == (2, 3, 40, 48)
    for path in (
        tmp_path / "diffusers",
        tmp_path / "approx",
        tmp_path / "approx" / "taesd_decoder.safetensors",
    ):
        assert torch.equal(load_tiny_decoder(path, fake_base)(latents()), expected)


@torch.no_grad()
def test_the_published_decoder_undoes_its_encoder_in_the_model_s_scale(
    taesd: Path, fake_base: LatentDiffusion
) -> None:
    encoder = AutoencoderTiny().encoder
    encoder.layers.load_state_dict(load_file(taesd / "taesd_encoder.safetensors"))
    down, across = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 72), indexing="ij")
    photo = 0.5 * torch.stack([down, across, -down * across])[None]
    again = load_tiny_decoder(taesd, fake_base)(encoder(photo))
    assert (again - photo).square().mean().sqrt() < 0.06


def test_a_decoder_of_other_latents_is_refused(tmp_path: Path, fake_base: LatentDiffusion) -> None:
    file = tmp_path / "taesd3_decoder.safetensors"
    save_file(original_names(random_autoencoder(16)), file)
    with pytest.raises(ValueError, match=r"reads 16 latent channels .* the base has 4 at 8: choose"):
        load_tiny_decoder(file, fake_base)


def test_what_is_no_tiny_decoder_is_refused(tmp_path: Path, fake_base: LatentDiffusion) -> None:
    other, broken = tmp_path / "other.safetensors", tmp_path / "broken.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, other)
    broken.write_bytes(b"no weights")
    encoder = tmp_path / "taesd_encoder.safetensors"
    save_file(dict(random_autoencoder().encoder.layers.state_dict()), encoder)
    for file in (other, encoder):
        with pytest.raises(ValueError, match=f"{file.name} is no TAESD decoder: give one"):
            load_tiny_decoder(file, fake_base)
    for file in (broken, tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"cannot be read .*give a \.safetensors file"):
            load_tiny_decoder(file, fake_base)


def test_mode_paper_sees_through_the_decoder_given_and_other_modes_do_not(
    fake_base: LatentDiffusion,
) -> None:
    photo = torch.rand((1, 3, 40, 48), generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(1, 1, 40, 48)
    mask[..., 8:30, 10:35] = 1
    with torch.no_grad():
        vectors = torch.randn((1, 3, 16), generator=torch.Generator().manual_seed(2))
        context = fake_base.encode_prompts(["a photo of a {}"], {"clip_l": vectors})
    seen: list[Tensor] = []

    def decode(latent: Tensor) -> Tensor:
        seen.append(latent)
        return -fake_base.decode(latent)

    def generate(mode: str, **decoder: object) -> Tensor:
        config = SamplingConfig(steps=4, aar=AARConfig(mode, temperature=20.0))
        generators = [image_generator(0, 0)]
        return sample_into(
            fake_base, photo, mask, SamplingRequest(context, None, generators, **decoder), config=config
        )  # type: ignore[arg-type]

    assert torch.equal(generate("adaptive", decode=decode), generate("adaptive"))
    assert not seen
    through = generate("paper", decode=decode)
    assert len(seen) == 3  # at all steps but the first, which has no estimate yet
    assert not torch.equal(through, generate("paper"))
    assert torch.equal(generate("paper", decode=fake_base.decode), generate("paper"))
