"""Guards cli/app.py, cli/missing.py and cli/invocation.py: what frames every command."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from commands import refused, run, snapshot

from anomalydiffusion_core import __version__
from anomalydiffusion_core.cli import app
from anomalydiffusion_core.cli.app import COMMANDS
from anomalydiffusion_core.cli.invocation import command_line, free_name, same_command

ROOT = Path(__file__).parents[3]
NAMES = sorted(command.__name__.replace("_", "-") for command in COMMANDS)


def test_the_version_is_said_and_alone_the_program_says_its_help() -> None:
    told = run("--version")
    assert (told.stdout, told.exit_code) == (f"anomalydiffusion {__version__}\n", 0)
    alone = run()
    assert alone.exit_code == 0 and alone.stdout == run("--help").stdout
    assert all(f" {name} " in alone.stdout for name in NAMES) and "From photos to pairs" in alone.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_explains_itself_in_sentences(command: object) -> None:
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():  # type: ignore[arg-type]
        if parameter.annotation is typer.Context:
            continue
        (option,) = [entry for entry in parameter.annotation.__metadata__ if hasattr(entry, "help")]
        assert re.match(r"[A-Z]", option.help) and option.help.endswith("."), name
        assert len(option.help.split()) >= 4, f"{name}: {option.help}"


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "masks"])
def test_the_help_of_long_commands_is_in_groups(command: str) -> None:
    panels = re.findall(
        r"^\W*[\u256d+].\s?([A-Z][\w -]+?)\s[\u2500-]", run(command, "--help").stdout, re.MULTILINE
    )
    assert len(panels) > 4 and panels[-1] == "Repeating and scripts", panels


def test_a_wrong_option_is_one_line_that_names_the_help(tmp_path: Path) -> None:
    refused(run("train", tmp_path), "Missing option '--out'. See: anomalydiffusion train --help")
    refused(run("trian"), "No such command 'trian'", "See: anomalydiffusion --help")
    refused(
        run("masks", "a", "--out", "b", "--count", 0), "'--count': ", "greater than or equal to 1", "See: "
    )
    refused(run("report", "a", "--output", "b"), "No such option: --output", "anomalydiffusion report --help")
    refused(run("train", "a", "--out", "b", "--share", "most"), "'most' is no share from 0 to 1")
    refused(run("train", "a", "--out", "b", "--share", "1/0"), "'1/0' is no share from 0 to 1")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("number", ["nan", "-nan", "NaN"])
def test_what_is_no_number_is_refused_at_once(tmp_path: Path, number: str) -> None:
    wrong = run("generate", "a", "b", "--out", tmp_path / "o", f"--guidance={number}")
    refused(wrong, "'--guidance': nan is no number. See: anomalydiffusion generate --help")
    wrong = run("generate", "a", "b", "--out", tmp_path / "o", f"--smallest-fill={number}")
    refused(wrong, "'--smallest-fill': ")


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own, as a Windows console or pipe would have it."""
    command = [sys.executable, "-m", "anomalydiffusion_core.cli", *arguments]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **environment}
    return subprocess.run(command, env=settings, capture_output=True, cwd=ROOT)


def test_output_is_no_problem_for_the_code_page_of_windows(tmp_path: Path) -> None:
    helped = program("generate", "--help", PYTHONIOENCODING="cp1252")
    assert helped.returncode == 0 and b"Quality gate" in helped.stdout, helped.stderr
    named = program("report", str(tmp_path / "\u76ae\u9769 \u0144"), PYTHONIOENCODING="cp1252")
    assert named.returncode == 2 and named.stderr.count(b"\n") == 1 and rb"\u76ae\u9769" in named.stderr


def test_what_is_said_of_names_in_other_scripts_is_escaped_where_the_code_page_lacks_them() -> None:
    script = (
        "from anomalydiffusion_core.cli import app\n"
        "from anomalydiffusion_core.cli import doctor as d\n"
        "d.examine = lambda base: {base: 'found'}\n"
        "app(['doctor', '--base', '\u76ae\u9769'])"
    )
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and rb"\u76ae\u9769" in done.stdout


@pytest.mark.parametrize(
    ("absent", "arguments"),
    [("typer", ["--version"]), ("diffusers", ["train", "DATA", "--out", "a.safetensors"])],
)
def test_a_missing_library_is_one_line_with_what_to_install(
    dataset: Path, tmp_path: Path, absent: str, arguments: list[str]
) -> None:
    script = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from anomalydiffusion_core.cli import app\n"
        f"sys.argv[1:] = {[str(dataset) if word == 'DATA' else word for word in arguments]!r}\n"
        "app()"
    )
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=settings, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and not list(tmp_path.glob("a.*")), done.stderr
    assert (
        done.stderr == f'error: {absent} is not installed, which this needs: python -m pip install "{ROOT}"\n'
    )


def test_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/anomalydiffusion"])
    words = ("report", "my photos/made", "--out", "it's")
    assert shlex.split(command_line(*words)) == ["anomalydiffusion", *words]
    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        line = command_line("report", "C:\\my photos\\made", 3)
    assert line == 'anomalydiffusion report "C:\\my photos\\made" 3'
    monkeypatch.setattr(sys, "argv", [str(ROOT / "anomalydiffusion_core/cli/__main__.py")])
    assert command_line("doctor") == "python -m anomalydiffusion_core.cli doctor"


def test_the_same_command_gains_what_it_lacks_alone() -> None:
    context = typer.Context(app_command(), obj=["train", "d", "--out", "a b", "--resume"])
    assert same_command(context, "--resume") == "anomalydiffusion train d --out 'a b' --resume"
    context.obj = ["train", "d"]
    assert same_command(context, "--resume") == "anomalydiffusion train d --resume"


def app_command() -> typer.core.TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    return command


def test_a_free_name_is_numbered_where_it_is_taken(tmp_path: Path) -> None:
    assert free_name(tmp_path / "a.safetensors", "made") == tmp_path / "made"
    for name in ("made", "made2"):
        (tmp_path / name).mkdir()
    assert free_name(tmp_path / "a.safetensors", "made") == tmp_path / "made3"
