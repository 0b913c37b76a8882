"""Tiny models of public architectures; a few have every value of every field."""

import dataclasses

from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from tests.helpers import tiny_vit
from tests.models.test_vit_families import FAMILIES

# These fields fit two blocks; `small_reduction`'s fit three.
TWO_BLOCK_FIELDS = {
    "blocks": (0, 1),
    "counts": (23, 19),
    "prune": (22, 17),
    "merge": (19, 14),
    "block": 0,
    "prune_blocks": (0,),  # in the last block it would prune logits
    "merge_blocks": (1,),
}


def short_model(name, arch=None):
    """A model of two or three blocks, reduced in two of them."""
    reduction = tiny_vit.small_reduction(name)
    if name in ("mctf", "token_pooling"):  # they begin at the second block
        return tiny_vit.model(reduction, depth=3, arch=arch)
    # All at once: DiffRate compares its two lists.
    typed = [field for field in TWO_BLOCK_FIELDS if f":{field}=" in reduction]
    fields = {field: TWO_BLOCK_FIELDS[field] for field in typed}
    return tiny_vit.model(tiny_vit.with_fields(reduction, **fields), depth=2, arch=arch)


# One public model of each architecture, and of each form of rotary positions.
PUBLIC = {str(row["arch"]): name for name, row in registry.public_models().items()}
ARCHITECTURES = {
    name: Architecture(**registry.public_models()[name]["arch"])
    for name in PUBLIC.values()
}
ROTARY = {str(arch.rotary): name for name, arch in ARCHITECTURES.items() if arch.rotary}


def field_values(arch):
    """(name, value) of every field; registers and rotary count as absent or present."""
    fields = dataclasses.asdict(arch)
    fields["registers"] = arch.registers > 0
    fields["rotary"] = arch.rotary is not None
    return {(name, str(value)) for name, value in fields.items()}


def covering_architectures(archs):
    """Names of a few of `archs` ({name: arch}) with every value of every field."""
    values = {name: field_values(arch) for name, arch in archs.items()}
    missing = set().union(*values.values())
    chosen = []
    while missing:
        chosen.append(max(sorted(values), key=lambda name: len(values[name] & missing)))
        missing -= values[chosen[-1]]
    return chosen


def narrow_model(name, reduction=None, depth=2):
    """A tiny model of a named architecture, on a tiny grid."""
    arch = (FAMILIES | ARCHITECTURES)[name]
    return tiny_vit.model(reduction, arch=arch, embed_dim=24, depth=depth)


MERGED = tiny_vit.with_fields(tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))
MEANS = "token_learner:num_tokens=8:block=0"
