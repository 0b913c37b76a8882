"""Reductions as one text: read, compared, and written again."""

import dataclasses

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.atc import LINKAGES
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reducers import METRICS, SCORES
from imagepiece_jax.reduction.reduction import DENSE, Reduction
from tests.refused import refused

NAMES = sorted(METHODS)


def some_blocks(draw):
    chosen = draw.choice(12, draw.integers(1, 5), replace=False)
    return tuple(sorted(chosen.tolist()))


def some_counts(draw):
    return tuple(sorted(draw.integers(2, 197, 12).tolist(), reverse=True))


def one_of(*values):
    return lambda draw: values[draw.integers(len(values))]


def share(draw):
    return float(one_of(0.0, 1.0, 0.5, draw.random(), 1e-7)(draw))


def number(draw):
    return float(one_of(1e-9, 3.0, 1e17, draw.random())(draw))


def count(draw):
    return int(draw.integers(1, 99))


SWITCH = one_of(True, False)
SCHEDULE = one_of("late-2", "late-1e5", "stages-3-6-9", "proportional-1", "diffrate")
# Legal values by the name of a field, which has one meaning in all methods.
VALUES = {
    "algorithm": one_of("kmeans", "kmedoids"),
    "attention": number,
    "backbone_lr": share,
    "block": count,
    "blocks": some_blocks,
    "bottleneck_dim": count,
    "candidate_ratio": share,
    "frozen_epochs": number,
    "fuse_token": SWITCH,
    "grid_size": count,
    "inflection": lambda draw: 2 * share(draw) - 1,
    "iterations": count,
    "keep_rate": share,
    "kl_weight": number,
    "late_first": SWITCH,
    "learned_weights": SWITCH,
    "linkage": one_of(*LINKAGES),
    "merge_blocks": one_of((), (0, 4), None),
    "merge_ratio": share,
    "metric": one_of(*METRICS),
    "mode": one_of("mask", "topk"),
    "neighbors": count,
    "num_tokens": count,
    "package_norm": one_of("none", "score", "count"),
    "parity": one_of(0, 1),
    "pooling": one_of("sum", "mean"),
    "predictor_pos": one_of("mid", "pre"),
    "prune_blocks": one_of((), (8,), None),
    "r": count,
    "r_list": one_of((), (3,), (0, 8, 4), None),
    "rate_warmup_epochs": number,
    "rate_warmup_start": number,
    "ratio_weight": number,
    "rescale": one_of("destination", "mean"),
    "score": one_of(*SCORES),
    "share_heads": SWITCH,
    "similarity": number,
    "size_weighting": SWITCH,
    "sizes": number,
    "target": number,
    "token_weight": number,
    "version": one_of("v1.0", "v1.1"),
}
TOGETHER = {"keep_rates", "prune", "merge", "macs", "counts"}  # with other fields


def some_reduction(name, draw):
    """A reduction by a method with random fields that go together."""
    kind = METHODS[name]
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name not in TOGETHER and draw.random() < 0.6:
            fields[field.name] = VALUES[field.name](draw)
    if name == "spvit" and "blocks" in fields:
        shares = draw.random(len(fields["blocks"])).tolist()
        fields["keep_rates"] = tuple(sorted(shares, reverse=True))
    if name == "diffrate" and draw.random() < 0.5:
        fields["prune"] = some_counts(draw)
        fields["merge"] = tuple(min(count, 9) for count in fields["prune"])
    costs = {"macs": max(share(draw), 1e-3)}
    if name == "none":
        costs = {"macs": 1.0}
    ways = [{}, costs, {"counts": some_counts(draw)}]
    ways.append(costs | {"counts": SCHEDULE(draw)})
    way = ways[draw.integers(len(ways))]
    taken = set()
    if "counts" in way:
        taken = {*kind.amounts, "rate_warmup_epochs"}
    elif "macs" in way:
        taken = {kind.strength_field}
    fields = {field: value for field, value in fields.items() if field not in taken}
    prop_attn = one_of(None, True, False)(draw)
    return Reduction(kind(**fields, **way), prop_attn)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_a_reduction_is_read_as_the_same(name):
    """Fields that only training reads are in it, too, though equality ignores them."""
    draw = np.random.default_rng(NAMES.index(name))
    for _ in range(200):
        reduction = some_reduction(name, draw)
        again = Reduction.read(str(reduction))
        assert again == reduction
        assert vars(again.method) == vars(reduction.method)
        assert str(again) == str(reduction)
        assert " " not in str(reduction)


@pytest.mark.parametrize("share", [0.5, 1.0, 1 / 3, 1e-4, 1])
def test_the_text_of_a_share_is_read_as_the_same(share):
    reduction = Reduction.read(share)
    assert reduction == Reduction(Method(macs=share))
    assert Reduction.read(str(reduction)) == reduction
    proportional = Reduction.read(reduction, True)
    assert Reduction.read(str(proportional)) == proportional
    assert Reduction.read(np.float32(0.5)) == Reduction.read("0.5")
    blocks = (np.int64(3), np.int32(6))
    assert str(Reduction(METHODS["evit"](blocks=blocks))) == "evit:blocks=(3,6)"


def test_equal_reductions_compute_the_same():
    """Whatever fields of training they have."""
    short = Reduction.read("evit")
    assert short == Reduction.read("evit:blocks=(3, 6, 9):rate_warmup_epochs=9")
    assert short == Reduction.read("evit : keep_rate=.7 : blocks=[3,6,9]")
    assert hash(short) == hash(Reduction.read("evit:keep_rate=.7"))
    assert short != Reduction.read("evit:prop_attn=True")
    assert short != Reduction.read("evit:keep_rate=.6")
    assert Reduction.read(None) == DENSE == Reduction.read("none")
    assert Reduction.read(ToMe(r=8)) == Reduction.read("tome:r=8")
    assert str(DENSE) == "none"


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_a_cost_replaces_what_said_how_many_tokens_stay(name):
    counts = (9,) * 12
    assert Reduction.read(f"{name}:counts={counts}").with_cost(0.5) == (
        Reduction.read(f"{name}:macs=0.5")
    )
    kind = METHODS[name]
    if field := kind.strength_field:
        typed = Reduction.read(f"{name}:{field}=1")
        assert typed.with_cost(0.5) == Reduction.read(f"{name}:macs=0.5")
    schedule = Reduction.read(f"{name}:macs=0.9:counts=proportional-1")
    assert schedule.with_cost(0.5).method.counts == "proportional-1"


@pytest.mark.parametrize(
    "value, said",
    [
        ("", "begin with a method: none, imagepiece"),
        ("resnet", "begin with a method"),
        ("auto", "begin with a method"),
        ("tome r=8", "begin with a method"),
        ("tome:r", "'r' must be FIELD=VALUE"),
        ("tome:r=8:r=9", "'r=9' must be FIELD=VALUE, once"),
        ("tome:keep_rate=.5", "'keep_rate' must be a field of tome: macs, counts, r, "),
        ("tome:r={}", "a whole number"),
        ("tome:prop_attn=1", "one of None, True, False"),
        ("evit:keep_rate=0.6:macs=0.5", "macs says how many tokens stay"),
        ("evit:keep_rate=0.6:counts=(9,9)", "counts says how many tokens stay"),
        ("evit:blocks=3", "must be a tuple"),
        ("evit:counts=late-2", "must have macs"),
        ("evit:counts=(9,9):macs=.5", "must not"),
        ("50%", "a share of the MACs"),
        (50, "at most 1"),
        (True, "a number"),
        (float("nan"), "a number"),
        ({"name": "tome"}, 'a text such as "evit:keep_rate=0.7"'),
    ],
)
def test_what_is_no_reduction_is_refused(value, said):
    with pytest.raises(InputError) as error:
        Reduction.read(value)
    assert said in str(error.value)


def test_a_reduction_has_one_prop_attn():
    reduction = Reduction.read("tome:prop_attn=False")
    assert Reduction.read(reduction, False) == reduction
    assert Reduction.read("tome", False) == reduction
    with refused("prop_attn", "reduction is tome:prop_attn=False"):
        Reduction.read(reduction, True)
