"""What a training shows in its node: the loss so far, and real views above previews of what was learned."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...anomalydiffusion_core.training.history import History
from ...anomalydiffusion_core.training.stage import Monitor
from .base_model import ComfyModel
from .pixels import from_core

CURVE_EVERY = 10  # steps
WIDTH, CURVE_HEIGHT = 512, 160
WORDS = 50  # pixels above the curve, for two lines of text
FONT = 13
GROUND, LINE, TEXT = (24, 26, 30), (110, 190, 255), (230, 230, 230)


class TrainingPreview:
    """ComfyUI's progress bar with a picture; also where a training can be cancelled."""

    def __init__(self, base: ComfyModel, steps: int, every: int) -> None:
        self.base, self.bar = base, comfy.utils.ProgressBar(steps)
        self.monitor = Monitor(every=every, show=self._show)
        self.latents: tuple[Tensor, Tensor] | None = None
        self.strip: Image.Image | None = None

    def on_stage(self, stage: str, done: int, total: int, note: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        losses = self.monitor.history.loss
        if not losses:  # views are being made
            return
        picture = None
        if done % CURVE_EVERY == 0 or done == total:
            picture = ("JPEG", stacked(loss_curve(self.monitor.history, total), self.strip), WIDTH)
        self.bar.update_absolute(done, total, picture)

    def _show(self, real: Tensor, sampled: Tensor) -> None:
        # the VAE would push the model that is being trained off a small GPU: colours do for now
        form = self.base.model.model.latent_format
        previewer = latent_preview.Latent2RGBPreviewer(
            form.latent_rgb_factors, getattr(form, "latent_rgb_factors_bias", None)
        )
        rows = [
            torch.cat(list(self.base.model.model.process_latent_out(x)), -1)[None] for x in (real, sampled)
        ]
        coloured = previewer.decode_latent_to_preview(torch.cat(rows, -2))
        self.latents, self.strip = (real, sampled), wide(coloured, Image.Resampling.NEAREST)

    def result(self, text: str = "") -> Tensor:
        """The last picture (1,H,W,3) in [0,1], its views decoded by the VAE, with a line of `text`."""
        history, strip = self.monitor.history, None
        if self.latents:
            rows = [torch.cat(list(from_core(self.base.decode(x)).cpu()), 1) for x in self.latents]
            pixels = (255 * torch.cat(rows).clamp(0, 1) + 0.5).to(torch.uint8).numpy()
            strip = wide(Image.fromarray(pixels), Image.Resampling.LANCZOS)
        curve = loss_curve(history, len(history.loss))
        ImageDraw.Draw(curve).text((8, 28), text, fill=TEXT, font_size=FONT)
        picture = stacked(curve, strip)
        content = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return content.view(1, picture.height, picture.width, 3).float() / 255


def wide(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
    """At the preview's width."""
    return picture.resize((WIDTH, max(1, picture.height * WIDTH // picture.width)), resampling)


def stacked(curve: Image.Image, strip: Image.Image | None) -> Image.Image:
    """Loss curve over a strip of views."""
    if strip is None:
        return curve
    picture = Image.new("RGB", (WIDTH, curve.height + strip.height))
    picture.paste(curve, (0, 0))
    picture.paste(strip, (0, curve.height))
    return picture


def loss_curve(history: History, total: int) -> Image.Image:
    """The losses so far, smoothed, on a time axis of `total` steps; the last gradient and rate in words."""
    losses = history.loss
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    top = 1.1 * max(smooth)
    image = Image.new("RGB", (WIDTH, CURVE_HEIGHT), GROUND)
    draw = ImageDraw.Draw(image)
    height = CURVE_HEIGHT - WORDS
    points = [(WIDTH * i / max(1, total), WORDS + height * (1 - x / top)) for i, x in enumerate(smooth)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    now = f"loss {smooth[-1]:.4f}   gradient {history.gradient[-1]:.3f}   rate {100 * history.rate[-1]:.0f} %"
    draw.text((8, 8), f"step {len(losses)} of {total}   {now}", fill=TEXT, font_size=FONT)
    return image
