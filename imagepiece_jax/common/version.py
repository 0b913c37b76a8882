"""The version of the package: where setuptools, saved models and users read it."""

__version__ = "0.2.0"
