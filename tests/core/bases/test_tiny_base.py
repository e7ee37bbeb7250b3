"""The embedded base: its generator, autoencoder, pre-training loop, and the committed weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.bases.tiny.autoencoder import LappedAutoencoder, train_autoencoder
from anomalydiffusion_core.dataset.photos import list_images, read_photo
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.pretraining import demo
from anomalydiffusion_core.pretraining import tiny_base as pretraining
from anomalydiffusion_core.procedural import few_shot
from anomalydiffusion_core.procedural.defects import DEFECTS, Canvas, apply_defect
from anomalydiffusion_core.procedural.materials import MATERIALS, colour
from anomalydiffusion_core.procedural.scenes import caption_words, draw_scene, place_in_words
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig
from anomalydiffusion_core.training.places import PLACE

needs_weights = pytest.mark.skipif(
    not architecture.WEIGHTS.is_file(), reason="the embedded base's weights are absent"
)


def scene_tensor(seed, count, size=64):
    images = np.stack([draw_scene(seed, i, size).image for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a, b):
    return float((10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))).mean())


def test_a_scene_depends_on_seed_index_and_size_alone():
    again = [draw_scene(3, i, 64) for i in (5, 2, 5)]
    assert np.array_equal(again[0].image, again[2].image) and again[0].caption == again[2].caption
    assert not np.array_equal(again[0].image, again[1].image)
    assert not np.array_equal(draw_scene(4, 5, 64).image, again[0].image)


def test_there_are_enough_materials_and_defect_families_and_each_material_draws_a_full_frame():
    assert len(MATERIALS) >= 8 and len(DEFECTS) >= 6
    for draw, tints in MATERIALS.values():
        rng = np.random.default_rng(0)
        surface = draw(rng, 48, 1.0, colour(rng, tints[0]))
        assert surface.albedo.shape == (48, 48, 3) and surface.height.shape == (48, 48)
        assert np.isfinite(surface.albedo).all() and np.isfinite(surface.height).all()


@pytest.mark.parametrize("family", DEFECTS)
def test_a_defect_changes_the_surface_inside_its_mask_and_nothing_far_outside(family):
    rng = np.random.default_rng(1)
    draw, tints = MATERIALS["painted metal"]
    surface = draw(rng, 96, 1.0, colour(rng, "green"))
    albedo, height = surface.albedo.copy(), surface.height.copy()
    canvas = Canvas(surface, np.ones((96, 96), np.float32))
    mask, words = apply_defect(rng, canvas, family, (48.0, 48.0), 14.0)
    changed = (np.abs(canvas.surface.albedo - albedo).max(-1) > 0.05) | (
        np.abs(canvas.surface.height - height) > 0.3
    )
    assert words.endswith(family)
    assert mask.sum() > 20 and changed[mask].mean() > 0.7
    assert (changed & ~mask).sum() < 0.25 * mask.sum() + 30
    assert not changed[:8].any() and not changed[-8:].any()


def test_captions_say_where_and_masks_are_pictures_of_themselves():
    mask = np.zeros((50, 50), bool)
    mask[0:8, 44:50] = True
    assert place_in_words(mask) == "top far right"
    scenes = [draw_scene(11, i, 48) for i in range(300)]
    pictures = [s for s in scenes if s.is_mask_picture]
    assert 10 < len(pictures) < 80
    for scene in pictures:
        assert (
            np.array_equal(scene.image[..., 0] == 255, scene.mask) and "black and white mask" in scene.caption
        )
    for scene in scenes:
        assert (" at the " in scene.caption) == bool(scene.mask.any())
    bare = [s for s in scenes if s.mask.any() and not any(m in s.caption for m in MATERIALS)]
    assert 40 < len(bare) - len(pictures) < 120 and any(" defect at the " in s.caption for s in bare)
    single = next(s for s in scenes if len(PLACE.findall(s.caption)) == 1)
    assert place_in_words(single.mask) in single.caption


def test_every_word_of_a_caption_is_in_the_vocabulary():
    tokenizer = architecture.load_tokenizer()
    known = set(pretraining.caption_vocabulary(tokenizer, caption_words()).tolist())
    captions = {draw_scene(5, i, 32).caption for i in range(400)}
    assert {i for caption in captions for i in tokenizer(caption).input_ids} <= known


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


def test_pretraining_writes_a_base_that_loads_resumes_and_carries_a_spatial_encoder(tmp_path, monkeypatch):
    recipe = pretraining.Recipe(
        minutes=0.02, scenes=24, large_scenes=4, batch_size=4, location_minutes=0.005, location_scenes=16,
        autoencoder_scenes=32, autoencoder_steps=4,
    )  # fmt: skip
    monkeypatch.setattr(pretraining, "sample_sheet", lambda base, size: Image.new("RGB", (8, 8)))
    defects, masks = DefectConfig(steps=2, views_per_pair=1), MaskEmbeddingConfig(steps=2, views_per_pair=1)
    monkeypatch.setattr(demo, "DEMO", replace(demo.DEMO, defects=defects, masks=masks))
    path = pretraining.pretrain(recipe, tmp_path / "a", bf16=False)
    first = architecture.load_tiny_base(path)
    resumed = pretraining.pretrain(recipe, tmp_path / "b", resume=path, bf16=False)
    assert architecture.is_tiny_base(path) and first.spatial_encoder is not None
    second = architecture.load_tiny_base(resumed)
    assert torch.equal(first.vae.analysis.weight, second.vae.analysis.weight)
    assert not torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    table = first.text_encoder.get_input_embeddings().weight
    assert table.shape == (49408, 192)
    assert {t.dtype for t in load_file(path).values()} == {torch.float16, torch.int32}
    base = load_base(str(path))
    learned = load_artifact(tmp_path / "a" / "demo_embeddings.safetensors", base.fingerprint)
    assert learned.base == base.fingerprint and "metal/rust" in learned.anomaly


def test_the_demo_embeddings_that_come_with_the_pack_fit_the_base_that_does() -> None:
    learned = load_artifact(architecture.DEMO_EMBEDDINGS)
    assert learned.base == load_base("tiny").fingerprint
    types = ["leather/burn", "leather/ink", "metal/rust", "metal/weld_spatter"]
    assert sorted(learned.anomaly) == sorted(learned.mask) == types


def test_words_that_a_resumed_base_lacked_start_as_all_unknown_ones() -> None:
    table = torch.randn(4, 192)
    state = {"token_ids": torch.tensor([10, 20, 49406, 49407]), architecture.TOKEN_TABLE: table}
    chosen = architecture.select_vocabulary(state, torch.tensor([10, 30, 49406, 49407]))
    assert torch.equal(chosen[architecture.TOKEN_TABLE][[0, 2, 3]], table[[0, 2, 3]])
    assert torch.allclose(chosen[architecture.TOKEN_TABLE][1], table.mean(0), atol=1e-6)


def test_a_thin_defect_weighs_as_much_in_the_loss_as_a_wide_one() -> None:
    touched = torch.zeros((4, 1, 16, 16), dtype=torch.bool)
    touched[0, :, 3, 2:12] = True  # 10 cells
    touched[1, :, :8] = True  # half of all
    touched[2, :, 0, 0] = True  # one cell, which counts as six
    weights = pretraining.loss_weights(touched, 0.5)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(4))
    inside = (weights * touched).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    # half of the loss, and what the defect's cells have of the other half
    assert torch.allclose(inside[:2], 0.5 + 0.5 * torch.tensor([10 / 256, 0.5]))
    assert 0.1 < float(inside[2]) < 0.3
    assert torch.equal(weights[3], torch.ones(1, 16, 16))
    assert torch.equal(pretraining.loss_weights(touched, 0.0), torch.ones(4, 1, 16, 16))


def test_words_are_seen_through_a_fresh_text_encoder():
    torch.manual_seed(0)
    text_encoder = pretraining.fresh_text_encoder(32).eval()
    ids = torch.randint(30, (1, 16))
    other = ids.clone()
    other[0, 9] = (ids[0, 9] + 1) % 30
    with torch.no_grad():
        before = text_encoder(ids).last_hidden_state[0]
        after = text_encoder(other).last_hidden_state[0]
    assert torch.equal(before[:9], after[:9])
    assert (after[9] - before[9]).norm() > 0.5 * before[9].norm()


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


def test_the_few_shot_dataset_has_defects_the_base_never_saw_and_is_written_once(tmp_path):
    few_shot.write_few_shot_dataset(tmp_path, 48, pairs=2, normals=3)
    for category, (_, _, defects) in few_shot.CATEGORIES.items():
        assert not set(defects) & set(DEFECTS)
        assert len(list_images(tmp_path / category / "train" / "good")) == 3
        for defect in defects:
            for path in list_images(tmp_path / category / "test" / defect):
                mask = read_photo(tmp_path / category / "ground_truth" / defect / f"{path.stem}_mask.png")
                assert set(np.unique(mask.pixels)) == {0, 255}
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    few_shot.write_few_shot_dataset(tmp_path, 48, pairs=2, normals=3, seed=9)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before


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
