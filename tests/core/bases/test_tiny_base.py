"""Guards bases/tiny/: the autoencoder, and the weights and embeddings that come with the package."""

import numpy as np
import pytest
import torch

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.bases.tiny.autoencoder import LappedAutoencoder, train_autoencoder
from anomalydiffusion_core.dataset.photos import list_images, read_photo
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.procedural.scenes import draw_scene

needs_weights = pytest.mark.skipif(
    not architecture.WEIGHTS.is_file(), reason="the embedded base's weights are absent"
)


def scene_tensor(seed, count, size=64):
    images = np.stack([draw_scene(seed, i, size).image for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a, b):
    return float((10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))).mean())


def test_the_autoencoder_is_a_lapped_transform_with_decorrelated_ordered_channels():
    images = scene_tensor(1, 96)
    vae = LappedAutoencoder(8)
    losses = train_autoencoder(vae, images, 60, torch.Generator().manual_seed(0))
    assert np.mean(losses[-10:]) < np.mean(losses[:3])
    with torch.no_grad():
        latent = vae.encode(images)
        assert latent.shape == (96, 8, 8, 8)
        covariance = torch.cov(latent.transpose(0, 1).flatten(1))
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        assert float(off_diagonal.abs().max()) < 0.02 * float(covariance.diagonal().max())
        assert (covariance.diagonal()[:-1] >= covariance.diagonal()[1:] - 1e-4).all()
        assert float(latent.square().mean()) == pytest.approx(1, abs=0.02)
        # linear: the decoder of a sum is the sum of the decoders
        a, b = latent[:2], latent[2:4]
        assert torch.allclose(vae.decode(a + b), vae.decode(a) + vae.decode(b), atol=1e-4)
    plain = LappedAutoencoder(8)
    plain.start_from_principal_components(images)
    held_out = scene_tensor(2, 32)
    with torch.no_grad():
        assert psnr(vae.decode(vae.encode(held_out)), held_out) > psnr(
            plain.decode(plain.encode(held_out)), held_out
        )


def test_the_demo_embeddings_that_come_with_the_pack_fit_the_base_that_does() -> None:
    learned = load_artifact(architecture.DEMO_EMBEDDINGS)
    base = load_base("tiny").fingerprint
    assert learned.base.family == base.family and learned.base.same_weights(base)
    types = ["leather/burn", "leather/ink", "metal/rust", "metal/weld_spatter"]
    assert sorted(learned.anomaly) == sorted(learned.mask) == types


def test_words_that_a_resumed_base_lacked_start_as_all_unknown_ones() -> None:
    table = torch.randn(4, 192)
    state = {"token_ids": torch.tensor([10, 20, 49406, 49407]), architecture.TOKEN_TABLE: table}
    chosen = architecture.select_vocabulary(state, torch.tensor([10, 30, 49406, 49407]))
    assert torch.equal(chosen[architecture.TOKEN_TABLE][[0, 2, 3]], table[[0, 2, 3]])
    assert torch.allclose(chosen[architecture.TOKEN_TABLE][1], table.mean(0), atol=1e-6)


@needs_weights
@torch.no_grad()
def test_the_committed_weights_know_places():
    base = load_base("tiny")
    sides = ("left", "right")
    prompts = [f"a black and white mask of a large hole at the middle {side}" for side in sides]
    noise = torch.randn((8, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    t = torch.full((8,), 980)
    centres = []
    for prompt in prompts:
        eps = base.predict_noise(noise, t, base.encode_prompts([prompt] * 8))
        white = (base.decode(base.schedule.clean_latent(noise, eps, t)).mean(1) + 1).clamp(min=0)
        columns = torch.linspace(0, 1, white.shape[-1])
        centres.append(((white.sum(1) * columns).sum(1) / white.sum((1, 2))).mean())
    assert centres[0] < 0.4 and centres[1] > 0.6


@needs_weights
def test_the_committed_weights_are_small_and_rebuild_every_part():
    assert architecture.WEIGHTS.stat().st_size <= 40e6
    tiny = architecture.load_tiny_base()
    assert tiny.spatial_encoder is not None
    images = scene_tensor(77, 24, 128)
    with torch.no_grad():
        assert psnr(tiny.vae.decode(tiny.vae.encode(images)), images) > 27


@needs_weights
def test_the_autoencoder_reaches_29_db_on_real_photos(shared_data):
    tiny = architecture.load_tiny_base()
    for name in ("leather", "screw"):
        paths = list_images(shared_data / "mvtec" / name / "train" / "good")
        photos = torch.stack([read_photo(path).tensor() for path in paths])
        photos = torch.nn.functional.interpolate(photos, (256, 256), mode="bilinear", antialias=True)
        with torch.no_grad():
            assert psnr(tiny.vae.decode(tiny.vae.encode(photos)), photos) >= 29
