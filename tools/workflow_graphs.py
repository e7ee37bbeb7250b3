"""The pack's workflows as columns of nodes, for `workflow_layout`; their names give their order."""

from __future__ import annotations

from workflow_layout import Node, Out, Step

PICTURE, PAIRS, CARD = 220, 500, 105  # pixels kept free for pictures of a result, of pairs, of text
SMALL, NARROW, WIDE = 205, 220, 430  # widths of columns
FIRST_TYPE = "leather/burn"
BASE = {"model": Out("base", "MODEL"), "clip": Out("base", "CLIP"), "vae": Out("base", "VAE")}
LEARNED = {"embeddings": Out("learned", "embeddings")}
SAMPLER = {"steps": 25, "cfg": 2.5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
TYPE = {"defect_type": Out("type", "STRING")}


def _photos(title: str, **inputs: object) -> Node:
    return Node("ADiff_LoadDataset", inputs, title, CARD)


def _sources(photos: Node, note: str) -> Step:
    """Base, embeddings, photos and the defect's type, for graphs that use what was learned."""
    nodes = {
        "base": Node("ADiff_LoadTinyBase"),
        "learned": Node("ADiff_LoadEmbeddings"),
        "type": Node("PrimitiveString", {"value": FIRST_TYPE}, "Defect type"),
        "photos": photos,
    }
    return Step("1 · Photos and defect", nodes, note, 230)


def _masks(photos: Out, count: int, title: str = "2 · Where") -> Step:
    masks = {**BASE, **LEARNED, **TYPE, "count": count, "normals": photos}
    return Step(title, {"masks": Node("ADiff_GenerateMasks", masks, picture=PICTURE)}, width=NARROW)


def _defects(photos: Out, masks: dict[str, Out], number: int) -> list[Step]:
    """Regions of photos, defects in them, and the photos with the defects."""
    crops = Node("ADiff_CropRegions", {"images": photos, **masks, "canvas": 0, **LEARNED}, picture=PICTURE)
    cropped = Out("crops", "crop masks")
    words = Node("ADiff_AnomalyConditioning", {**BASE, **LEARNED, **TYPE, "mask": cropped})
    sampler = {
        **{name: BASE[name] for name in ("model", "vae")},
        **{name: Out("words", name) for name in ("positive", "negative")},
        "image": Out("crops", "crops"),
        "mask": cropped,
    }
    stitched = {"crops": Out("sampler", "images"), "regions": Out("crops", "regions")}
    return [
        Step(f"{number} · Cut out", {"crops": crops}, width=SMALL),
        Step(
            f"{number + 1} · Put the defect in",
            {"words": words, "sampler": Node("ADiff_KSampler", sampler, picture=PICTURE)},
            width=NARROW,
        ),
        Step(
            f"{number + 2} · Put back",
            {"stitched": Node("ADiff_StitchRegions", stitched, picture=PICTURE)},
            width=SMALL,
        ),
    ]


def _kept(photos: Out, folder: str, number: int) -> list[Step]:
    """What passes the gate, saved as a dataset."""
    pairs = {"images": Out("stitched", "images"), "masks": Out("stitched", "masks")}
    gate = {**pairs, "normals": photos, "vae": BASE["vae"], **LEARNED, **TYPE}
    names = {"images": "images", "masks": "masks", "normals": "normals"}
    accepted = {name: Out("gate", f"accepted {output}") for name, output in names.items()}
    saved = {**accepted, "scores": Out("gate", "scores"), **LEARNED, **TYPE, "folder": folder}
    return [
        Step(f"{number} · Check", {"gate": Node("ADiff_QualityGate", gate, picture=300)}, width=275),
        Step(
            f"{number + 1} · Keep", {"saved": Node("ADiff_SaveDataset", saved, picture=PICTURE)}, width=NARROW
        ),
    ]


def _your_photos() -> list[Step]:
    data = {**BASE, "dataset": Out("photos", "dataset")}
    learned, tuned = ({"embeddings": Out(node, "embeddings")} for node in ("masks", "tuned"))
    return [
        Step(
            "1 · Your photos",
            {
                "base": Node("ADiff_LoadTinyBase"),
                "photos": Node("ADiff_LoadDataset", {"normal_count": 0}, picture=CARD + 45),  # seven lines
            },
            note="1. **source**: folder; and **folder**: yours\n2. **checkpoint**: Stable Diffusion\n"
            "3. **count**: pairs of each defect",
            width=280,
        ),
        Step(
            "2 · Learn the defects", {"defects": Node("ADiff_TrainAnomaly", data, picture=PICTURE)}, width=280
        ),
        Step(
            "3 · Learn their masks",
            {
                "masks": Node(
                    "ADiff_TrainMasks", {**data, "embeddings": Out("defects", "embeddings")}, picture=PICTURE
                )
            },
            width=280,
        ),
        Step(
            "4 · Find settings, keep",
            {
                "tuned": Node("ADiff_TuneSettings", {**data, **learned, "tries": 4}, picture=PICTURE),
                "saved": Node("ADiff_SaveEmbeddings", tuned, picture=CARD + 45),
            },
            width=280,
        ),
        Step(
            "5 · Make pairs",
            {"pairs": Node("ADiff_GeneratePairs", {**data, **tuned, "count": 8}, picture=PAIRS)},
            width=WIDE,
        ),
    ]


def _train() -> list[Step]:
    data = {**BASE, "dataset": Out("photos", "dataset")}
    return [
        Step(
            "1 · What to learn",
            {
                "base": Node("ADiff_LoadTinyBase"),
                "photos": Node(
                    "ADiff_LoadDataset", {"normal_count": 0}, "Defect photos and their masks", CARD
                ),
            },
            note="1. **source**: folder; and **folder**: yours\n2. **checkpoint**: Stable Diffusion\n"
            "3. **steps**: 500 or more",
        ),
        Step("2 · Defects", {"defects": Node("ADiff_TrainAnomaly", data, picture=PICTURE)}),
        Step(
            "3 · Masks",
            {
                "masks": Node(
                    "ADiff_TrainMasks", {**data, "embeddings": Out("defects", "embeddings")}, picture=PICTURE
                )
            },
        ),
        Step(
            "4 · Settings",
            {
                "tuned": Node(
                    "ADiff_TuneSettings", {**data, "embeddings": Out("masks", "embeddings")}, picture=PICTURE
                )
            },
        ),
        Step(
            "5 · Keep",
            {
                "saved": Node(
                    "ADiff_SaveEmbeddings", {"embeddings": Out("tuned", "embeddings")}, picture=PICTURE
                )
            },
        ),
    ]


def _mask_sources() -> list[Step]:
    photos, invented = Out("photos", "normals"), Out("masks", "masks")
    mixed = {**TYPE, **LEARNED, "generated_masks": invented, "few_shot": Out("photos", "dataset")}
    mixed |= {"procedural": 0.5, "count": 8}
    placed = {"masks": Out("mixed", "masks"), "normals": photos, **LEARNED, **TYPE}
    return [
        _sources(
            _photos("Photos to place masks on"),
            "1. **name**: what 2_train saved\n2. **source**: folder; and **folder**: yours\n"
            "3. **Defect type**: one of yours",
        ),
        _masks(photos, 8, "2 · Invent"),
        Step("3 · Mix", {"mixed": Node("ADiff_MixMasks", mixed, picture=PICTURE)}),
        Step("4 · Place", {"placed": Node("ADiff_PlaceMasks", placed, picture=PICTURE)}),
        Step(
            "5 · Keep",
            {
                "pictures": Node("MaskToImage", {"mask": Out("placed", "masks")}),
                "saved": Node(
                    "SaveImage",
                    {"images": Out("pictures", "IMAGE"), "filename_prefix": "anomalydiffusion/masks"},
                    picture=PICTURE,
                ),
            },
        ),
    ]


def _draw_a_mask() -> list[Step]:
    photo = Out("photo", "IMAGE")
    return [
        Step(
            "1 · Photo and mask",
            {
                "base": Node("ADiff_LoadTinyBase"),
                "learned": Node("ADiff_LoadEmbeddings"),
                "type": Node("PrimitiveString", {"value": FIRST_TYPE}, "Defect type"),
                "photo": Node("LoadImage", {"image": "example.png"}, "Photo of a good part", picture=PICTURE),
            },
            note="1. **Photo**: upload yours\n2. **Draw**: right-click it, *Open in MaskEditor*\n"
            "3. **name**: what 2_train saved; **Defect type**",
            width=230,
        ),
        _masks(photo, 1, "2 · Until you draw"),
        *_defects(photo, {"masks": Out("photo", "MASK"), "undrawn": Out("masks", "masks")}, 3),
        *_kept(photo, "anomalydiffusion/drawn", 6),
    ]


def _evaluate() -> list[Step]:
    photos, real = Out("photos", "normals"), {"dataset": Out("photos", "dataset"), "category": "leather"}
    pairs = {"images": Out("stitched", "images"), "masks": Out("stitched", "masks"), "normals": photos}
    return [
        _sources(
            _photos("Real dataset", category="leather", defects="burn", normal_count=16),
            "1. **name**: what 2_train saved\n2. **source**, **folder**, **defects**: yours\n"
            "3. **Defect type**, and **category** in three nodes",
        ),
        _masks(photos, 16),
        *_defects(photos, {"masks": Out("masks", "masks")}, 3),
        Step(
            "6 · Do they help?",
            {
                "localizer": Node("ADiff_TrainLocalizer", pairs),
                "quality": Node(
                    "ADiff_GenerationMetrics", {**pairs, "vae": BASE["vae"], **real}, picture=PICTURE
                ),
            },
            width=NARROW,
        ),
        Step(
            "7 · On real photos",
            {
                "measured": Node(
                    "ADiff_EvaluateLocalizer",
                    {"localizer": Out("localizer", "localizer"), **real},
                    picture=400,
                )
            },
            width=300,
        ),
    ]


def _reweighting_and_lora() -> list[Step]:
    photos, masks = Out("photos", "normals"), Out("masks", "masks")
    patched = {"model": Out("lora", "MODEL"), "positive": Out("words", "positive")}
    sampled = {
        "model": Out("reweighted", "MODEL"),
        "positive": Out("words", "positive"),
        "negative": Out("words", "negative"),
        "latent_image": Out("masked", "LATENT"),
    }
    normals = _photos("Normal photos", normal_count=4)
    return [
        _sources(
            normals,
            "1. **name**, **Defect type**, **folder**: yours\n2. **lora_name**, then Ctrl+B on it\n"
            "3. **strength** of the re-weighting",
        ),
        Step(
            "2 · LoRA, masks, latents",
            {
                "lora": Node(
                    "LoraLoaderModelOnly",
                    {"model": BASE["model"], "lora_name": "choose a LoRA"},
                    "LoRA (bypassed: Ctrl+B)",
                    bypassed=True,
                ),
                "latents": Node("VAEEncode", {"pixels": photos, "vae": BASE["vae"]}),
                "masks": Node(
                    "ADiff_GenerateMasks",
                    {**BASE, **LEARNED, **TYPE, "count": 4, "normals": photos},
                    picture=PICTURE,
                ),
            },
            width=NARROW,
        ),
        Step(
            "3 · Words and mask",
            {
                "words": Node("ADiff_AnomalyConditioning", {**BASE, **LEARNED, **TYPE, "mask": masks}),
                "masked": Node("SetLatentNoiseMask", {"samples": Out("latents", "LATENT"), "mask": masks}),
            },
            width=NARROW,
        ),
        Step(
            "4 · Re-weight, sample",
            {
                "reweighted": Node("ADiff_AttentionReweighting", patched),
                "sampled": Node("KSampler", {**sampled, **SAMPLER}, picture=PICTURE),
            },
            width=NARROW,
        ),
        Step(
            "5 · Keep",
            {
                "decoded": Node("VAEDecode", {"samples": Out("sampled", "LATENT"), "vae": BASE["vae"]}),
                "saved": Node(
                    "SaveImage",
                    {"images": Out("decoded", "IMAGE"), "filename_prefix": "anomalydiffusion/plain_ksampler"},
                    picture=2 * PICTURE,
                ),
            },
        ),
    ]


def _large_photos() -> list[Step]:
    photos = Out("photos", "normals")
    return [
        _sources(
            _photos("Large normal photos", demo_size=512, normal_count=4),
            "1. **name**: what 2_train saved\n2. **source**: folder; and **folder**: yours\n"
            "3. **Defect type**: one of yours",
        ),
        _masks(photos, 4),
        *_defects(photos, {"masks": Out("masks", "masks")}, 3),
        *_kept(photos, "anomalydiffusion/large_photos", 6),
    ]


GRAPHS: dict[str, list[Step]] = {
    "1_your_photos": _your_photos(),
    "2_train": _train(),
    "3_masks": _mask_sources(),
    "4_draw_a_mask": _draw_a_mask(),
    "5_evaluate": _evaluate(),
    "6_reweighting_and_lora": _reweighting_and_lora(),
    "7_large_photos": _large_photos(),
}
