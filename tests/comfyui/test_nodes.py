"""The nodes in a real ComfyUI, one after the other as a graph runs them, with a short real training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_inputs import DEMO
from PIL import Image
from torch import Tensor

HELP = Path(__file__).parents[2] / "nodes" / "web" / "docs"
Run = Callable[..., tuple]


def test_every_node_explains_itself_and_every_input(run: Run) -> None:
    assert len(run.nodes) == 26  # type: ignore[attr-defined]
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
        assert Image.open(HELP / f"{node_id}.jpg").width >= 150  # the narrowest node has 199
    assert {path.stem for path in HELP.glob("*.md")} == set(run.nodes)  # type: ignore[attr-defined]


def test_the_node_search_finds_nodes_by_what_people_look_for(run: Run, pack: Any) -> None:
    aliases = importlib.import_module(f"{pack.__name__}.nodes.search").ALIASES
    assert set(run.nodes) <= set(aliases)  # type: ignore[attr-defined]
    for word in ("defect", "inspection", "inpaint", "synthetic"):
        assert word in [alias for words in aliases.values() for alias in words]
    for node_id, node in run.nodes.items():  # type: ignore[attr-defined]
        schema = node.GET_SCHEMA()  # of a host that has no aliases too
        assert getattr(schema, "search_aliases", aliases[node_id]) == aliases[node_id]


def test_trainings_are_as_long_by_default_as_the_demo_s(run: Run, pack: Any) -> None:
    demo = importlib.import_module(f"{pack.__name__}.anomalydiffusion_core.training.config").DEMO
    for node_id, steps in (("TrainAnomaly", demo.defects.steps), ("TrainMasks", demo.masks.steps)):
        schema = run.nodes[f"ADiff_{node_id}"].GET_SCHEMA()  # type: ignore[attr-defined]
        assert [entry.default for entry in schema.inputs if entry.id == "steps"] == [steps]


def test_the_demo_set_is_drawn_at_another_size_beside_the_usual_one(run: Run) -> None:
    dataset, normals, _ = run("ADiff_LoadDataset", **DEMO, normal_count=1, demo_size=64)
    assert normals.shape == (1, 64, 64, 3) and dataset.root.name == "anomalydiffusion_demo_64"


def test_the_sampler_changes_pixels_inside_the_masks_alone(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    images, given, latent, plain = generated(masks)
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
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
    sampler: str,
) -> None:
    def pictures(chosen: list[int], seed: int = 1) -> Tensor:
        return generated(masks[chosen], trained.normals[chosen], sampler_name=sampler, steps=3, seed=seed)[0]

    together, outside = pictures([0, 1]), masks[:2] == 0
    assert torch.equal(together[outside], trained.normals[:2][outside])
    for other in (pictures([0])[0] - together[0], pictures([2, 1])[1] - together[1]):
        assert float(other.abs().max()) <= 1.01 / 255
    assert float((pictures([0, 1], seed=2) - together).abs().max()) > 5 / 255


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_noise_of_an_image_comes_from_its_own_generator(run: Run, trained: Any, sampler: str) -> None:
    from adiff_pack.nodes.host.sampling import (  # type: ignore[import-not-found]
        SamplerSettings,
        sample_images,
    )

    learned = {"embeddings": trained.embeddings, "defect_type": ""}
    positive, negative = run("ADiff_MaskConditioning", **trained.base, **learned)
    settings = SamplerSettings(0, 3, 2.0, sampler, "normal")
    photo, noise_mask = torch.ones(1, 8, 8, 8), torch.ones(1, 1, 8, 8)
    noise_mask[..., :4] = 0

    def latents(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.inference_mode():
            return sample_images(
                trained.base["model"],
                generators,
                settings,
                positive,
                negative=negative,
                latent=photo.repeat(len(seeds), 1, 1, 1),
                noise_mask=noise_mask.repeat(len(seeds), 1, 1, 1),
            )

    together = latents(1, 2)
    torch.testing.assert_close(together, torch.cat([latents(1), latents(2)]), rtol=1e-3, atol=1e-3)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_odd_sizes_are_padded_and_cut_again(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    images, _, _, maps = generated(masks[:, :123, :118], trained.normals[:, :123, :118], attention_maps=True)
    assert images.shape == (3, 123, 118, 3)
    assert maps.shape == (3, 123, 4 * 118, 3)


@pytest.mark.parametrize("mode", ["adaptive", "off"])
def test_attention_maps_lie_over_the_photos_and_change_nothing_of_the_pictures(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
    mode: str,
) -> None:
    images, _, _, maps = generated(masks, mode=mode, attention_maps=True)
    assert torch.equal(images, generated(masks, mode=mode)[0])
    assert maps.shape == (3, 128, 4 * 128, 3)
    ranges = maps.unflatten(2, (4, 128)).transpose(1, 2)
    shown = (ranges - trained.normals[:, None]).abs().amax((2, 3, 4))
    assert (shown > 20 / 255).any(1).all()  # one scale for all ranges: each photo has its hottest place
    assert not torch.equal(ranges[:, 0], ranges[:, 3])


def test_reweighting_can_act_in_a_part_of_the_steps_and_up_to_a_weight(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    default, whole, late, weak, never = (
        generated(masks, **changed)[0]
        for changed in (
            {},
            {"start": 0.0, "end": 1.0, "maximum": 3.0},
            {"start": 0.5},
            {"maximum": 1.0},
            {"mode": "off"},
        )
    )
    assert torch.equal(default, whole)
    alike = partial(torch.allclose, rtol=0, atol=1.5 / 255)  # rounded to another grey level at most
    assert not alike(late, whole) and not alike(late, never)
    assert alike(weak, never), "weights of 1 are the plain attention, but for rounding"
    with pytest.raises(ValueError, match="AAR starts at 0.5 and ends at 0.5"):
        generated(masks, start=0.5, end=0.5)


def test_mode_paper_sees_through_a_vae_of_its_own_where_one_is_given(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
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
        generated(masks, mode="paper", **vae)[0]
        for vae in ({}, {"aar_vae": trained.base["vae"]}, {"aar_vae": eight})
    )
    assert torch.equal(own, same) and not torch.equal(own, other)
    adaptive = generated(masks)[0]
    assert torch.equal(adaptive, generated(masks, aar_vae=eight)[0])
    with pytest.raises(ValueError, match="re-weighting reads 4 latent channels, the model has 8: connect"):
        generated(masks, mode="paper", aar_vae=four)


def test_photos_are_taken_in_turn_where_there_are_more_masks(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    outside = masks[..., None] == 0
    for count in (1, 2):
        photos = trained.normals[:count]
        images = generated(masks, photos)[0]
        assert torch.equal(images * outside, photos[[0, 1 % count, 0]] * outside)


def test_what_does_not_fit_is_refused_in_a_sentence(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    with pytest.raises(ValueError, match="The mask is 64x64, the photo 128x128: insert Place Masks"):
        generated(masks, mask=torch.ones(3, 64, 64))
    with pytest.raises(ValueError, match="There are 2 masks for 3 photos: give one for each"):
        generated(masks, mask=masks[:2])
    with pytest.raises(ValueError, match="Mask 0 is empty"):
        generated(torch.zeros_like(masks))
    with pytest.raises(ValueError, match="This conditioning has no learned vectors"):
        clip = trained.base["clip"]
        plain = [[clip.encode("a photo"), {}]]
        generated(masks, positive=plain)


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
    for outside in ("../../../elsewhere", "../input/elsewhere"):
        with pytest.raises(ValueError, match="lies outside ComfyUI's output folder"):
            run("ADiff_SaveDataset", **{**inputs, "folder": outside})
    with pytest.raises(ValueError, match="The masks are 64x64, the images 128x128: connect the masks"):
        run("ADiff_SaveDataset", **{**inputs, "masks": torch.ones(3, 64, 64)})
    with pytest.raises(ValueError, match="Mask 0 is empty"):
        run("ADiff_SaveDataset", **{**inputs, "masks": torch.zeros(3, 128, 128)})
    assert len(list((Path(path) / "leather/test/ink").iterdir())) == 6


def test_a_training_shows_its_loss_and_what_it_learned_and_learns_the_same_unseen(
    run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils  # type: ignore[import-not-found]

    seen: list[tuple[int, Any]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kw: seen.append((args[0], args[2])))
    inputs = {**trained.base, "dataset": trained.dataset, "batch_size": 2, "share": 0.6, "seed": 0}
    learned = []
    for every in (5, 0):
        inputs["preview_every"] = every
        learned.append(run("ADiff_TrainAnomaly", **inputs, steps=12, size=128, tokens=2)[0])
        for kept in (run.root / "output/anomalydiffusion/trained").iterdir():  # type: ignore[attr-defined]
            kept.unlink()
    first, second = (x.anomaly["leather/ink"]["clip_l"] for x in learned)
    assert torch.equal(first, second)
    pictures = [(step, picture[1]) for step, picture in seen if picture]
    assert [step for step, _ in pictures] == [10, 12, 10, 12]
    # the words and the curve, and below them two rows of two views where there are previews
    sizes = [picture.size for _, picture in pictures]
    assert sizes[0] == sizes[1] and sizes[2] == sizes[3] and {width for width, _ in sizes} == {512}
    row = (sizes[0][1] - sizes[2][1]) // 2
    assert row > 256
    picture = np.asarray(pictures[1][1]).astype(float)
    real, redrawn = picture[-2 * row : -row], picture[-row:]
    assert 1 < np.abs(real - redrawn).mean() < 60  # the same photos, other defects in them


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
