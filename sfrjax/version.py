"""The version of the installed package, written once, in pyproject.toml."""

from importlib.metadata import version

__version__ = version("sfrjax")
