"""Reductions as one record: read, compared, written, and in words."""

import pytest

from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import DENSE, Reduction
from tests.refused import refused


def test_equal_reductions_compute_the_same():
    """Whatever training fields they have, and whatever asked for them."""
    short = Reduction.read("evit")
    fields = {"keep_rate": 0.7, "blocks": [3, 6, 9], "rate_warmup_epochs": 9}
    assert short == Reduction.read({"name": "evit", **fields})
    assert short == Reduction.read({"name": "evit", "label": "half"})
    assert hash(short) == hash(Reduction.read("evit:keep_rate=.7"))
    assert short != Reduction.read({"name": "evit", "prop_attn": True})
    assert short != Reduction.read("evit:keep_rate=.6")
    assert Reduction.read(None) == DENSE == Reduction.read("none")


def test_all_fields_are_completed_by_the_defaults_of_the_method():
    assert Reduction.read("tome").all_fields["prop_attn"] is True
    assert DENSE.all_fields == {"name": "none", "prop_attn": False}
    full = Reduction.read("evit:keep_rate=.5").all_fields
    assert full["keep_rate"] == 0.5
    assert full["blocks"] == (3, 6, 9)
    assert "rate_warmup_epochs" not in full  # only training reads it


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_what_is_written_is_read_as_the_same(name):
    """Beside a cost without the fields that are found for it, which it refuses."""
    for asked in ({"name": name}, {"name": name, "macs": 0.5, "prop_attn": True}):
        reduction = Reduction.read(asked)
        assert Reduction.read(reduction.fields) == reduction
        again = Reduction.read(reduction.all_fields)
        assert again.method == reduction.method
        replaced = {*METHODS[name].found_for_macs}
        assert not ("macs" in asked and replaced & {*again.all_fields})


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_a_cost_replaces_what_said_how_many_tokens_stay(name):
    asked = Reduction.read({"name": name, "counts": [9] * 12})
    assert asked.with_cost(0.5) == Reduction.read({"name": name, "macs": 0.5})
    kind = METHODS[name]
    typed = {field: getattr(kind, field) for field in kind.found_for_macs}
    schedule = {"name": name, "macs": 0.9, "counts": "proportional-1"}
    assert Reduction.read({"name": name, **typed}).with_cost(0.5).method.macs == 0.5
    assert Reduction.read(schedule).with_cost(0.5).method.counts == "proportional-1"


def test_the_words_of_a_reduction_are_those_that_are_no_defaults():
    reduction = Reduction.read({"name": "evit", "keep_rate": 0.7, "blocks": [1]})
    assert reduction.fields == {"name": "evit", "blocks": (1,)}
    assert reduction.words == "evit blocks=(1,)"
    assert reduction.text == "evit:blocks=(1,)"
    assert DENSE.words == "dense"
    asked = Reduction.read(
        {"name": "tome", "counts": [9, 8], "label": "tome macs=0.5", "prop_attn": False}
    )
    assert asked.words == "tome macs=0.5 prop_attn=False"
    again = Reduction.read(asked.text)
    assert again == Reduction.read("tome:macs=.5:prop_attn=False")


@pytest.mark.parametrize("fields", [{}, {"r": 8}])
def test_a_reduction_without_a_name_is_refused(fields):
    """Also an empty one, which is no wish for the dense model: that is None."""
    with refused("reduction", fields, "which has no name; the names are atc, "):
        Reduction.read(fields)


def test_a_reduction_has_one_prop_attn():
    reduction = Reduction.read({"name": "tome", "prop_attn": False})
    assert Reduction.read(reduction, False) == reduction
    assert Reduction.read("tome", False) == reduction
    with refused("prop_attn", True, "in reduction False; allowed: one of them"):
        Reduction.read(reduction, True)
    with refused("reduction.prop_attn", 1, "allowed: True, False"):
        Reduction.read({"name": "tome", "prop_attn": 1})
