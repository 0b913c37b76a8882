"""The place of Pretrained before it stood with the models: older pickles name it."""

from imagepiece_jax.models.pretrained import Pretrained

__all__ = ["Pretrained"]
