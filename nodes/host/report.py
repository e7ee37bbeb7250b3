"""The report on a dataset below ComfyUI's output folder, and the address that serves it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlencode

import comfy.utils
import folder_paths

from ...anomalydiffusion_core.export.mvtec import MANIFEST, REJECTED, MVTecWriter
from ...anomalydiffusion_core.export.pair_list import pairs_in
from ...anomalydiffusion_core.report.report import write_report
from .folders import file_stamp

PAGE = "report.html"


def report_on(folder: str, reject: str) -> tuple[Path, str, str]:
    """Takes out the pairs that the text `reject` lists and writes the page; returns its file, what to tell
    the user, and its address on this server.

    Raises ValueError for a folder outside the output folder, which the server would not serve.
    """
    root = _dataset(folder)
    if unwanted := pairs_in(reject):
        MVTecWriter(root).reject_by_hand(unwanted)
    bar: list[comfy.utils.ProgressBar] = []

    def on_stage(stage: str, done: int, total: int, note: str) -> None:
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done, total)

    page = root / PAGE
    figures = write_report(root, page, on_stage=on_stage)
    below = page.parent.relative_to(_output()).as_posix()
    address = "/view?" + urlencode({"filename": PAGE, "subfolder": below, "type": "output"})
    rejected = f", {figures['rejected']} rejected" if figures["rejected"] else ""
    return page, f"{figures['pairs']} pairs{rejected}: {below}/{PAGE}", address


def report_stamp(folder: str) -> str:
    """Changes when the dataset does, or its page is gone."""
    root = _dataset(folder)
    manifests = [root / MANIFEST, root / REJECTED / MANIFEST]
    return "\n".join([*map(file_stamp, filter(Path.is_file, manifests)), str((root / PAGE).is_file())])


def _output() -> Path:
    return Path(os.path.abspath(folder_paths.get_output_directory()))


def _dataset(folder: str) -> Path:
    path = Path(os.path.abspath(_output() / folder))
    if not path.is_relative_to(_output()) or path == _output():
        raise ValueError(f"Folder {folder!r} is none below {_output()}: name a dataset that lies there.")
    return path
