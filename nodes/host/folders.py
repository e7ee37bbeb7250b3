"""Where the pack reads and writes: its model folder, and the folders that a graph may name."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...anomalydiffusion_core.export.mvtec import MANIFEST

BUNDLED_DEMO = "demo (comes with the pack)"  # in place of a file of embeddings
MODELS = "anomalydiffusion"  # key in ComfyUI's model folders and in extra_model_paths.yaml
SAVED = Path(MODELS)  # below ComfyUI's output folder: what Save Anomaly Embeddings writes
TRAININGS = SAVED / "training"  # below it: checkpoints of trainings, which nobody loads
LORA = ".lora.safetensors"  # end of the name of an update of the base, which lies beside its embeddings
IN_OUTPUT = " [output]"  # after the name of a file there, as ComfyUI marks such files
DEEPEST = 3  # levels of folders below input that are listed
HOST_FOLDERS = {"3d", "clipspace"}  # ComfyUI's own, below input
PARTS = {"train", "test", "ground_truth", "images", "masks"}  # of one category


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

    Raises ValueError for an empty name, and for one that leads out of there.
    """
    if not name.strip():
        raise ValueError("The folder has no name: give one below ComfyUI's output folder, such as dataset.")
    root = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(root, name.strip()))
    if not _lies_under(path, root):
        raise ValueError(
            f"Folder {name!r} lies outside ComfyUI's output folder {root}, where pairs are written: give one "
            "below it."
        )
    return Path(path)


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


def new_embeddings(prefix: str) -> Path:
    """The next free file below output/anomalydiffusion, where `embeddings_names` finds it; the prefix may
    begin with that folder or not.

    Raises ValueError where it leads elsewhere, or among the checkpoints.
    """
    inside = prefix if Path(prefix).parts[:1] == SAVED.parts else str(SAVED / prefix)
    path = new_output(inside, ".safetensors")
    if listed_as(path) is None:
        raise ValueError(
            f"The prefix {prefix!r} leads out of output/{SAVED}, or into {TRAININGS.name}, where embeddings "
            "are not looked for: leave that folder out."
        )
    return path


def embeddings_names() -> list[str]:
    """All files of embeddings that can be loaded: of the model folders, then of the output folder."""
    saved = (_output() / SAVED).rglob("*.safetensors")
    return [
        *(name for name in folder_paths.get_filename_list(MODELS) if not name.endswith(LORA)),
        *sorted(name for name in map(listed_as, saved) if name is not None),
    ]


def listed_as(path: Path) -> str | None:
    """The name in the list of a file below output/anomalydiffusion; None for what is not listed."""
    try:
        inside = path.relative_to(_output() / SAVED)
    except ValueError:
        return None
    other = inside.parts[0] == TRAININGS.name or inside.name.endswith(LORA)
    return None if other else f"{inside.as_posix()}{IN_OUTPUT}"


def _output() -> Path:
    return Path(os.path.abspath(folder_paths.get_output_directory()))


def embeddings_file(name: str) -> Path:
    """The file of a name in `embeddings_names`, or the demo's; ValueError where there is none."""
    from ...anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS

    if name == BUNDLED_DEMO:
        return DEMO_EMBEDDINGS
    known = embeddings_names()
    if name in known and name.endswith(IN_OUTPUT):
        return _output() / SAVED / name.removesuffix(IN_OUTPUT)
    path = folder_paths.get_full_path(MODELS, name)
    if path is None:
        raise ValueError(
            f"There is no {name} in models/{MODELS} or output/{SAVED} (they have "
            f"{', '.join(known) or 'none'}): choose one of these, or put the file there and press R."
        )
    return Path(path)


def input_folders() -> list[str]:
    """Folders below ComfyUI's input folder, by their paths from there, down to single categories."""
    root = Path(folder_paths.get_input_directory())
    first = [name for name in _subfolders(root) if name not in HOST_FOLDERS]
    return [inner for name in first for inner in _with_inner(root, name, DEEPEST)]


def _with_inner(root: Path, name: str, levels: int) -> list[str]:
    """A folder and those in it, unless they are the parts of one category."""
    inner = _subfolders(root / name) if levels > 1 else []
    if PARTS & set(inner):
        return [name]
    return [name, *(path for one in inner for path in _with_inner(root, f"{name}/{one}", levels - 1))]


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError:  # gone, or not ours to read
        return []
