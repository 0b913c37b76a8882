"""The package's version, and the libraries with recorded versions."""

__version__ = "0.4.0"  # read by setuptools, saved models and users
KEY_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
