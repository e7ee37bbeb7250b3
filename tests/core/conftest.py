"""What the core's tests share: a tiny deterministic base, a model with random tokens, a dataset on disk."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.bases import diffusers_model
from anomalydiffusion_core.bases.diffusers_model import Codec, DiffusersModel
from anomalydiffusion_core.bases.tiny.architecture import load_tokenizer
from anomalydiffusion_core.method.artifact import save_artifact
from anomalydiffusion_core.method.embeddings import Learned, Placement, Pose
from anomalydiffusion_core.method.latent_diffusion import PLACEHOLDER, Context, Fingerprint, NoiseSchedule
from anomalydiffusion_core.method.reweighting import AttentionWeights, reweighted_attention
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES

SHARED = Path(__file__).parents[2].parent / "shared"


class FakeBase:
    """A tiny `LatentDiffusion`: pooling codec, linear text encoder, one cross-attention layer, fixed weights.

    Tokens: `<start>`, the words (one token each), then `<end>` up to 32 positions.
    """

    latent_channels, factor, native_size, length = 4, 8, 64, 32
    WIDTH, ATTENTION, ROWS = 16, 8, 97
    dtype = torch.float32

    def __init__(
        self, prediction: str = "epsilon", family: str = "fake", weights: str = "0123456789abcdef"
    ) -> None:
        random = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random) / shape[-1] ** 0.5

        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.schedule = NoiseSchedule((1 - betas).cumprod(0).float(), prediction)  # type: ignore[arg-type]
        self.fingerprint = Fingerprint(family, weights)
        self.token_widths = {"clip_l": self.WIDTH}
        self.device = torch.device("cpu")
        self.table = 0.5 * weight(self.ROWS, self.WIDTH)
        self.positions = 0.1 * weight(self.length, self.WIDTH)
        self.here, self.before = weight(self.WIDTH, self.WIDTH), weight(self.WIDTH, self.WIDTH)
        self.of_latent, self.of_time = weight(4, 4), weight(4, 2)
        self.to_q, self.to_k = weight(self.ATTENTION, 4), weight(self.ATTENTION, self.WIDTH)
        self.to_v, self.to_out = weight(self.ATTENTION, self.WIDTH), weight(4, self.ATTENTION)
        self.active: AttentionWeights | None = None
        self.adapter: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = SpatialEncoderConfig(self.WIDTH, 4, "resnet10", mask_size=64, pyramid_channels=8, grid=4)
            self.spatial_encoders = {"clip_l": SpatialEncoder(config).eval()}

    def save_memory(self, **how: bool) -> None:
        self.memory_saved = how

    def to(self, device: str) -> None:
        assert device == "cpu"

    def release_codec(self) -> None:
        self.codec_released = True

    def adapt(self, adapter: dict[str, Tensor]) -> None:
        assert not adapter

    def encode(self, image: Tensor) -> Tensor:
        pooled = F.avg_pool2d(image, self.factor)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        return F.interpolate(latent[:, :3], scale_factor=self.factor, mode="nearest")

    def _rows(self, text: str) -> list[Tensor]:
        return [self.table[2 + zlib.crc32(word.encode()) % (self.ROWS - 2)] for word in text.split()]

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        return {"clip_l": torch.stack(self._rows(words))}

    def encode_prompts(self, prompts: list[str], inserted: dict[str, Tensor] | None = None) -> Context:
        vectors = None if inserted is None else inserted["clip_l"]
        rows, starts = [], []
        for number, prompt in enumerate(prompts):
            before, placeholder, after = prompt.partition(PLACEHOLDER)
            if bool(placeholder) != (vectors is not None):
                raise ValueError(
                    f"Prompt {prompt!r} must hold {PLACEHOLDER} exactly when vectors are inserted."
                )
            head = [self.table[0], *self._rows(before)]
            if vectors is not None and len(head) + vectors.shape[1] > self.length - 1:
                raise ValueError(f"Prompt {prompt!r} leaves no room for {vectors.shape[1]} vectors.")
            starts.append(len(head))
            body = [*head, *([] if vectors is None else vectors[number]), *self._rows(after)][
                : self.length - 1
            ]
            rows.append(torch.stack(body + [self.table[1]] * (self.length - len(body))))
        x = torch.stack(rows) + self.positions
        mean_so_far = x.cumsum(1) / torch.arange(1, self.length + 1)[:, None]
        hidden = x @ self.here.T + mean_so_far @ self.before.T
        count = 0 if vectors is None else vectors.shape[1]
        return Context(hidden, tuple(slice(start, start + count) for start in starts))

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        height, width = noisy.shape[-2:]
        angle = t.float()[:, None] / 1000 * torch.tensor([1.0, 7.0])
        # BCHW -> B(HW)C
        x = noisy.flatten(2).transpose(1, 2) + (angle.sin() @ self.of_time.T)[:, None]
        query, key, value = (
            (x @ self.to_q.T)[:, None],
            (context.hidden @ self.to_k.T)[:, None],
            (context.hidden @ self.to_v.T)[:, None],
        )
        out = self._attend(query, key, value)[:, 0]
        eps = x @ self.of_latent.T + out @ self.to_out.T
        # B(HW)C -> BCHW
        return eps.transpose(1, 2).reshape(-1, 4, height, width)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = self.active
        if weights is not None and weights.maps is not None:
            weights.maps.record(query, key, weights.columns)
        if weights is None or weights.w is None:
            return F.scaled_dot_product_attention(query, key, value)
        return reweighted_attention(query, key, value, weights)

    @contextmanager
    def reweighted(self, weights: AttentionWeights) -> Iterator[None]:
        self.active = weights
        try:
            yield
        finally:
            self.active = None


@pytest.fixture
def fake_base() -> FakeBase:
    """A fresh tiny base: factor 8, 4 latent channels, token width 16, 32 positions, a tiny E."""
    return FakeBase()


@pytest.fixture
def make_fake_base() -> type[FakeBase]:
    """The class itself, for other bases: `make_fake_base(prediction="v_prediction", family="other")`."""
    return FakeBase


@pytest.fixture
def calm_base(fake_base: FakeBase) -> FakeBase:
    """A base whose estimate of z0 stays small: what its tokens add is not cut off at black or white."""
    fake_base.of_latent, fake_base.of_time = torch.eye(4), torch.zeros(4, 2)
    fake_base.to_out = 0.03 * fake_base.to_out
    return fake_base


@pytest.fixture
def learned(fake_base: FakeBase) -> Learned:
    """A model of `fake_base` with types thing/scratch and thing/stain: e_a (3,16), e_m (2,16), and E."""
    random = torch.Generator().manual_seed(1)
    types = ("thing/scratch", "thing/stain")
    return Learned(
        fake_base.fingerprint,
        64,
        PHOTO_TEMPLATES[:2],
        anomaly={name: {"clip_l": torch.randn((3, 16), generator=random)} for name in types},
        mask={name: {"clip_l": torch.randn((2, 16), generator=random)} for name in types},
        spatial_encoders=fake_base.spatial_encoders,
        training={
            "anomaly": {
                "config": {"steps": 3},
                "steps": 3,
                "loss": [3.0, 2.0, 1.0],
                "validation": [(0, 2.0), (3, 1.0)],
            }
        },
        dataset_fingerprint="feedfacecafebeef",
        mask_areas={"thing/scratch": 0.0125, "thing/stain": 0.25},
        mask_placements={
            "thing/dent": [
                Placement(0.5, 0.1, None),
                Placement(0.25, 0.02, (0.75, 0.5), 0.5, Pose((0.9, -0.1), None, 0.125)),
                Placement(0.25, 0.02, (0.75, 0.5), 1.0, Pose((-0.5, 0.25), 1.25, 0.25)),
            ]
        },
        trained_on={"thing/scratch": ["0123456789abcdef"]},
    )


@pytest.fixture
def write_image() -> Callable[[Path, np.ndarray], Path]:
    """Writes (H,W) or (H,W,C) uint8 pixels to a path, making its folders; returns the path."""

    def write(path: Path, pixels: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def dataset(tmp_path: Path, write_image: Callable[[Path, np.ndarray], Path]) -> Path:
    """An MVTec tree `data/thing`: 3 normal photos, 4 scratches and 3 stains with masks, RGB 64 x 64."""
    random = np.random.default_rng(0)
    root = tmp_path / "data"

    def surface() -> np.ndarray:
        return random.integers(90, 160, (64, 64, 3), dtype=np.uint8)

    for number in range(3):
        write_image(root / "thing/train/good" / f"{number:03d}.png", surface())
    for defect, count in (("scratch", 4), ("stain", 3)):
        for number in range(count):
            pixels, mask = surface(), np.zeros((64, 64), np.uint8)
            row, column = 10 + 8 * number, 14 + 6 * number
            mask[row : row + (3 if defect == "scratch" else 12), column : column + 14] = 255
            pixels[mask > 0] = (200, 30, 30)
            write_image(root / "thing/test" / defect / f"{number:03d}.png", pixels)
            write_image(root / "thing/ground_truth" / defect / f"{number:03d}_mask.png", mask)
    return root


@pytest.fixture
def base(make_fake_base: type[FakeBase], monkeypatch: pytest.MonkeyPatch) -> FakeBase:
    """The base that the commands load as `tiny`; other names are really looked for."""
    fake, load = make_fake_base(family="tiny"), diffusers_model.load_base
    monkeypatch.setattr(
        diffusers_model,
        "load_base",
        lambda name, device="cpu": fake if name == "tiny" else load(name, device),
    )
    return fake


@pytest.fixture
def trained(learned: Learned, base: FakeBase, tmp_path: Path) -> Path:
    """An artifact of `base` with types thing/scratch and thing/stain."""
    learned.base = base.fingerprint
    save_artifact(learned, tmp_path / "thing.safetensors")
    return tmp_path / "thing.safetensors"


@pytest.fixture
def shared_data() -> Path:
    """The real photos beside the checkout; tests that ask for them are skipped where there are none."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real photos are not at hand: ../shared/data is absent")
    return SHARED / "data"


@pytest.fixture
def taesd() -> Path:
    """The published tiny autoencoder of Stable Diffusion 1.x; tests that ask for it are skipped without."""
    if not (SHARED / "weights" / "taesd").is_dir():
        pytest.skip("the tiny autoencoder is not at hand: ../shared/weights/taesd is absent")
    return SHARED / "weights" / "taesd"


@pytest.fixture
def small_base() -> DiffusersModel:
    """A small random base of diffusers' modules: two U-Net levels, CLIP's words at width 16, pooling codec.

    Attention and every bias are raised well above their initial size, so that what they do shows.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),
        )
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                scale = 0.3 if ".attn2." in name else 0.02
                parameter.add_(scale * torch.randn_like(parameter))
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=49407,
            )
        )
        codec = Codec(
            torch.nn.Identity(),
            lambda image: F.avg_pool2d(torch.cat([image, image.mean(1, keepdim=True)], 1), 8),
            lambda latent: F.interpolate(latent[:, :3], scale_factor=8.0),
            8,
        )
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        schedule = NoiseSchedule((1 - betas).cumprod(0).float(), "epsilon")
        return DiffusersModel(
            "small", unet, text_encoder, load_tokenizer(), codec=codec, schedule=schedule, native_size=64
        )


@pytest.fixture
def lora_base(small_base: DiffusersModel) -> DiffusersModel:
    """A copy of the small base, in float32, to be adapted."""
    base = copy.deepcopy(small_base)
    base.unet.float().disable_gradient_checkpointing()
    base.fingerprint = Fingerprint("tiny", "0123456789abcdef")
    return base
