"""The house: no module in the corridor, no long file or function, and nodes that know the library alone."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from anomalydiffusion_core.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for name in ("anomalydiffusion_core", "nodes", "benchmarks", "tests")
    for path in (ROOT / name).rglob("*.py")
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines, a command's list of options apart


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, relative ones as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_library_s_modules_lie_in_its_folders() -> None:
    folder = ROOT / "anomalydiffusion_core"
    assert [path.name for path in folder.glob("*.py")] == ["__init__.py"]
    for inner in (path for path in folder.rglob("*") if path.is_dir() and list(path.glob("*.py"))):
        assert ast.get_docstring(ast.parse((inner / "__init__.py").read_text())), inner


def test_files_and_functions_are_short() -> None:
    long = [path for path in CODE if len(path.read_text().splitlines()) > LONGEST_FILE]
    options = {inspect.unwrap(command).__name__ for command in COMMANDS}
    for path in CODE:
        for function in functions(path):
            is_command = path.parent.name == "cli" and function.name in options
            first = function.body[0].lineno if is_command else function.lineno
            if (function.end_lineno or 0) - first + 1 > LONGEST_FUNCTION:
                long.append(path / function.name)
    assert not long


def test_nodes_and_the_library_never_import_the_command_line_nor_the_library_the_nodes() -> None:
    library = [path for path in CODE if "anomalydiffusion_core" in path.parts and "cli" not in path.parts]
    for path in [path for path in CODE if "nodes" in path.parts] + [
        p for p in library if "tests" not in p.parts
    ]:
        assert not any("cli" in name.split(".") or "nodes" in name.split(".") for name in imported(path)), (
            path
        )


def test_what_touches_comfyui_lies_in_the_nodes_host_folder_and_knows_no_schema() -> None:
    for path in (ROOT / "nodes" / "host").glob("*.py"):
        names = set(imported(path))
        assert not any(name.startswith("comfy_api") for name in names), path
        assert not any(name.startswith("..") and not name.startswith("...") for name in names), path


def test_text_files_are_read_and_written_in_utf_8_on_every_system() -> None:
    for path in CODE:
        if path.is_relative_to(ROOT / "tests"):
            continue
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            modes = [word.value for word in call.args if isinstance(word, ast.Constant)]
            modes += [word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)]
            binary = any(re.fullmatch(r"[rwxa]b\+?", str(mode)) for mode in modes)
            known = any(word.arg == "encoding" for word in call.keywords)
            other = ast.unparse(call.func) in ("Image.open", "os.open")
            if name in ("read_text", "write_text", "fdopen", "open") and not (binary or known or other):
                raise AssertionError(f"{path}:{call.lineno} names no encoding: Windows would choose another")
