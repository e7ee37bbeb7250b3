"""The nodes in a real ComfyUI, one after the other as a graph runs them, with a short real training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

HELP = Path(__file__).parents[2] / "nodes" / "web" / "docs"
Run = Callable[..., tuple]
SAMPLER = {"steps": 4, "cfg": 2.5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
DEMO = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather", "defects": ""}


@pytest.fixture(scope="module")
def trained(run: Run) -> SimpleNamespace:
    """The embedded base, the demo's leather, and embeddings after a few steps."""
    model, clip, vae = run("ADiff_LoadTinyBase")
    dataset, normals, _ = run("ADiff_LoadDataset", **DEMO, normal_count=3)
    base = {"model": model, "clip": clip, "vae": vae}
    steps = {"steps": 6, "batch_size": 2, "share": 0.6, "seed": 0, "preview_every": 4}
    embeddings, summary = run("ADiff_TrainAnomaly", **base, dataset=dataset, **steps, size=128, tokens=8)
    assert "Held-out loss" in summary
    (embeddings,) = run("ADiff_TrainMasks", **base, dataset=dataset, embeddings=embeddings, **steps, tokens=4)
    return SimpleNamespace(base=base, dataset=dataset, normals=normals, embeddings=embeddings)


@pytest.fixture(scope="module")
def masks() -> Tensor:
    masks = torch.zeros(3, 128, 128)
    masks[0, 30:70, 40:80], masks[1, 90:110, 10:50], masks[2, 5:30, 100:120] = 1, 1, 1
    return masks


def generated(run: Run, trained: Any, masks: Tensor, **changed: Any) -> tuple:
    positive, negative = run(
        "ADiff_AnomalyConditioning",
        **trained.base,
        embeddings=trained.embeddings,
        mask=masks,
        defect_type="leather/ink",
        template="a photo of a {}",
    )
    inputs = {"image": trained.normals, "mask": masks, "mode": "adaptive", "strength": 1.0, "feather": 1.0}
    model, vae = trained.base["model"], trained.base["vae"]
    return run(
        "ADiff_KSampler",
        **{"model": model, "vae": vae, "positive": positive, "negative": negative, "seed": 1}
        | SAMPLER
        | inputs
        | changed,
    )


def test_every_node_explains_itself_and_every_input(run: Run) -> None:
    assert len(run.nodes) == 23  # type: ignore[attr-defined]
    for node_id, node in run.nodes.items():  # type: ignore[attr-defined]
        schema = node.GET_SCHEMA()
        assert node_id.startswith("ADiff_") and schema.category.startswith("AnomalyDiffusion/")
        assert schema.description and schema.display_name
        inputs, outputs = {i.id for i in schema.inputs}, {o.id for o in schema.outputs}
        assert not inputs & outputs, node_id
        for entry in schema.inputs:
            assert entry.tooltip, f"{node_id}.{entry.id}"
        page = (HELP / f"{node_id}.md").read_text()
        assert page.startswith(f"# {schema.display_name}\n") and "**Example:**" in page
        assert f"![{schema.display_name}]({node_id}.jpg)" in page
        assert Image.open(HELP / f"{node_id}.jpg").width >= 200
    assert {path.stem for path in HELP.glob("*.md")} == set(run.nodes)  # type: ignore[attr-defined]


def test_the_model_folder_is_known_with_what_the_user_configured(run: Run) -> None:
    import folder_paths  # type: ignore[import-not-found]

    paths, extensions = folder_paths.folder_names_and_paths["anomalydiffusion"]
    assert paths[0] == str(run.root / "configured") and paths[1].endswith("models/anomalydiffusion")  # type: ignore[attr-defined]
    assert extensions == {".safetensors"}


def test_the_demo_set_loads_with_its_normals_and_types(trained: Any) -> None:
    assert sorted(trained.dataset.by_type()) == ["leather/burn", "leather/ink"]
    assert trained.normals.shape == (3, 128, 128, 3) and 0 < float(trained.normals.mean()) < 1


def test_the_demo_set_is_drawn_at_another_size_beside_the_usual_one(run: Run) -> None:
    dataset, normals, _ = run("ADiff_LoadDataset", **DEMO, normal_count=1, demo_size=64)
    assert normals.shape == (1, 64, 64, 3) and dataset.root.name == "anomalydiffusion_demo_64"


def test_folders_outside_comfyui_s_own_are_refused(run: Run, tmp_path: Path) -> None:
    for folder in (str(tmp_path), "../..", "/"):
        with pytest.raises(ValueError, match="lies outside ComfyUI's input and output folders"):
            run("ADiff_LoadDataset", **{**DEMO, "source": "folder", "folder": folder}, normal_count=1)


def test_a_dataset_s_stamp_changes_with_its_files(run: Run) -> None:
    node = run.nodes["ADiff_LoadDataset"]  # type: ignore[attr-defined]
    root = run.root / "input" / "mine" / "images"  # type: ignore[attr-defined]
    root.mkdir(parents=True)
    inputs = {**DEMO, "source": "folder", "folder": "mine"}
    before = node.fingerprint_inputs(**inputs)
    Image.new("RGB", (8, 8)).save(root / "a.png")
    assert node.fingerprint_inputs(**inputs) != before


def test_embeddings_are_saved_and_loaded_with_the_same_numbers(run: Run, trained: Any) -> None:
    import folder_paths  # type: ignore[import-not-found]

    first, second = (
        run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix="a/learned")[0]
        for _ in range(2)
    )
    assert first != second and Path(first).parent == run.root / "output" / "a"  # type: ignore[attr-defined]
    folder_paths.folder_names_and_paths["anomalydiffusion"][0].append(str(Path(first).parent))
    loaded, types = run("ADiff_LoadEmbeddings", name=Path(first).name)
    assert types == "leather/burn\nleather/ink"
    for kind in ("anomaly", "mask"):
        for name, tokens in getattr(trained.embeddings, kind).items():
            assert torch.equal(getattr(loaded, kind)[name]["clip_l"], tokens["clip_l"])
    with pytest.raises(Exception, match="outside the output folder"):
        run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix="../../elsewhere")


def test_the_sampler_changes_pixels_inside_the_masks_alone(run: Run, trained: Any, masks: Tensor) -> None:
    images, given, latent, plain = generated(run, trained, masks)
    changed = (images != trained.normals).any(-1)
    assert images.shape == trained.normals.shape and torch.equal(given, masks)
    assert latent["samples"].shape == (3, 8, 16, 16)
    assert torch.equal(plain, trained.normals)  # no attention maps were asked for
    assert not changed[masks == 0].any()
    for image, mask in zip(changed, masks, strict=True):
        assert image[mask > 0].float().mean() > 0.5


SAMPLERS = [
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "uni_pc",
    "lcm",
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_same_picture_whatever_the_batch_and_nothing_outside(
    run: Run, trained: Any, masks: Tensor, sampler: str
) -> None:
    def pictures(chosen: list[int], seed: int = 1) -> Tensor:
        some = SimpleNamespace(**{**vars(trained), "normals": trained.normals[chosen]})
        return generated(run, some, masks[chosen], sampler_name=sampler, steps=3, seed=seed)[0]

    together, outside = pictures([0, 1]), masks[:2] == 0
    assert torch.equal(together[outside], trained.normals[:2][outside])
    for other in (pictures([0])[0] - together[0], pictures([2, 1])[1] - together[1]):
        assert float(other.abs().max()) <= 1.01 / 255
    assert float((pictures([0, 1], seed=2) - together).abs().max()) > 5 / 255


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_noise_of_an_image_comes_from_its_own_generator(run: Run, trained: Any, sampler: str) -> None:
    from adiff_pack.nodes.comfy_sampling import sample_images  # type: ignore[import-not-found]

    learned = {"embeddings": trained.embeddings, "defect_type": ""}
    prompts = run("ADiff_MaskConditioning", **trained.base, **learned)
    photo, noise_mask = torch.ones(1, 8, 8, 8), torch.ones(1, 1, 8, 8)
    noise_mask[..., :4] = 0

    def latents(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.inference_mode():
            return sample_images(
                trained.base["model"], generators, 3, 2.0, sampler, "normal", *prompts,
                photo.repeat(len(seeds), 1, 1, 1), noise_mask=noise_mask.repeat(len(seeds), 1, 1, 1), seed=0,
            )  # fmt: skip

    together = latents(1, 2)
    torch.testing.assert_close(together, torch.cat([latents(1), latents(2)]), rtol=1e-3, atol=1e-3)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_odd_sizes_are_padded_and_cut_again(run: Run, trained: Any, masks: Tensor) -> None:
    odd = SimpleNamespace(**{**vars(trained), "normals": trained.normals[:, :123, :118]})
    images, _, _, maps = generated(run, odd, masks[:, :123, :118], attention_maps=True)
    assert images.shape == (3, 123, 118, 3)
    assert maps.shape == (3, 123, 4 * 118, 3)


@pytest.mark.parametrize("mode", ["adaptive", "off"])
def test_attention_maps_lie_over_the_photos_and_change_nothing_of_the_pictures(
    run: Run, trained: Any, masks: Tensor, mode: str
) -> None:
    images, _, _, maps = generated(run, trained, masks, mode=mode, attention_maps=True)
    assert torch.equal(images, generated(run, trained, masks, mode=mode)[0])
    assert maps.shape == (3, 128, 4 * 128, 3)
    ranges = maps.unflatten(2, (4, 128)).transpose(1, 2)
    shown = (ranges - trained.normals[:, None]).abs().amax((2, 3, 4))
    assert (shown > 20 / 255).any(1).all()  # one scale for all ranges: each photo has its hottest place
    assert not torch.equal(ranges[:, 0], ranges[:, 3])


def test_reweighting_can_act_in_a_part_of_the_steps_and_up_to_a_weight(
    run: Run, trained: Any, masks: Tensor
) -> None:
    default, whole, late, weak, never = (
        generated(run, trained, masks, **changed)[0]
        for changed in (
            {},
            {"start": 0.0, "end": 1.0, "maximum": 3.0},
            {"start": 0.7},
            {"maximum": 1.0},
            {"mode": "off"},
        )
    )
    assert torch.equal(default, whole)
    assert not torch.equal(late, whole) and not torch.equal(late, never)
    assert torch.equal(weak, never)
    with pytest.raises(ValueError, match="AAR starts at 0.5 and ends at 0.5"):
        generated(run, trained, masks, start=0.5, end=0.5)


def test_mode_paper_sees_through_a_vae_of_its_own_where_one_is_given(
    run: Run, trained: Any, masks: Tensor
) -> None:
    import comfy.sd  # type: ignore[import-not-found]
    import comfy.taesd.taesd  # type: ignore[import-not-found]

    def tiny_vae(channels: int) -> Any:
        vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict())
        generator = torch.Generator().manual_seed(0)
        for parameter in vae.first_stage_model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        return vae

    with torch.inference_mode():
        eight, four = tiny_vae(8), tiny_vae(4)
    own, same, other = (
        generated(run, trained, masks, mode="paper", **vae)[0]
        for vae in ({}, {"aar_vae": trained.base["vae"]}, {"aar_vae": eight})
    )
    assert torch.equal(own, same) and not torch.equal(own, other)
    adaptive = generated(run, trained, masks)[0]
    assert torch.equal(adaptive, generated(run, trained, masks, aar_vae=eight)[0])
    with pytest.raises(ValueError, match="mode paper reads 4 latent channels, the model has 8: connect"):
        generated(run, trained, masks, mode="paper", aar_vae=four)


def test_one_photo_serves_several_masks(run: Run, trained: Any, masks: Tensor) -> None:
    one = SimpleNamespace(**{**vars(trained), "normals": trained.normals[:1]})
    assert generated(run, one, masks)[0].shape == (3, 128, 128, 3)


def test_what_does_not_fit_is_refused_in_a_sentence(run: Run, trained: Any, masks: Tensor) -> None:
    with pytest.raises(ValueError, match="The mask is 64x64, the photo 128x128: resize the mask"):
        generated(run, trained, masks, mask=torch.ones(3, 64, 64))
    with pytest.raises(ValueError, match="There are 2 photos for 3"):
        generated(run, trained, masks, image=trained.normals[:2])
    with pytest.raises(ValueError, match="Mask 0 is empty"):
        generated(run, trained, torch.zeros_like(masks))
    with pytest.raises(ValueError, match="This conditioning has no learned vectors"):
        clip = trained.base["clip"]
        plain = [[clip.encode("a photo"), {}]]
        generated(run, trained, masks, positive=plain)


def test_unknown_types_are_refused_with_those_there_are(run: Run, trained: Any, masks: Tensor) -> None:
    with pytest.raises(ValueError, match="'leather/dent': this artifact has leather/burn, leather/ink"):
        run(
            "ADiff_AnomalyConditioning",
            **trained.base,
            embeddings=trained.embeddings,
            mask=masks,
            defect_type="leather/dent",
            template="a photo of a {}",
        )


def test_masks_are_invented_and_pictures_become_masks(run: Run, trained: Any) -> None:
    positive, negative = run(
        "ADiff_MaskConditioning", **trained.base, embeddings=trained.embeddings, defect_type=""
    )
    assert positive[0][0].shape == negative[0][0].shape == (1, 77, 192)
    (invented,) = run(
        "ADiff_GenerateMasks",
        **trained.base,
        embeddings=trained.embeddings,
        defect_type="leather/burn",
        count=3,
        seed=0,
        **{**SAMPLER, "steps": 12, "cfg": 5.0},
    )
    assert invented.shape == (3, 128, 128) and set(invented.unique().tolist()) == {0.0, 1.0}
    assert all(0.0005 < float(mask.mean()) <= 0.5 for mask in invented)
    picture = torch.zeros(1, 32, 32, 3)
    picture[:, 8:20, 8:20] = 0.8
    (found,) = run("ADiff_BinarizeMasks", images=picture, threshold=0.5)
    assert torch.equal(found, (picture[..., 0] > 0.5).float())
    learned = {"embeddings": trained.embeddings, "defect_type": "leather/burn", "seed": 1}
    (placed,) = run("ADiff_BinarizeMasks", images=picture, threshold=0.5, **learned)
    extents = [place.extent for place in trained.embeddings.mask_places["leather/burn"]]
    assert placed.shape == (1, 128, 128)
    assert 0.8 * min(extents) - 0.02 <= float(placed[0].any(0).float().mean()) <= 1.25 * max(extents) + 0.02


def test_masks_of_several_sources_are_mixed(run: Run, trained: Any, masks: Tensor) -> None:
    weights = {"generated": 1.0, "real": 1.0, "drawn": 1.0, "procedural": 1.0}
    inputs = {"count": 12, "width": 160, "height": 128, "seed": 3, "defect_type": "leather/burn"}
    given = {"generated_masks": masks[:1], "drawn_masks": masks[1:2], "few_shot": trained.dataset}
    (mixed,) = run("ADiff_MixMasks", **weights, **inputs, **given, embeddings=trained.embeddings)
    assert mixed.shape == (12, 128, 160) and set(mixed.unique().tolist()) == {0.0, 1.0}
    assert all(mask.any() for mask in mixed) and len({mask.numpy().tobytes() for mask in mixed}) > 6
    procedural = {**dict.fromkeys(weights, 0.0), "procedural": 1.0}
    (drawn,) = run("ADiff_MixMasks", **procedural, **{**inputs, "defect_type": ""})
    assert all(0.005 < float(mask.mean()) < 0.02 for mask in drawn)
    with pytest.raises(ValueError, match="cannot come from source 'real', since no training masks"):
        run("ADiff_MixMasks", **weights, **inputs, generated_masks=masks, drawn_masks=masks)


def test_masks_are_placed_on_objects(run: Run, trained: Any, masks: Tensor) -> None:
    photos = torch.full((3, 96, 128, 3), 0.8)
    for photo, left in zip(photos, (10, 40, 60), strict=True):
        photo[30:80, left : left + 60] = 0.1
    for more in ({"mode": "free"}, {"mode": "learned", "embeddings": trained.embeddings}):
        (placed,) = run("ADiff_PlaceMasks", masks=masks, normals=photos, seed=1, **more)
        assert placed.shape == (3, 96, 128) and all(mask.any() for mask in placed)
        for photo, mask in zip(photos, placed, strict=True):
            assert (photo[..., 0][mask > 0] < 0.5).float().mean() >= 0.9


def test_the_gate_keeps_what_shows_and_says_what_it_left_out(run: Run, trained: Any, masks: Tensor) -> None:
    images = trained.normals.clone()
    images[1][masks[1] > 0] = 1 - images[1][masks[1] > 0]  # only the second pair shows anything
    vae = trained.base["vae"]
    inputs = {"images": images, "masks": masks, "normals": trained.normals, "vae": vae}
    kept, kept_masks, normals, scores, report, left, left_masks = run(
        "ADiff_QualityGate", **inputs, smallest_fill=0.3
    )
    assert torch.equal(kept, images[1:2]) and torch.equal(kept_masks, masks[1:2])
    assert torch.equal(normals, trained.normals[1:2])
    assert torch.equal(left, images[[0, 2]]) and torch.equal(left_masks, masks[[0, 2]])
    (score,) = scores
    assert score["fill"] > 0.9 and score["noise"] >= 1
    assert score["scores"]["fill"] > 0.9 and score["thresholds"] == {"fill": 0.3}
    assert score["backbone"] == "connected autoencoder"
    one = run("ADiff_QualityGate", **{**inputs, "normals": trained.normals[1:2]}, smallest_fill=0)
    assert torch.equal(one[2], trained.normals[[1, 1, 1]])
    assert one[5].shape == (1, 128, 128, 3) and not one[5].any() and not one[6].any()  # none was left out
    assert report.startswith("1 of 3 pairs accepted (2 unfilled)")
    assert report.count("left out: unfilled") == 2
    assert "not calibrated: connect the dataset that the embeddings were trained on" in report
    with pytest.raises(ValueError, match=r"None of 3 pairs is good enough \(3 unfilled; best fill 0%\)"):
        run("ADiff_QualityGate", **{**inputs, "images": trained.normals}, smallest_fill=0.3)
    with pytest.raises(ValueError, match="The images are 128x64, the normal photos 128x128: connect"):
        run("ADiff_QualityGate", **{**inputs, "images": images[:, :64]}, smallest_fill=0.3)


def real_pairs(trained: Any, defect_type: str) -> tuple[Tensor, Tensor]:
    """All photos and masks of a type, in order of names: the first six trained."""
    from adiff_pack.anomalydiffusion_core.dataset.photos import (  # type: ignore[import-not-found]
        read_mask,
        read_photo,
    )

    pairs = trained.dataset.by_type()[defect_type]
    photos = np.stack([read_photo(pair.image).pixels for pair in pairs])
    masks = np.stack([read_mask(pair.mask) for pair in pairs])
    return torch.from_numpy(photos).float() / 255, torch.from_numpy(masks).float()


def test_the_gate_asks_for_what_real_pairs_show(run: Run, trained: Any, masks: Tensor) -> None:
    photos, marked = real_pairs(trained, "leather/ink")
    images = torch.cat([photos[[1, 8]], trained.normals[:1]])  # one that trained, another real one, nothing
    marked = torch.cat([marked[[1, 8]], masks[:1]])
    inputs = {"images": images, "masks": marked, "normals": 1 - images, "vae": trained.base["vae"]}
    known = {"dataset": trained.dataset, "embeddings": trained.embeddings, "defect_type": "leather/ink"}
    *accepted, rows, report, left, _ = run("ADiff_QualityGate", **inputs, **known, smallest_fill=0.3)
    lines = report.splitlines()
    assert torch.equal(accepted[0], images[1:2]) and torch.equal(left, images[[0, 2]])
    assert lines[0].startswith("1 of 3 pairs accepted (") and "1 duplicate" in lines[0]
    assert lines[1] == "calibrated on 6 pairs that trained leather/ink"
    assert lines[3].endswith("left out: duplicate") and "duplicate 0.00" in lines[3]
    assert "faint" in lines[5] and "left out" not in lines[4]
    (row,) = rows
    names = {"fill", "contrast", "seam", "plausibility", "duplicate"}
    assert set(row["scores"]) == set(row["thresholds"]) == names and row["backbone"] == "tiny autoencoder"
    assert row["scores"]["contrast"] >= row["thresholds"]["contrast"]
    assert row["scores"]["seam"] <= row["thresholds"]["seam"]
    off = dict.fromkeys(names, False)
    assert len(run("ADiff_QualityGate", **inputs, **known, **off, smallest_fill=0.3)[0]) == 3
    some = run("ADiff_QualityGate", **inputs, **known, **{**off, "duplicate": True}, smallest_fill=0.3)
    assert torch.equal(some[0], images[1:])


def test_the_gate_says_what_it_is_calibrated_on(run: Run, trained: Any) -> None:
    from dataclasses import replace

    photos, marked = real_pairs(trained, "leather/burn")
    inputs = {"images": photos[6:], "masks": marked[6:], "normals": 1 - photos[6:], "smallest_fill": 0.0}
    inputs |= {"vae": trained.base["vae"], "dataset": trained.dataset, "defect_type": "leather/burn"}
    inputs |= dict.fromkeys(("seam", "plausibility", "contrast", "fill"), False)
    elsewhere = replace(trained.embeddings, trained_on={"leather/burn": ["0" * 16]})
    unknown = replace(trained.embeddings, trained_on={})

    def calibration(**more: Any) -> str:
        return run("ADiff_QualityGate", **inputs, **more)[4].splitlines()[1]

    assert calibration(embeddings=trained.embeddings) == "calibrated on 6 pairs that trained leather/burn"
    every = "calibrated on 10 pairs of leather/burn, which of them trained is not known"
    assert calibration(embeddings=unknown, duplicate=False) == calibration(duplicate=False) == every
    assert calibration(embeddings=elsewhere) == (
        "not calibrated: the dataset holds no pairs that trained leather/burn, connect the one that does"
    )
    with pytest.raises(ValueError, match="no anomaly embedding for 'leather/hole'"):
        run("ADiff_QualityGate", **{**inputs, "defect_type": "leather/hole"}, embeddings=trained.embeddings)


def test_defects_fade_in_as_softly_as_real_ones_where_the_dataset_is_given(
    run: Run, trained: Any, masks: Tensor
) -> None:
    from adiff_pack.anomalydiffusion_core.quality import seam  # type: ignore[import-not-found]

    conditioning = {"embeddings": trained.embeddings, "mask": masks, "template": "a photo of a {}"}
    positive, _ = run("ADiff_AnomalyConditioning", **trained.base, **conditioning, defect_type="leather/burn")
    sharp, soft = (
        generated(run, trained, masks, positive=positive, **more)[0]
        for more in ({}, {"dataset": trained.dataset})
    )
    seams = [
        [seam(255 * image.numpy(), mask.numpy() > 0) for image, mask in zip(images, masks, strict=True)]
        for images in (sharp, soft)
    ]
    assert all(after <= before for before, after in zip(*seams, strict=True)) and seams[0] != seams[1]
    assert max(seams[1]) < 0.9 * max(seams[0])
    assert torch.equal(soft[masks == 0], trained.normals[masks == 0])
    assert torch.equal(soft[0, 50, 60], sharp[0, 50, 60])  # the middle of the first mask


def large_photos() -> tuple[Tensor, Tensor]:
    """Two noisy photos off whole grey levels, with three spots and one; those on top lie close together."""
    photos = torch.rand(2, 300, 420, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 300, 420)
    masks[0, 20:40, 30:60], masks[0, 50:70, 80:90], masks[0, 270:290, 390:415] = 1, 1, 1
    masks[1, 140:180, 200:220] = 1
    return photos, masks


def test_regions_are_cut_out_pixel_by_pixel_and_stitched_with_nothing_else_changed(
    run: Run, trained: Any
) -> None:
    photos, masks = large_photos()
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=128)
    assert crops.shape == (3, 128, 128, 3) and [number for number, _ in regions.crops] == [0, 0, 1]
    assert torch.equal(crops[1], photos[0, 172:, 292:]) and torch.equal(crop_masks[1], masks[0, 172:, 292:])
    assert torch.equal(crops[2], photos[1, 96:224, 146:274])
    made, made_masks = run("ADiff_StitchRegions", crops=1 - crops, regions=regions, feather=0.0)
    assert torch.equal(made_masks, masks)
    expected = torch.where(masks[..., None] > 0, 1 - photos, photos)
    assert torch.equal(made[masks == 0], photos[masks == 0])
    assert float((made - expected).abs().max()) <= 0.501 / 255
    faded, _ = run("ADiff_StitchRegions", crops=1 - crops, regions=regions, feather=8.0)
    assert torch.equal(faded[masks == 0], photos[masks == 0]) and not torch.equal(faded, made)
    (own, _, _) = run(
        "ADiff_CropRegions", images=photos, masks=masks, canvas=0, embeddings=trained.embeddings
    )
    assert torch.equal(own, crops)
    with pytest.raises(ValueError, match="There are 2 crops of 128x128 for 3 regions of 128x128: connect"):
        run("ADiff_StitchRegions", crops=crops[:2], regions=regions, feather=0.0)
    with pytest.raises(ValueError, match="Canvas 0 takes the size of the training: connect the embeddings"):
        run("ADiff_CropRegions", images=photos, masks=masks, canvas=0)


def test_what_is_longer_than_the_canvas_is_scaled_and_gets_its_detail_back(run: Run) -> None:
    photos, masks = large_photos()
    smooth = torch.linspace(60, 180, 420)[:, None] + 4 * photos
    photos, masks = smooth.round() / 255, torch.zeros_like(masks)
    masks[:, 100:110, 100:300] = 1
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=64)
    assert crops.shape == (2, 64, 64, 3) and regions.crops[0][1].window.side == 300
    assert set(crop_masks.unique().tolist()) == {0.0, 1.0} and crop_masks[0].any(0).sum() >= 64 * 200 / 300
    unchanged, _ = run("ADiff_StitchRegions", crops=crops, regions=regions, feather=0.0)
    assert torch.equal(unchanged, photos)
    red = torch.tensor([1.0, 0.0, 0.0]).expand_as(crops)
    painted, _ = run("ADiff_StitchRegions", crops=red, regions=regions, feather=0.0)
    assert torch.equal(painted[masks == 0], photos[masks == 0])
    assert (painted[masks > 0] - red[0, 0, 0]).abs().max() < 2 / 255
    masks[0, 20:280, 10:400] = 1
    with pytest.raises(ValueError, match="Mask 0 has a part that needs 420 pixels per side, over 8 times"):
        run("ADiff_CropRegions", images=photos, masks=masks, canvas=48)


def test_defects_are_made_in_crops_of_a_large_photo(run: Run, trained: Any) -> None:
    photos, masks = large_photos()
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=128)
    some = SimpleNamespace(**{**vars(trained), "normals": crops})
    made, _ = run(
        "ADiff_StitchRegions", crops=generated(run, some, crop_masks)[0], regions=regions, feather=0.0
    )
    changed = (made != photos).any(-1)
    assert not changed[masks == 0].any()
    assert changed[masks > 0].float().mean() > 0.9


def test_a_dataset_is_appended_to_with_exact_pixels(run: Run, trained: Any, masks: Tensor) -> None:
    inputs = {"images": trained.normals, "masks": masks, "defect_type": "leather/ink", "folder": "made"}
    (path,) = run("ADiff_SaveDataset", **inputs, normals=trained.normals)
    assert Path(path) == run.root / "output" / "made"  # type: ignore[attr-defined]
    run("ADiff_SaveDataset", **inputs)
    written = sorted((Path(path) / "leather/test/ink").iterdir())
    assert len(written) == 6 and len(list((Path(path) / "leather/train/good").iterdir())) == 3
    expected = (trained.normals[0].numpy() * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(written[0])), expected)
    mask = np.asarray(Image.open(Path(path) / "leather/ground_truth/ink/00001_mask.png"))
    np.testing.assert_array_equal(mask > 0, masks[1].numpy() > 0)
    with pytest.raises(ValueError, match="There are 2 scores for 3 images: give one for each"):
        run("ADiff_SaveDataset", **inputs, scores=[{"fill": 1.0}] * 2)
    for wrong in ("ink", "leather/", "../x", "leather/a/b"):
        with pytest.raises(ValueError, match="is no category/defect"):
            run("ADiff_SaveDataset", **{**inputs, "defect_type": wrong})
    with pytest.raises(ValueError, match="lies outside"):
        run("ADiff_SaveDataset", **{**inputs, "folder": "../../../elsewhere"})


def test_a_training_shows_its_loss_and_what_it_learned_and_learns_the_same_unseen(
    run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils  # type: ignore[import-not-found]

    seen: list[tuple[int, Any]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kw: seen.append((args[0], args[2])))
    inputs = {**trained.base, "dataset": trained.dataset, "batch_size": 2, "share": 0.6, "seed": 0}
    learned = [
        run("ADiff_TrainAnomaly", **inputs, steps=12, size=128, tokens=2, preview_every=every)[0]
        for every in (5, 0)
    ]
    first, second = (x.anomaly["leather/ink"]["clip_l"] for x in learned)
    assert torch.equal(first, second)
    pictures = [(step, picture[1]) for step, picture in seen if picture]
    assert [step for step, _ in pictures] == [10, 12, 10, 12]
    # two types: a curve, and two rows of two views below it
    assert [picture.size for _, picture in pictures] == [(512, 160 + 512)] * 2 + [(512, 160)] * 2
    real, redrawn = (
        np.asarray(pictures[1][1])[rows].astype(float) for rows in (slice(160, 416), slice(416, 672))
    )
    assert 1 < np.abs(real - redrawn).mean() < 60  # the same photos, other defects in them


def test_masks_of_which_none_is_usable_end_in_a_sentence(
    run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.nodes import comfy_generation  # type: ignore[import-not-found]

    black = [np.zeros((128, 128), bool)]
    monkeypatch.setattr(comfy_generation, "masks_from_pictures", lambda pictures, _: black * len(pictures))
    inputs = {**trained.base, "embeddings": trained.embeddings, "defect_type": "leather/ink", "seed": 0}
    with pytest.raises(
        ValueError, match=r"Only 0 of 1 masks of leather/ink were usable after 20 tries \(20 empty"
    ):
        run("ADiff_GenerateMasks", **inputs, count=1, **{**SAMPLER, "steps": 1})


def test_the_prompt_can_be_told_another_place_than_the_sampler(run: Run, trained: Any, masks: Tensor) -> None:
    inputs = {**trained.base, "embeddings": trained.embeddings, "defect_type": "leather/ink"}
    inputs["template"] = "a photo of a {}"
    (tokens,) = run("ADiff_EncodeMask", embeddings=trained.embeddings, mask=masks)
    assert tokens["clip_l"].shape == (3, 4, 192)
    by_mask, by_tokens, elsewhere = (
        run("ADiff_AnomalyConditioning", **inputs, **place)[0][0][0]
        for place in ({"mask": masks}, {"spatial_tokens": tokens}, {"mask": masks.flip(0)})
    )
    assert torch.equal(by_mask, by_tokens) and not torch.allclose(by_mask, elsewhere)
    for place in ({}, {"mask": masks, "spatial_tokens": tokens}):
        with pytest.raises(ValueError, match="Connect either a mask, or the tokens of Encode Mask"):
            run("ADiff_AnomalyConditioning", **inputs, **place)
