"""`python -m anomalydiffusion_core.cli` is the command `anomalydiffusion`."""

from . import app

if __name__ == "__main__":
    app()
