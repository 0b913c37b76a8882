"""Properties of the traced program, forward and backward.

A stand-in replaces the fused attention, so any other N x N array of weights shows.
"""

import re

import pytest

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit, traced_programs
from tests.helpers.traced_programs import REDUCED, SMALL, trace_model
from tests.models.test_rotary import ARCHS
from tests.models.test_vit_families import FAMILIES

ALL_KEPT = "evit:keep_rate=1.0:blocks=(0,)"
IDENTITY = tiny_vit.with_fields(tiny_vit.IMAGEPIECE, keep_rate=1.0, merge_ratio=0.0)


@pytest.mark.parametrize(
    "reduction, options",
    [
        (IDENTITY, {"stem": "conv", "dtype": "bfloat16"}),
        (IDENTITY, {"arch": ARCHS["eva02"], "embed_dim": 24}),
        *((ALL_KEPT, {"arch": FAMILIES[f], "depth": 1}) for f in ("dinov2", "siglip")),
        (tiny_vit.with_fields(tiny_vit.FUSED, keep_rate=1.0), {}),
        ("tome:r=0", {"arch": ARCHS["dinov3"], "embed_dim": 24}),
    ],
)
def test_a_method_that_reduces_nothing_is_the_dense_program(reduction, options):
    reduced, dense = (tiny_vit.model(each, **options) for each in (reduction, None))
    assert program_text(trace_model(reduced)) == program_text(trace_model(dense))


def test_training_alone_changes_the_conv_stem_alone():
    """Batch norm differs in training. Drop path is tested with the model's values."""
    for stem in ("patch", "conv"):
        model = tiny_vit.model(tiny_vit.EVIT, stem=stem)
        trained = program_text(trace_model(model, True, backward=False))
        evaluated = program_text(trace_model(model, False, backward=False))
        assert (trained == evaluated) == (stem == "patch")


def program_text(jaxpr):
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


# MCTF merges the attention map.
EXPECTED = {"mctf": "attention weights"}
# These methods evaluate with another program than they train.
BY_MODE = ("none", "dynamicvit", "spvit", "token_learner", "imagepiece_dynamicvit")
PROGRAMS = [(True, name) for name in {**METHODS, **REDUCED}]
PROGRAMS += [(False, name) for name in BY_MODE]


@pytest.mark.parametrize("train, name", PROGRAMS)
def test_no_sort_scatter_or_attention_matrix(monkeypatch, name, train):
    """Training does not mask here, and no option reads columns of the weights."""
    traced_programs.replace_core(monkeypatch)
    model = tiny_vit.model(SMALL[name], stem="conv" if name == "none" else "patch")
    assert name == "none" or any(plan.counts for plan in model.plan)
    found = traced_programs.unwanted_operations(model, train=train)
    assert bool(found) == (name in EXPECTED), found
    assert all(line.startswith(EXPECTED[name]) for line in found), found
