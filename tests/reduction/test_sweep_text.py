"""The text of --sweep: what it stands for, and what it cannot be."""

import itertools
import re

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.reduction.sweep_text import parse_sweep, parse_sweeps
from tests.refused import refused


def read(*fields):
    return [*map(Reduction.read, fields)]


def test_values_are_combined_and_may_be_tuples_words_and_fields_of_the_model():
    found = parse_sweep("evit:keep_rate=.9,.5:fuse_token=True,False")
    assert found == [
        Reduction.read({"name": "evit", "keep_rate": rate, "fuse_token": fuse})
        for rate, fuse in itertools.product((0.9, 0.5), (True, False))
    ]
    assert found[0].words == "evit keep_rate=0.9 fuse_token=True"
    (found,) = parse_sweep("imagepiece:prune_blocks=(2,5):metric=token:prop_attn=True")
    fields = {"prune_blocks": (2, 5), "metric": "token", "prop_attn": True}
    assert found == Reduction.read({"name": "imagepiece"} | fields)
    listed = parse_sweep("imagepiece:merge_blocks=(0,1),[2],(),():parity=1")
    assert [each.method.merge_blocks for each in listed] == [(0, 1), (2,), (), ()]
    assert parse_sweep("none") == read("none")
    assert parse_sweep("tome:macs=None,.5") == read("tome", "tome=.5")


def test_a_method_may_be_given_by_its_cost():
    for text in ("tome=.5,60%:prop_attn=False", "tome:macs=.5,60%:prop_attn=False"):
        found = parse_sweep(text)
        assert found == [
            Reduction.read({"name": "tome", "macs": macs, "prop_attn": False})
            for macs in (0.5, 0.6)
        ]
        assert found[0].words == "tome macs=0.5 prop_attn=False"
    assert parse_sweep("tome: r=8 : prop_attn=False") == parse_sweep(
        "tome:r=8:prop_attn=False"
    )
    one = parse_sweep("tome:macs=.5:metric=token")
    assert parse_sweep("tome:macs=.5,metric=token") == one
    assert (
        parse_sweep("tome=.5,metric=token")
        == parse_sweep("tome=.5 metric=token")
        == one
    )
    assert read(".5:counts=stages-1") == read({"macs": 0.5, "counts": "stages-1"})
    # The recommended one, too.
    assert parse_sweep("auto=.5") == parse_sweep("0.5") == read(0.5)
    assert parse_sweep(".6,.5") == read(0.6, 0.5)
    with refused("reduction.macs", (0.6, 0.5)):  # one reduction has one
        read(".6,.5")


def test_one_cost_may_be_that_of_several_methods():
    found = parse_sweeps(["tome", "evit:fuse_token=True", "none"], macs=0.5)
    evit = {"name": "evit", "fuse_token": True, "macs": 0.5}
    assert found == read("tome=0.5", evit, "none")
    for text, problem in (
        ("tome:r=8", "is 8, but macs says"),
        ("tome=.6", "has macs twice"),
    ):
        with pytest.raises(InputError, match=f"^sweep {re.escape(text)}.*{problem}"):
            parse_sweeps([text], macs=0.5)


@pytest.mark.parametrize(
    "text, problem, allowed",
    [
        ("evit:keep_rate", "has 'keep_rate'", "FIELD=VALUE"),
        ("evit:keep_rate=", "has 'keep_rate='", "FIELD=VALUE"),
        ("tome:r=1:r=2", "has r twice", "one list"),
        ("evot:keep_rate=.5", "", "did you mean evit?"),
        ("zebra", "", "atc, attended, auto, "),
        ("0,5", "", "such as 0.5 needs no name"),
        ("0,0.5", "", "such as 0.5 needs no name"),
        ("evit:r=8", "is not a field of reduction 'evit'", "keep_rate"),
        ("tome:macs=.5:r=4,8", "is 4, but macs says how many tokens stay", "one of"),
        ("evit:rate_warmup_epochs=3", "has rate_warmup_epochs, which", "macs"),
    ],
)
def test_what_cannot_be_read_is_named(text, problem, allowed):
    with pytest.raises(InputError, match=f"^sweep {re.escape(text)}") as error:
        parse_sweeps([text])
    assert error.value.problem.startswith(problem)
    assert allowed in error.value.allowed + error.value.hint
