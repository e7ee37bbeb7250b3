"""What a training shows in its node: the loss so far, and real views beside previews of what was learned."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...anomalydiffusion_core.gate.lettering import GAP, GROUND, LABEL, Paragraph, written
from ...anomalydiffusion_core.gate.pair_picture import stacked
from ...anomalydiffusion_core.training.history import History
from ...anomalydiffusion_core.training.stage import Monitor
from .base_model import ComfyModel
from .pixels import from_core, picture_image

CURVE_EVERY = 10  # steps
WIDTH, CURVE_HEIGHT = 512, 110
LARGEST_VIEW = (WIDTH - 3 * GAP) // 2  # pixels per side
LINE = (110, 190, 255)


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
            shown = self._picture(total)
            picture = ("JPEG", shown, max(shown.size))
        self.bar.update_absolute(done, total, picture)

    def _show(self, real: Tensor, sampled: Tensor) -> None:
        # the VAE would push the model that is being trained off a small GPU: colours do for now
        form = self.base.model.model.latent_format
        previewer = latent_preview.Latent2RGBPreviewer(
            form.latent_rgb_factors, getattr(form, "latent_rgb_factors_bias", None)
        )
        rows = [
            [
                previewer.decode_latent_to_preview(view[None])
                for view in self.base.model.model.process_latent_out(views)
            ]
            for views in (real, sampled)
        ]
        self.latents, self.strip = (real, sampled), views_picture(*rows)

    def result(self, text: str = "") -> Tensor:
        """The last picture (1,H,W,3) in [0,1], its views decoded by the VAE, with `text` below the loss."""
        if self.latents:
            rows = [[_view(view) for view in from_core(self.base.decode(x)).cpu()] for x in self.latents]
            self.strip = views_picture(*rows)
        return picture_image(self._picture(len(self.monitor.history.loss), text))

    def _picture(self, total: int, text: str = "") -> Image.Image:
        history = self.monitor.history
        words = [Paragraph(loss_in_words(history, total), LABEL), *([Paragraph(text, LABEL)] if text else [])]
        strip = [self.strip] if self.strip else []
        return stacked([written(words, WIDTH), loss_curve(history, total), *strip])


def _view(pixels: Tensor) -> Image.Image:
    """(H,W,3) in [0,1] as a picture."""
    return Image.fromarray((255 * pixels.clamp(0, 1) + 0.5).to(torch.uint8).numpy())


def views_picture(real: list[Image.Image], learned: list[Image.Image]) -> Image.Image:
    """Real views of each defect type, and below them those of what was learned; of one type side by side."""
    beside = len(real) == 1
    side = min(LARGEST_VIEW, (WIDTH - GAP * (len(real) + 1)) // len(real))
    rows = [_labelled(word, views, side) for word, views in (("real", real), ("learned", learned))]
    if not beside:
        return stacked(rows)
    both = Image.new("RGB", (WIDTH, rows[0].height), GROUND)
    for number, row in enumerate(rows):
        both.paste(row, (number * (side + GAP), 0))
    return both


def _labelled(word: str, views: list[Image.Image], side: int) -> Image.Image:
    """Views next to each other below a word."""
    row = Image.new("RGB", (WIDTH, side + GAP), GROUND)
    for number, view in enumerate(views):
        row.paste(
            view.convert("RGB").resize((side, side), Image.Resampling.BICUBIC),
            (GAP + number * (side + GAP), 0),
        )
    return stacked([written([Paragraph(word, LABEL)], WIDTH), row])


def loss_in_words(history: History, total: int) -> str:
    return (
        f"step {len(history.loss)} of {total}   loss {smoothed(history.loss)[-1]:.4f}   "
        f"gradient {history.gradient[-1]:.3f}   rate {100 * history.rate[-1]:.0f} %"
    )


def smoothed(losses: list[float]) -> list[float]:
    """Their running mean."""
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    return smooth


def loss_curve(history: History, total: int) -> Image.Image:
    """The losses so far, smoothed, on a time axis of `total` steps."""
    smooth = smoothed(history.loss)
    top = 1.1 * max(smooth)
    image = Image.new("RGB", (WIDTH, CURVE_HEIGHT), GROUND)
    points = [(WIDTH * i / max(1, total), CURVE_HEIGHT * (1 - x / top)) for i, x in enumerate(smooth)]
    if len(points) > 1:
        ImageDraw.Draw(image).line(points, fill=LINE, width=2)
    return image
