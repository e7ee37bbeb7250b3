"""Training the spatial encoder alone: what it learns from, what it imitates, and what starts from it."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import generate_quickly, refused, run, snapshot, train_quickly

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import learned_hash, load_artifact, save_artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from anomalydiffusion_core.procedural.scenes import COLUMNS, ROWS, draw_scene, place_in_words
from anomalydiffusion_core.training import jobs
from anomalydiffusion_core.training import places as places_module
from anomalydiffusion_core.training.config import (
    DefectConfig,
    EncoderTrainingConfig,
    PlacesConfig,
    TrainingConfig,
    WordsConfig,
)
from anomalydiffusion_core.training.encoders import starting_encoders, untrained_encoders
from anomalydiffusion_core.training.fitting import fit
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.places import (
    PLACE,
    PlaceTask,
    WordsTask,
    make_scenes,
    placed_scenes,
    train_encoder,
)
from anomalydiffusion_core.training.stage import TrainingRun
from anomalydiffusion_core.training.task import Batch

QUICK = EncoderTrainingConfig(
    WordsConfig(steps=3, batch_size=8), PlacesConfig(steps=3, batch_size=2), scenes=8
)


def pretrain_quickly(out: Path, *more: object) -> Any:
    options = ("--steps", 2, "--words-steps", 2, "--scenes", 12, "--batch", 2)
    return run("pretrain-encoder", "--out", out, *options, *more)


def state(learned: Learned) -> dict[str, torch.Tensor]:
    return learned.spatial_encoders["clip_l"].state_dict()


def small_encoders() -> dict[str, SpatialEncoder]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SpatialEncoderConfig(16, 4, "resnet10", mask_size=32, pyramid_channels=8, grid=4)
        return {"clip_l": SpatialEncoder(config)}


# --- scenes


def test_captions_with_a_gap_hold_it_exactly_once_and_no_place() -> None:
    scenes = next(placed_scenes(1, 40, 32, 40))
    assert scenes.images.shape == (40, 3, 32, 32) and scenes.masks.shape == (40, 1, 32, 32)
    is_picture = torch.tensor(["black and white mask" in caption for caption in scenes.captions])
    assert [kind == "mask picture" for kind in scenes.types] == is_picture.tolist()
    assert 1 <= int(is_picture.sum()) < 20
    assert torch.equal((scenes.images[is_picture] > 0)[:, :1], scenes.masks[is_picture] > 0)
    for caption, place, mask in zip(scenes.captions, scenes.places, scenes.masks, strict=True):
        assert caption.count("{}") == 1
        assert not any(f" {row} {column}" in caption for row in ROWS for column in COLUMNS)
        assert place == f" at the {place_in_words(mask[0].numpy())}"


def test_a_pool_is_the_same_whatever_its_batches(fake_base: Any) -> None:
    one, other = make_scenes(fake_base, 3, 10, batch=3), make_scenes(fake_base, 3, 10, batch=4)
    assert len(one) == len(other) == 10
    assert torch.equal(one.latents, other.latents) and torch.equal(one.masks, other.masks)
    assert (one.captions, one.places) == (other.captions, other.places)
    first = next(i for i in range(100) if len(PLACE.findall(draw_scene(3, i, 64).caption)) == 1)
    pixels = torch.from_numpy(draw_scene(3, first, 64).image).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(one.latents[:1], fake_base.encode(pixels[None]))


def test_scenes_are_drawn_small_for_a_large_base_and_encoded_at_its_size(
    fake_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "SCENE_SIZE", 32)
    pool = make_scenes(fake_base, 3, 4)
    assert pool.masks.shape == (4, 1, 32, 32) and pool.latents.shape == (4, 4, 8, 8)
    scenes = next(placed_scenes(3, 4, 32, 4))
    enlarged = F.interpolate(scenes.images, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(pool.latents, fake_base.encode(enlarged))


# --- what is learned


def test_the_encoder_learns_to_imitate_the_words_for_places_of_another_width(
    small_base: DiffusersModel,
) -> None:
    """small_base has CLIP's words at a width of its own (16)."""
    config = WordsConfig(steps=30, batch_size=16)
    task = WordsTask(small_base, make_scenes(small_base, 1, 60), small_encoders(), config)
    place = task.pool.places[0]
    expected = small_base.word_vectors(place)["clip_l"][-4:]
    assert torch.equal(task.vectors["clip_l"][0], expected)
    rows = torch.arange(60)

    def error() -> float:
        with torch.no_grad():
            tokens = task.encoders["clip_l"](task.pool.masks)
            words = torch.stack([small_base.word_vectors(p)["clip_l"][-4:] for p in task.pool.places])
            mean = float(((tokens - words) ** 2).mean() / (words**2).mean())
            losses = task.loss(task.pool, Batch(rows, rows, task.pool.latents))
        assert losses.shape == (60,) and float(losses.mean()) == pytest.approx(mean, rel=1e-4)
        return mean

    before = error()
    fit(task, config)
    assert error() < 0.6 * before


def test_places_are_learned_from_the_error_of_v_at_each_kind_s_own_timesteps(fake_base: Any) -> None:
    """Weighted by 8 in the latent cells that the defect touches, whatever the base predicts."""
    scenes = make_scenes(fake_base, 1, 60)
    task = PlaceTask(fake_base, scenes, small_encoders(), PlacesConfig())
    picture = scenes.types.tolist().index(scenes.names.index("mask picture"))
    photo = scenes.types.tolist().index(scenes.names.index("photo"))
    rows, halfway = torch.tensor([picture, photo]), torch.tensor([500, 500])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = task.loss(scenes, Batch(rows, halfway, noise))
        for loss, row, t, eps in zip(losses, (picture, photo), (950, 600), noise, strict=True):
            abar = float(fake_base.schedule.alphas_cumprod[t])
            z = scenes.latents[row]
            noisy = abar**0.5 * z + (1 - abar) ** 0.5 * eps
            tokens = task.encoders["clip_l"](scenes.masks[row][None])
            context = fake_base.encode_prompts([scenes.captions[row]], {"clip_l": tokens})
            eps_hat = fake_base.predict_noise(noisy[None], torch.tensor([t]), context)[0]
            v, v_hat = (
                abar**0.5 * e - (1 - abar) ** 0.5 * (noisy - (1 - abar) ** 0.5 * e) / abar**0.5
                for e in (eps, eps_hat)
            )
            touched = scenes.masks[row].reshape(8, 8, 8, 8).amax((1, 3)).float()
            weight = (1 + 7 * touched).expand(4, 8, 8)
            expected = float((weight * (v - v_hat) ** 2).sum() / weight.sum())
            assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_the_encoder_learns_what_a_diffusers_base_needs_to_know(small_base: DiffusersModel) -> None:
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    class SameBatch(PlaceTask):
        def loss(self, pool: Any, batch: Batch) -> torch.Tensor:
            return super().loss(pool, Batch(torch.arange(2), torch.tensor([100, 200]), noise))

    config = PlacesConfig(steps=30, batch_size=2, warmup_steps=2)
    task = SameBatch(small_base, make_scenes(small_base, 1, 2), small_encoders(), config)
    before = [parameter.clone() for parameter in small_base.unet.parameters()]
    history = fit(task, config)
    assert history.loss[-1] < 0.93 * history.loss[0]
    assert all(torch.equal(a, b) for a, b in zip(before, small_base.unet.parameters(), strict=True))
    preview = task.preview(torch.tensor([0, 1]))
    assert preview.shape == (2, 4, 8, 8) and preview.isfinite().all()


def test_an_untrained_encoder_has_the_paper_s_size_and_the_seed_s_weights(
    small_base: DiffusersModel, base: Any
) -> None:
    encoder = untrained_encoders(small_base, 1)["clip_l"]
    assert encoder.config == SpatialEncoderConfig(16) and encoder.config.backbone == "resnet50"
    words = small_base.word_vectors("scratch stain hole")["clip_l"]
    assert float(encoder.scale.detach()) == pytest.approx(float((words**2).mean() ** 0.5))
    assert untrained_encoders(base, 1)["clip_l"].config.backbone == "resnet10"  # of the tiny family
    one, same, other = (untrained_encoders(base, seed)["clip_l"].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_an_interrupt_keeps_the_encoder_unless_nothing_is_learned_yet(base: Any) -> None:
    def stop_at(stage: str, step: int) -> Any:
        def stop(name: str, done: int, total: int, note: str) -> None:
            if (name, done) == (stage, step):
                raise KeyboardInterrupt

        return train_encoder(base, QUICK, TrainingRun(stop))

    with pytest.raises(KeyboardInterrupt):
        stop_at("scenes", 4)
    words = stop_at("words", 2)
    assert words.end.interrupted and list(words.learned.training) == ["words"]
    places: Any = stop_at("places", 2).learned.training
    assert (places["words"]["steps"], places["places"]["steps"]) == (3, 2)
    untrained = untrained_encoders(base, QUICK.places.seed)["clip_l"].state_dict()
    assert any(not torch.equal(untrained[name], value) for name, value in state(words.learned).items())
    without_words = replace(QUICK, words=WordsConfig(steps=0))
    assert not words.learned.anomaly and train_encoder(base, without_words).end.finished


# --- starting from it


def test_a_training_starts_from_exactly_the_encoder_given(base: Any, dataset: Path) -> None:
    start = train_encoder(base, QUICK).learned
    given = {name: value.clone() for name, value in state(start).items()}

    def trained_at(rate: float) -> dict[str, torch.Tensor]:
        defects = DefectConfig(steps=1, views_per_pair=1, encoder_rate=rate)
        config = TrainingConfig(64, 0.5, defects)
        return state(TrainingJob(base, find_dataset(dataset), config, start=start).train_defects().learned)

    assert all(torch.equal(value, given[name]) for name, value in trained_at(0.0).items())
    moved = trained_at(1e-3)
    assert any(not torch.equal(value, given[name]) for name, value in moved.items())
    assert all(torch.equal(value, given[name]) for name, value in state(start).items()), "a copy is trained"
    assert state(Learned(base.fingerprint, 64, (), spatial_encoders=starting_encoders(base))).keys()
    own = base.spatial_encoders["clip_l"].state_dict()
    assert all(torch.equal(v, own[k]) for k, v in starting_encoders(base)["clip_l"].state_dict().items())


def test_the_command_s_file_is_an_artifact_that_train_starts_from(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, summary = tmp_path / "encoder.safetensors", tmp_path / "s.json"
    result = pretrain_quickly(file, "--json", summary, "--precision", "bf16")
    assert result.exit_code == 0 and all(f"{s}: 2/2" in result.stdout for s in ("words", "places"))
    assert json.loads(summary.read_text())["encoder"] == str(file)
    assert base.memory_saved == {"bf16": True, "checkpointing": False}
    learned = load_artifact(file, base.fingerprint)
    assert not learned.anomaly and not learned.mask and learned.image_size == base.native_size
    again = tmp_path / "again.safetensors"
    assert pretrain_quickly(again).exit_code == 0
    assert learned_hash(load_artifact(again)) == learned_hash(learned), "same seed, same result"

    seen: dict[str, torch.Tensor] = {}

    class Watched(jobs.AnomalyTask):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.update({k: v.clone() for k, v in self.encoders["clip_l"].state_dict().items()})

    monkeypatch.setattr(jobs, "AnomalyTask", Watched)
    assert train_quickly(dataset, tmp_path / "a.safetensors", "--encoder", file).exit_code == 0
    assert all(torch.equal(seen[name], value) for name, value in state(learned).items())


def test_a_cut_off_training_remembers_which_encoder_it_started_from(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "encoder.safetensors", tmp_path / "a.safetensors"
    assert pretrain_quickly(file).exit_code == 0
    predict_noise = base.predict_noise

    def interrupt(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(base, "predict_noise", predict_noise)
        return predict_noise(*arguments)

    monkeypatch.setattr(base, "predict_noise", interrupt)
    assert train_quickly(dataset, out, "--encoder", file).exit_code == 130
    refused(train_quickly(dataset, out, "--resume"), "was begun with starts from", "not '': give the same")
    assert train_quickly(dataset, out, "--resume", "--encoder", file).exit_code == 0


def test_what_no_training_can_start_from_is_refused_in_a_sentence(
    base: Any, make_fake_base: Any, dataset: Path, trained: Path, tmp_path: Path
) -> None:
    file, other, bare = (tmp_path / f"{name}.safetensors" for name in ("encoder", "other", "bare"))
    assert pretrain_quickly(file).exit_code == 0
    learned = load_artifact(file)
    save_artifact(replace(learned, base=make_fake_base(family="sd1").fingerprint), other)
    save_artifact(replace(learned, spatial_encoders={}), bare)
    before = snapshot(tmp_path)

    def train(*options: object) -> Any:
        return train_quickly(dataset, tmp_path / "out.safetensors", *options)

    refused(train("--encoder", other), "other.safetensors was trained on base family 'sd1'", "is 'tiny'")
    refused(train("--encoder", bare), "The artifact to start from has no spatial encoder")
    refused(train("--encoder", file, "--extend", trained), "Embeddings that are extended keep their own")
    refused(train("--encoder", file, "--no-spatial-encoder"), "without spatial encoder learns none")
    refused(generate_quickly(file, dataset, tmp_path / "g"), "holds no anomaly embedding")
    refused(run("masks", file, "--out", tmp_path / "m"), "holds no mask embedding")
    refused(pretrain_quickly(file), "exists already")
    assert snapshot(tmp_path) == before
    start = replace(learned, base=make_fake_base(family="sd1").fingerprint)
    with pytest.raises(ValueError, match="^The spatial encoder to start from was trained on base family"):
        starting_encoders(base, start=start)
