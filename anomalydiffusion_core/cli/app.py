"""The command line `anomalydiffusion`: every command is a file of its own beside this one."""

from __future__ import annotations

import typer

from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .generate import generate
from .masks import masks
from .pretrain_encoder import pretrain_encoder
from .pretrain_tiny import pretrain_tiny
from .queue import queue
from .report import report
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Few-shot anomaly image-mask pairs by latent diffusion. Start with: anomalydiffusion demo",
)

COMMANDS = {  # in the order of the help, each with an example
    demo: "demo --out demo-output",
    train: "train data/leather --out leather.safetensors",
    masks: "masks leather.safetensors --out masks --count 20",
    generate: "generate leather.safetensors data/leather --out generated --count 50",
    export: "export generated --format mvtec --out converted",
    report: "report generated --artifact leather.safetensors",
    evaluate: "evaluate generated --real data/leather --out evaluation --quick",
    queue: "queue workflows/7_large_photos.json --count 3 --set ADiff_KSampler.cfg=3",
    pretrain_encoder: "pretrain-encoder --base sd15.safetensors --out encoder.safetensors",
    pretrain_tiny: "pretrain-tiny --recipe cpu --out runs/tiny",
    doctor: "doctor",
}
for command, example in COMMANDS.items():
    app.command(epilog=f"Example: anomalydiffusion {example}")(command)
