"""The version of the package, which setuptools reads without importing anything."""

__version__ = "0.1.0"
