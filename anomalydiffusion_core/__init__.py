"""AnomalyDiffusion (Hu et al., AAAI 2024, arXiv 2312.05767): few-shot anomaly image-mask pairs by latent
diffusion.
"""

import re
from pathlib import Path

NAME = "comfyui-anomalydiffusion"  # of the distribution


def _version() -> str:
    """What pyproject.toml says: the one beside the package in a checkout, which runs without being installed
    (as in ComfyUI's custom_nodes), else the one that the installed distribution was made with.
    """
    project = Path(__file__).parents[1] / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    if f'name = "{NAME}"\n' in text:
        versions = re.findall(r'^version = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
        if len(versions) != 1:
            raise ValueError(f'{project} has {len(versions)} lines as version = "1.2.3": write exactly one.')
        return versions[0]
    from importlib.metadata import version

    return version(NAME)


__version__ = _version()
