"""The artifact: names and metadata as the contract has them; whole or absent; refused elsewhere."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from anomalydiffusion_core import __version__
from anomalydiffusion_core.method import artifact
from anomalydiffusion_core.method.artifact import export_textual_inversion, load_artifact, save_artifact
from anomalydiffusion_core.method.embeddings import Learned, Placement, Tuning
from anomalydiffusion_core.method.latent_diffusion import Fingerprint

TUNING = Tuning("noise", 0.45, 2.0, "off", 0.5, 6, 8)


@pytest.fixture
def saved(learned: Learned, tmp_path: Path) -> Path:
    learned.tunings["thing/stain"] = TUNING
    save_artifact(learned, tmp_path / "new" / "thing.safetensors")
    return tmp_path / "new" / "thing.safetensors"


def rewritten(
    path: Path, metadata: dict[str, str], drop: str = "", extra: dict[str, Any] | None = None
) -> Path:
    """A copy of an artifact with other metadata, less a key or a tensor, plus tensors."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    tensors = {key: value for key, value in load_file(path).items() if key != drop}
    new = {key: value for key, value in (old | metadata).items() if key != drop}
    save_file(tensors | (extra or {}), path.with_name("other.safetensors"), metadata=new)
    return path.with_name("other.safetensors")


def test_tensors_and_metadata_have_the_names_of_the_contract(learned: Learned, saved: Path) -> None:
    tensors = load_file(saved)
    plain = {key: value for key, value in tensors.items() if not key.startswith("spatial_encoder/")}
    assert {key: tuple(value.shape) for key, value in plain.items()} == {
        "anomaly/thing/scratch/clip_l": (3, 16),
        "anomaly/thing/stain/clip_l": (3, 16),
        "mask/thing/scratch/clip_l": (2, 16),
        "mask/thing/stain/clip_l": (2, 16),
    }
    encoder = learned.spatial_encoders["clip_l"].state_dict()
    assert {key for key in tensors if key.startswith("spatial_encoder/")} == {
        f"spatial_encoder/{k}" for k in encoder
    }
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "anomalydiffusion/1"
    assert (metadata["base_family"], metadata["base_weights"]) == ("fake", "0123456789abcdef")
    assert metadata["image_size"] == "64" and metadata["package_version"] == __version__
    assert json.loads(metadata["token_counts"]) == {key: len(value) for key, value in plain.items()}
    assert json.loads(metadata["templates"]) == list(learned.templates)
    assert json.loads(metadata["training"])["anomaly"]["config"] == {"steps": 3}
    assert metadata["dataset_fingerprint"] == "feedfacecafebeef"


def test_what_is_loaded_equals_what_was_saved(learned: Learned, saved: Path) -> None:
    loaded = load_artifact(saved, learned.base)
    for kind in ("anomaly", "mask"):
        before, after = getattr(learned, kind), getattr(loaded, kind)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name]["clip_l"], after[name]["clip_l"]) for name in before)
    assert (loaded.base, loaded.image_size, loaded.templates) == (learned.base, 64, learned.templates)
    assert (
        loaded.dataset_fingerprint == learned.dataset_fingerprint and loaded.mask_areas == learned.mask_areas
    )
    assert loaded.mask_placements == learned.mask_placements and loaded.trained_on == learned.trained_on
    assert loaded.tunings == learned.tunings == {"thing/stain": TUNING}
    assert loaded.training["anomaly"]["loss"] == [3.0, 2.0, 1.0]  # type: ignore[index]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 10:30, 20:50] = 1
    with torch.no_grad():
        assert torch.equal(loaded.spatial_encoders["clip_l"](mask), learned.spatial_encoders["clip_l"](mask))
    assert not loaded.spatial_encoders["clip_l"].training


def test_places_of_older_artifacts_lie_wholly_on_the_object_in_no_pose(saved: Path) -> None:
    old = {"thing/dent": [{"extent": 0.5, "area": 0.1, "centre": [0.75, 0.5]}]}
    loaded = load_artifact(rewritten(saved, {"mask_places": json.dumps(old)}))
    assert loaded.mask_placements == {
        "thing/dent": [Placement(0.5, 0.1, (0.75, 0.5), on_object=1.0, pose=None)]
    }


def test_places_remember_the_sides_that_masks_ran_into(learned: Learned, tmp_path: Path) -> None:
    learned.mask_placements = {"thing/dent": [Placement(0.5, 0.1, None, sides=(0, 3))]}
    save_artifact(learned, tmp_path / "a.safetensors")
    assert load_artifact(tmp_path / "a.safetensors").mask_placements == learned.mask_placements


def test_two_text_encoders_keep_their_tokens_apart(
    learned: Learned, make_fake_base: Any, tmp_path: Path
) -> None:
    learned.anomaly["thing/scratch"]["clip_g"] = torch.ones(3, 24)
    learned.spatial_encoders["clip_g"] = make_fake_base().spatial_encoders["clip_l"]
    learned.spatial_encoders["clip_g"].set_scale(7.0)
    save_artifact(learned, tmp_path / "a.safetensors")
    loaded = load_artifact(tmp_path / "a.safetensors")
    assert loaded.anomaly["thing/scratch"]["clip_g"].shape == (3, 24)
    assert loaded.spatial_encoders["clip_g"].scale.item() == 7
    assert (
        loaded.spatial_encoders["clip_l"].scale.item() == learned.spatial_encoders["clip_l"].scale.item() != 7
    )


def test_tokens_that_share_memory_or_precision_are_saved_in_full(learned: Learned, tmp_path: Path) -> None:
    shared, halved = torch.randn(4, 16), torch.randn(3, 16).half()
    learned.anomaly = {
        "thing/a": {"clip_l": shared[:3]},
        "thing/b": {"clip_l": shared[:3]},
        "thing/c": {"clip_l": shared.T[:4].T},
        "thing/d": {"clip_l": halved},
    }
    save_artifact(learned, tmp_path / "a.safetensors")
    loaded = load_artifact(tmp_path / "a.safetensors").anomaly
    for name, tokens in learned.anomaly.items():
        assert loaded[name]["clip_l"].dtype == torch.float32
        assert torch.equal(loaded[name]["clip_l"], tokens["clip_l"].float())


def test_another_family_is_an_error_that_names_both(saved: Path) -> None:
    with pytest.raises(ValueError, match="base family 'fake' but the base given is 'sd1'"):
        load_artifact(saved, Fingerprint("sd1", "0123456789abcdef"))


def test_other_weights_of_the_family_are_a_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_artifact(saved, Fingerprint("fake", "0123456789abcdef"))
        assert not caplog.records
        load_artifact(saved, Fingerprint("fake", "fedcba9876543210"))
    assert "other weights" in caplog.text and str(saved) in caplog.text


def test_what_is_no_artifact_is_refused_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(saved.read_bytes()[:-100])
    (tmp_path / "header").write_bytes(saved.read_bytes()[:40])
    save_file({"emb_params": torch.zeros(2, 16)}, tmp_path / "embedding")
    for path in (
        *(tmp_path / name for name in ("text", "empty", "cut", "header", "embedding", "absent")),
        tmp_path,
    ):
        with pytest.raises(ValueError) as error:
            load_artifact(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("drop", ["base_family", "templates", "spatial_encoder", "spatial_encoder/scale"])
def test_a_damaged_artifact_says_what_is_damaged(saved: Path, drop: str) -> None:
    with pytest.raises(ValueError, match=r"other\.safetensors is damaged") as error:
        load_artifact(rewritten(saved, {}, drop))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"training": "{"},
        {"image_size": "wide"},
        {"spatial_encoder": '{"clip_l": {}}'},
        *(
            {"tunings": json.dumps({"thing/stain": vars(TUNING) | wrong})}
            for wrong in (
                {"start": "../x"},
                {"denoise": 0},
                {"denoise": "much"},
                {"guidance": float("nan")},
                {"aar_mode": "none"},
                {"aar_strength": "1"},
                {"more": 1},
            )
        ),
    ],
)
def test_damaged_metadata_is_told(saved: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        load_artifact(rewritten(saved, metadata))


def test_another_format_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="is no anomalydiffusion/1 artifact"):
        load_artifact(rewritten(saved, {"format": "anomalydiffusion/2"}))


@pytest.mark.parametrize("name", ["../../etc/x", "thing/..", "thing", "a/b/c", "/thing", "C:/x", "a/D:x"])
def test_a_type_that_leads_out_of_the_output_folder_is_refused(saved: Path, name: str) -> None:
    path = rewritten(saved, {}, extra={f"anomaly/{name}/clip_l": torch.zeros(1, 16)})
    with pytest.raises(ValueError, match="is no category/defect"):
        load_artifact(path)


def test_an_unknown_type_lists_those_there_are(learned: Learned) -> None:
    for look_up in (learned.anomaly_tokens, learned.mask_tokens):
        with pytest.raises(ValueError, match="'thing/dent': this artifact has thing/scratch, thing/stain"):
            look_up("thing/dent")


def fail_before_writing(*_: Any, **__: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def fail_halfway(tensors: dict[str, torch.Tensor], name: str, metadata: dict[str, str]) -> None:
    Path(name).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(tensors: dict[str, torch.Tensor], name: str, metadata: dict[str, str]) -> None:
    Path(name).write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("save", "raised"),
    [(fail_before_writing, OSError), (fail_halfway, OSError), (interrupt, KeyboardInterrupt)],
)
@pytest.mark.parametrize("former", [None, b"former"])
def test_a_failed_save_leaves_what_was_there_and_no_more(
    learned: Learned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Any,
    raised: type[BaseException],
    former: bytes | None,
) -> None:
    path = tmp_path / "a.safetensors"
    if former:
        path.write_bytes(former)
    monkeypatch.setattr(artifact, "save_file", save)
    with pytest.raises(raised) as error:
        save_artifact(learned, path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([former] if former else [])
    if raised is OSError:
        assert "No space left" in str(error.value) and str(path) in str(error.value)


def test_the_target_appears_only_when_it_is_whole(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save_artifact(learned, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_under_a_file_is_an_os_error_that_names_it(learned: Learned, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        save_artifact(learned, tmp_path / "file" / "a.safetensors")
    assert error.value.filename == str(tmp_path / "file" / "a.safetensors")


def test_an_embedding_exports_as_an_ordinary_textual_inversion(learned: Learned, tmp_path: Path) -> None:
    path = tmp_path / "scratch.safetensors"
    export_textual_inversion(learned, "thing/scratch", path)
    exported = load_file(path)
    assert list(exported) == ["emb_params"]
    assert torch.equal(exported["emb_params"], learned.anomaly["thing/scratch"]["clip_l"])
    learned.anomaly["thing/stain"]["clip_g"] = torch.ones(3, 24)
    export_textual_inversion(learned, "thing/stain", tmp_path / "stain.safetensors")
    assert {k: tuple(v.shape) for k, v in load_file(tmp_path / "stain.safetensors").items()} == {
        "clip_l": (3, 16),
        "clip_g": (3, 24),
    }
