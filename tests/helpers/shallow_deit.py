"""DeiT-Ti with few blocks: compiling twelve takes most of a test's time."""

import re

from imagepiece_jax.models import registry
from imagepiece_jax.weights import tensor_files


def deit_ti(monkeypatch, depth):
    """Let DeiT-Ti have only its first `depth` blocks, also when its file is read."""
    select = tensor_files.select_model_tensors
    is_kept = re.compile(rf"(?!blocks\.)|blocks\.[0-{depth - 1}]\.").match

    def first_blocks(*args):
        return {name: array for name, array in select(*args).items() if is_kept(name)}

    monkeypatch.setattr(tensor_files, "select_model_tensors", first_blocks)
    row = registry.public_models()["deit_tiny_patch16_224"]
    monkeypatch.setitem(row, "depth", depth)
    # The unpatched function has no cache, so no depth is remembered.
    monkeypatch.setattr(registry, "model_config", registry.model_config.__wrapped__)
