"""The command line, the only place that prints."""

from .app import app

__all__ = ["app"]
