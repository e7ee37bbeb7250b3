"""Where the pack reads and writes: its model folder, and the folders that a graph may name."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...anomalydiffusion_core.export.mvtec import MANIFEST

BUNDLED_DEMO = "demo (comes with the pack)"  # in place of a file of embeddings
MODELS = "anomalydiffusion"  # key in ComfyUI's model folders and in extra_model_paths.yaml


def register_model_folder() -> None:
    """Makes `models/anomalydiffusion` known, beside folders that the user configured under the same key."""
    configured, _ = folder_paths.folder_names_and_paths.get(MODELS, ([], set()))
    default = os.path.join(folder_paths.models_dir, MODELS)
    paths = [*configured, *([] if default in configured else [default])]
    folder_paths.folder_names_and_paths[MODELS] = (paths, {".safetensors"})


def graph_folder(name: str) -> Path:
    """A folder that a graph names, relative to ComfyUI's input folder, or absolute.

    Raises ValueError for one that lies neither under input, nor output, nor a configured model folder.
    """
    roots = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    roots += folder_paths.get_folder_paths(MODELS)
    path = os.path.abspath(os.path.join(roots[0], name))
    if not any(_lies_under(path, os.path.abspath(root)) for root in roots):
        raise ValueError(
            f"Folder {name!r} lies outside ComfyUI's input and output folders: move or link it into "
            f"{roots[0]}."
        )
    return Path(path)


def output_folder(name: str) -> Path:
    """A dataset's folder that a graph names, relative to ComfyUI's output folder.

    Raises ValueError for an empty name, and as `graph_folder` does.
    """
    if not name.strip():
        raise ValueError("The folder has no name: give one below ComfyUI's output folder, such as dataset.")
    return graph_folder(os.path.join(folder_paths.get_output_directory(), name.strip()))


def manifest_stamp(name: str | None) -> str:
    """Size and time of the manifest of a dataset below the output folder; changes when pairs come or go."""
    try:
        return file_stamp(output_folder(name or "") / MANIFEST)
    except (ValueError, OSError):
        return ""


def _lies_under(path: str, root: str) -> bool:
    try:
        return os.path.commonpath((path, root)) == root
    except ValueError:  # another drive
        return False


def files_stamp(folder: Path) -> str:
    """Paths, sizes and times of all files below a folder: changes when one of them does."""
    return "\n".join(file_stamp(path) for path in sorted(folder.rglob("*")) if path.is_file())


def file_stamp(path: Path) -> str:
    """Path, size and time of a file."""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def new_output(prefix: str, suffix: str) -> Path:
    """The next free file `<prefix>_NNNNN_<suffix>` in ComfyUI's output folder, which it cannot leave."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}"


def embeddings_file(name: str) -> Path:
    """A file below the model folder, or the demo's; ValueError where there is none of that name."""
    from ...anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS

    if name == BUNDLED_DEMO:
        return DEMO_EMBEDDINGS
    path = folder_paths.get_full_path(MODELS, name)
    if path is None:
        known = ", ".join(folder_paths.get_filename_list(MODELS)) or "none"
        raise ValueError(
            f"There is no {name} in models/{MODELS} (it has {known}): move the file there, as Save Anomaly "
            "Embeddings writes it into the output folder."
        )
    return Path(path)
