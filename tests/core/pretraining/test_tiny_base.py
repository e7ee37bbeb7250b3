"""Guards pretraining/tiny_base.py: a whole pre-training, shortened."""

from dataclasses import replace

import torch
from PIL import Image
from safetensors.torch import load_file

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.pretraining import demo, tiny_base
from anomalydiffusion_core.pretraining.recipe import Recipe
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig


def test_pretraining_writes_a_base_that_loads_resumes_and_carries_a_spatial_encoder(tmp_path, monkeypatch):
    recipe = Recipe(
        minutes=0.02, scenes=24, large_scenes=4, batch_size=4, place_minutes=0.005, place_scenes=16,
        autoencoder_scenes=32, autoencoder_steps=4,
    )  # fmt: skip
    monkeypatch.setattr(tiny_base, "sample_sheet", lambda base, size: Image.new("RGB", (8, 8)))
    defects, masks = DefectConfig(steps=2, views_per_pair=1), MaskEmbeddingConfig(steps=2, views_per_pair=1)
    monkeypatch.setattr(demo, "DEMO", replace(demo.DEMO, defects=defects, masks=masks))
    path = tiny_base.pretrain(recipe, tmp_path / "a")
    first = architecture.load_tiny_base(path)
    resumed = tiny_base.pretrain(recipe, tmp_path / "b", resume=path)
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
