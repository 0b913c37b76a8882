"""The version of the package, and the libraries with versions that matter."""

__version__ = "0.4.0"  # which setuptools, saved models and users read
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
