"""DeiT-Ti of a few blocks: compiling twelve takes most of a test's time."""

import re

from imagepiece_jax.models import registry
from imagepiece_jax.weights.tensor_files import UnreadTensors


def deit_ti(monkeypatch, depth):
    """Its first `depth` blocks are what is read of its file, and what it is."""
    read = UnreadTensors.read
    kept = re.compile(rf"(?!blocks\.)|blocks\.[0-{depth - 1}]\.")

    def first_blocks(unread, names):
        return read(unread, [name for name in names if kept.match(name)])

    monkeypatch.setattr(UnreadTensors, "read", first_blocks)
    monkeypatch.setitem(
        registry.public_models()["deit_tiny_patch16_224"], "depth", depth
    )
    # What was read of the table before, and what is read meanwhile, is forgotten.
    monkeypatch.setattr(registry, "model_config", registry.model_config.__wrapped__)
