"""Token reduction for vision transformers: ImagePiece and its rivals in JAX."""

__version__ = "0.1.0"
