"""Reductions as dicts: defaults, differences, labels."""

import pytest

from imagepiece_jax.models.config import create_model
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.methods import METHODS
from tests.models import tiny
from tests.refused import refused


def test_fields_are_completed_by_the_defaults_of_the_method():
    short = settings.with_defaults({"name": "evit"})
    assert short == settings.with_defaults(
        {"name": "evit", "keep_rate": 0.7, "blocks": [3, 6, 9], "rate_warmup_epochs": 9}
    )
    assert settings.with_defaults({"name": "tome"})["prop_attn"] is True
    assert settings.with_defaults(None) == {"name": "none", "prop_attn": False}


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_what_is_completed_is_a_reduction_with_the_same_fields(name):
    """Beside a cost without the fields that are found for it, which it refuses."""
    for asked in ({"name": name}, {"name": name, "macs": 0.5}):
        fields = settings.with_defaults(asked)
        assert settings.with_defaults(fields) == fields
        replaced = {*METHODS[name].found_for_macs}
        assert not ("macs" in asked and replaced & {*fields})


def test_fields_that_differ_are_changed_and_name_a_reduction():
    given = {"name": "evit", "keep_rate": 0.7, "blocks": [1]}
    assert settings.differences(given) == {"name": "evit", "blocks": (1,)}
    changed = settings.differences(given, given | {"keep_rate": 0.5})
    assert changed == {"name": "evit", "keep_rate": 0.7}
    assert settings.label({"name": "none"}) == "dense"
    assert settings.label(changed) == "evit keep_rate=0.7"


@pytest.mark.parametrize(
    "use",
    [
        lambda fields: create_model("deit_ti", reduction=fields),
        lambda fields: tiny.pretrained().with_reduction(fields),
        lambda fields: settings.with_defaults(fields),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"r": 8}])
def test_a_reduction_without_a_name_is_refused(use, fields):
    """Also an empty one, which is no wish for the dense model: that is None."""
    with refused("reduction", fields, "which has no name; the names are atc, "):
        use(fields)
