"""`python -m anomalydiffusion_core.cli` is the command `anomalydiffusion`."""

from . import app

app()
