"""The command line, the only place that prints."""

try:
    from .app import app
except ModuleNotFoundError as error:  # in an environment that was made for the nodes alone
    from .missing import without

    app = without(error)

__all__ = ["app"]
