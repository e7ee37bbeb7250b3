"""The command line `anomalydiffusion`: every command is a file of its own beside this one."""

from __future__ import annotations

import inspect
import io
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
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

USAGE_ERROR: Any = typer.BadParameter.__base__  # of which all are that options and arguments can have


class Commands(TyperGroup):
    """The commands, which are told what was typed, and whose misuse is told in one line."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file on Windows knows few characters
                stream.reconfigure(errors="backslashreplace")
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, *more, **{**settings, "standalone_mode": False, "obj": given})
        except USAGE_ERROR as error:
            command = f"{error.ctx.info_name} " if error.ctx and error.ctx.parent else ""
            words = " ".join(error.format_message().split()).rstrip(".?")
            print(f"error: {words}. See: anomalydiffusion {command}--help", file=sys.stderr)
            code = 2
        sys.exit(code)


class Command(TyperCommand):
    """A command whose options are numbers where they should be."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            if isinstance(value, float) and math.isnan(value):
                raise typer.BadParameter("nan is no number", ctx, param_hint=f"'--{name.replace('_', '-')}'")
        return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"anomalydiffusion {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with: anomalydiffusion demo")
def anomalydiffusion(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and end.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Turns a handful of defect photos with masks, and photos of good parts, into as many realistic defect
    photos with pixel-exact masks as a detector needs.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


JOB, COMFYUI, MODELS, MACHINE = "From photos to pairs", "ComfyUI", "Base models", "This machine"
COMMANDS = {  # in the order of the help, each with its group and an example
    demo: (JOB, "demo --out demo-output"),
    train: (JOB, "train data/leather --out leather.safetensors"),
    masks: (JOB, "masks leather.safetensors --out masks --count 20"),
    generate: (JOB, "generate leather.safetensors data/leather --out generated --count 50"),
    report: (JOB, "report generated --artifact leather.safetensors"),
    export: (JOB, "export generated --format mvtec --out converted"),
    evaluate: (JOB, "evaluate generated --real data/leather --out evaluation --quick"),
    queue: (COMFYUI, "queue workflows/7_large_photos.json --count 3 --set ADiff_KSampler.cfg=3"),
    pretrain_encoder: (MODELS, "pretrain-encoder --base sd15.safetensors --out encoder.safetensors"),
    pretrain_tiny: (MODELS, "pretrain-tiny --recipe cpu --out runs/tiny"),
    doctor: (MACHINE, "doctor"),
}
for command, (group, example) in COMMANDS.items():
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    app.command(
        cls=Command,
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        epilog=f"Example: anomalydiffusion {example}",
        rich_help_panel=group,
    )(command)
