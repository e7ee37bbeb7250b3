"""Whether the pairs help a detector: their own measures, a localiser and a classifier, on real photos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io, ui

from .inputs import seed_input
from .sockets import FewShotDataset, Localizer

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor

    from ..anomalydiffusion_core.dataset.layout import Dataset
    from ..anomalydiffusion_core.evaluation.classifier import ClassifierConfig
    from ..anomalydiffusion_core.evaluation.localizer import Localizer as LocalizerNetwork
    from ..anomalydiffusion_core.evaluation.localizer import LocalizerConfig

CATEGORY = "AnomalyDiffusion/evaluation"


def real_inputs() -> list[io.Input]:
    """The real dataset, and which of its pairs only measure."""
    return [
        FewShotDataset.Input(
            "dataset",
            tooltip="The real one, from Load Few-Shot Dataset, with photos in train/good and test/good.",
        ),
        io.String.Input("category", default="", tooltip="Such as leather. Empty: the first one."),
        io.Float.Input(
            "share",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            tooltip="Share of each defect's pairs that trained the embeddings, as there; 0 = all but a few. "
            "Only the rest measures.",
        ),
    ]


def network_inputs(quick: LocalizerConfig | ClassifierConfig) -> list[io.Input]:
    """Size, steps and seed of a network that is trained here, by default those of `quick`."""
    return [
        io.Int.Input(
            "size", default=quick.size, min=32, max=1024, step=32, tooltip="Pixels per side; paper: 256."
        ),
        io.Int.Input("steps", default=quick.steps, min=1, max=1_000_000, tooltip="Training steps."),
        seed_input(changes=False),
    ]


class GenerationMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_GenerationMetrics",
            display_name="Generation Metrics",
            category=CATEGORY,
            description="Do the defects show, do they stay inside their masks, are they new? Fill, change "
            "outside, IoU of mask and change, and the share that copies a training defect.",
            inputs=[
                io.Image.Input("images", tooltip="Generated photos."),
                io.Mask.Input("masks", tooltip="Their masks."),
                io.Image.Input("normals", tooltip="The normal photos they were made from."),
                io.Vae.Input("vae", tooltip="To know the autoencoder's own noise."),
                *real_inputs(),
            ],
            outputs=[
                io.String.Output("report", display_name="report"),
                io.Float.Output("fill", display_name="fill", tooltip="Mean share of the mask that shows."),
                io.Float.Output("copies", display_name="copies", tooltip="Share of copied defects."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        normals: Tensor,
        vae: VAE,
        *,
        dataset: Dataset,
        category: str,
        share: float,
    ) -> io.NodeOutput:
        from .host.evaluation import generation_metrics, real_split
        from .pictures import card, shown

        split = real_split(dataset, category, share)
        report, fill, copies = generation_metrics(images, masks, normals, vae, split=split)
        below = shown([card("Generated pairs", report.splitlines())], report, cls)
        return io.NodeOutput(report, fill, copies, ui=below)


class TrainLocalizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.evaluation.localizer import QUICK

        return io.Schema(
            node_id="ADiff_TrainLocalizer",
            display_name="Train Localizer",
            category=CATEGORY,
            description="Trains the paper's U-Net to find the defects: on generated pairs and normal photos "
            "in equal parts, with focal loss.",
            inputs=[
                io.Image.Input("images", tooltip="Generated photos."),
                io.Mask.Input("masks", tooltip="Their masks."),
                io.Image.Input("normals", tooltip="Normal photos, of any number."),
                *network_inputs(QUICK),
                io.Int.Input(
                    "width",
                    default=QUICK.width,
                    min=2,
                    max=128,
                    tooltip="Channels of the first level; paper: 64.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=QUICK.rate,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    tooltip="Paper: 0.0001.",
                ),
            ],
            outputs=[Localizer.Output("localizer", display_name="localizer")],
        )

    @classmethod
    def execute(
        cls, images: Tensor, masks: Tensor, normals: Tensor, size: int, *, steps: int, seed: int, width: int,
        learning_rate: float,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.evaluation.localizer import LocalizerConfig
        from .host.evaluation import train_on_batch

        config = LocalizerConfig(size=size, width=width, steps=steps, rate=learning_rate, seed=seed)
        return io.NodeOutput((train_on_batch(images, masks, normals, config), size))


class EvaluateLocalizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_EvaluateLocalizer",
            display_name="Evaluate Localizer",
            category=CATEGORY,
            description="Measures a localiser on the real photos that trained nothing: AUROC, AP, F1-max and "
            "PRO of pixels, AUROC, AP and F1-max of photos; heat maps beside.",
            inputs=[Localizer.Input("localizer", tooltip="From Train Localizer."), *real_inputs()],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="Figures by defect, in percent."),
                io.Float.Output("pixel_ap", display_name="pixel AP", tooltip="Of all defects together."),
                io.Image.Output(
                    "heat_maps",
                    display_name="heat maps",
                    tooltip="Photo, truth and map of the first test photo of up to four defects.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, localizer: tuple[LocalizerNetwork, int], dataset: Dataset, category: str, share: float
    ) -> io.NodeOutput:
        from PIL import Image

        from .host.evaluation import evaluate, real_split
        from .host.pixels import pixels_of
        from .pictures import card, shown

        report, pixel_ap, picture = evaluate(*localizer, real_split(dataset, category, share))
        figures = card("On real photos, in percent", report.splitlines())
        below = shown([figures, Image.fromarray(pixels_of(picture)[0])], report, cls)
        return io.NodeOutput(report, pixel_ap, picture, ui=below)


class TrainClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.evaluation.classifier import QUICK_CLASSIFIER

        return io.Schema(
            node_id="ADiff_TrainClassifier",
            display_name="Train Classifier",
            category=CATEGORY,
            description="Trains a ResNet-34 to tell defect types apart on generated pairs, and tests it on "
            "the real photos that trained nothing.",
            inputs=[
                FewShotDataset.Input(
                    "generated", tooltip="A saved dataset, from Load Few-Shot Dataset (folder)."
                ),
                *real_inputs(),
                *network_inputs(QUICK_CLASSIFIER),
                io.Boolean.Input(
                    "pretrained",
                    default=False,
                    tooltip="Begin with ImageNet's weights, as the paper does; they are downloaded once.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="Accuracy and confusion matrix."),
                io.Float.Output("accuracy", display_name="accuracy"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, generated: Dataset, dataset: Dataset, category: str, share: float, *, size: int, steps: int,
        seed: int, pretrained: bool,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.evaluation.classifier import ClassifierConfig
        from .host.evaluation import real_split, train_and_test_classifier

        config = ClassifierConfig(size=size, steps=steps, pretrained=pretrained, seed=seed)
        split = real_split(dataset, category, share)
        report, accuracy = train_and_test_classifier(generated, split, config)
        return io.NodeOutput(report, accuracy, ui=ui.PreviewText(report))
