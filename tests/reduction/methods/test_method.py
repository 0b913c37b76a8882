"""Fields of all methods: defaults, checks, and which of them inference reads."""

import dataclasses

import numpy as np
import pytest

from imagepiece_jax.common.fields import count, weight
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.methods import METHODS, create
from imagepiece_jax.reduction.methods.method import Method, ModelFacts
from tests.models import tiny
from tests.refused import refused

DEPTH = 10
FIELDS = []
for name, method in METHODS.items():
    FIELDS += [(name, field.name) for field in dataclasses.fields(method)]


@pytest.mark.parametrize("name, field", FIELDS)
def test_every_field_is_checked_and_its_default_allowed(name, field):
    with pytest.raises(InputError, match=rf"^{field} is {{}}; allo"):
        create(name, **{field: {}})
    value = getattr(create(name), field)
    again = create(name, **{field: value})
    assert again == create(name)
    assert type(getattr(again, field)) is type(value)


NAN = float("nan")
KINDS = [  # (method, field, values that it refuses, what it allows)
    ("dynamicvit", "ratio_weight", (-1.0,), "least 0"),
    ("dynamicvit", "kl_weight", (NAN,), "least 0"),
    ("dynamicvit", "token_weight", ("1",), "least 0"),
    ("dynamicvit", "backbone_lr", (1.5,), "from 0 to 1"),
    ("dynamicvit", "frozen_epochs", (-1,), "least 0"),
    ("grid_pooling", "grid_size", (0, -1, 2.0, True, "7"), "least 1"),
    ("grid_pooling", "block", (-1,), "least 0"),
    ("grid_pooling", "counts", ((50,) * DEPTH,), "such as 49 and 64"),
    ("imagepiece", "parity", (2,), "0, 1"),
    ("imagepiece", "metric", ("keys",), "'key', 'query', 'value', 'token'"),
    ("imagepiece", "size_weighting", (1,), "True, False"),
    # Merge steps take at most half of the candidates: 29 of the 58 of 196.
    ("imagepiece", "counts", ((166,) * DEPTH,), "167"),
    ("imagepiece", "counts", ((196,) * 9 + (9,),), "0, 1, 2"),
    ("imagepiece_dynamicvit", "mode", ("soft",), "'mask', 'topk'"),
    ("imagepiece_dynamicvit", "predictor_pos", ("post",), "'mid', 'p"),
    ("spvit", "keep_rates", ((0.5,), 0.5), "one for each of blocks"),
    ("spvit", "keep_rates", ((0.5, 1.5, 0.2),), "from 0 to 1"),
    ("spvit", "keep_rates", ((0.2, 0.5, 0.7),), "blocks that rise"),
    ("spvit", "package_norm", ("mean",), "'none', 'score', 'count'"),
    ("spvit", "share_heads", (2,), "True, False"),
    ("token_learner", "num_tokens", (0, 2.0), "least 1"),
    ("token_learner", "num_tokens", (197,), "1 to 196"),
    ("token_learner", "block", (-1, "7"), "least 0"),
    ("token_learner", "bottleneck_dim", (-1,), "least 1"),
    ("token_learner", "version", ("v2",), "'v1.1', 'v1.0'"),
    ("token_learner", "pooling", ("max",), "'sum', 'mean'"),
    ("token_pooling", "keep_rate", (1.5,), "0 to 1"),
    ("token_pooling", "blocks", ((3, 6.5), 3), "whole numbers"),
    ("token_pooling", "algorithm", ("dbscan",), "'kmedoids', 'kmeans'"),
    ("token_pooling", "score", ("rows",), "'auto', 'class', 'received'"),
    ("token_pooling", "iterations", (0,), "least 1"),
    ("tome", "r", (-1, 2.5, True), "whole numbers of at least 0"),
    ("tome", "r", (99,), "0 to 98, half of the first block's 196 image tokens"),
    ("evit", "blocks", ((3, 30),), f"0 to {DEPTH - 1}, the blocks of the model"),
    ("tome", "inflection", (1.5, "0", NAN), "from -1 to 1"),
    ("tome", "r_list", ((1,) * 13,), f"at most {DEPTH}"),
    ("tome", "r_list", ((0.5, 1), 5, (4, -4)), "whole numbers"),
    ("tome", "r_list", ((0, 0, 500),), "0 to 98"),
    ("tome", "metric", ("keys",), "'key', 'query', 'value', 'token'"),
    ("dtem", "r", (200,), "0 to 98, half of"),
    ("dtem", "r_list", ((99,),), "0 to 98"),
    ("mctf", "r", (-1, 1.5, "16", True, None), "shares"),
    ("mctf", "r", (99,), "0 to 98, half of"),
    ("mctf", "similarity", (0, -1, float("inf")), "above 0"),
    ("diffrate", "target", (9,), "2.9"),
    ("diffrate", "prune", ((2,) * DEPTH,), "both or neither"),
]
REFUSED = []  # (method, its fields, the one that is refused, what is allowed)
for name, field, values, allowed in KINDS:
    REFUSED += [(name, {field: value}, field, allowed) for value in values]
REFUSED += [
    ("spvit", {"blocks": (6, 3, 9)}, "keep_rates", "blocks that rise"),
    ("diffrate", {"prune": (9, 8), "merge": (9, 8)}, "prune", f"{DEPTH}, one for each"),
    ("diffrate", {"prune": (1,) * 12, "merge": (1,) * 12}, "prune", "least 2"),
    ("diffrate", {"prune": (577,) * 10, "merge": (9,) * 10}, "prune", "2 to 197, one"),
    ("evit", {"counts": (9,) * 12, "rate_warmup_epochs": 5}, "rate_warmup_epochs", "0"),
]


@pytest.mark.parametrize("name, fields, field, allowed", REFUSED)
def test_what_a_field_may_be_is_said(name, fields, field, allowed):
    with pytest.raises(InputError) as error:
        depth = 12 if name == "diffrate" and "target" in fields else DEPTH
        facts = ModelFacts(depth=depth, embed_dim=384, patches=196)
        create(name, **fields).for_model(facts).planned_steps(depth, 196)
    assert error.value.field == field
    assert allowed in error.value.allowed
    found = error.value.value
    assert found == fields.get(field, found) or field == "counts" or found != found


@pytest.mark.parametrize(
    "name, problem",
    [
        ("tome", "r is 13; allowed: 0 to 8, "),
        ("evit", "blocks has 9; "),
        ("token_learner", "block is 7; "),
    ],
)
def test_defaults_that_do_not_fit_are_refused(name, problem):
    with pytest.raises(InputError, match=f"^{problem}"):
        create(name).for_model(ModelFacts(depth=6, embed_dim=192, patches=16))


@pytest.mark.parametrize("depth", [2, 6])
def test_blocks_beside_a_cost_are_those_of_the_model(depth):
    """Default blocks move, unless two would be one; a block that is found is not."""
    facts = ModelFacts(depth=depth, embed_dim=192, patches=16)
    create("token_learner", macs=0.5).for_model(facts)
    evit = create("evit", macs=0.5)
    if depth == 6:
        assert evit.for_model(facts).blocks == (1, 3, 4)
        return
    with refused("blocks", (3, 6, 9), "has 9; allowed: 0 to 1, the blocks"):
        evit.for_model(facts)


@pytest.mark.parametrize(
    "name, facts, field, allowed",
    [
        (
            "diffrate",
            (24, 1024, 196),
            "target",
            "with 196 patches, prune and merge, or macs",
        ),
        ("diffrate", (12, 384, 576), "target", "with 196 patches"),
        ("diffrate", (12, 100, 196), "target", "DeiT-Ti, S, B"),
        ("imagepiece", (3, 384, 196), "merge_blocks", "a depth of 4"),
    ],
)
def test_schedules_of_other_sizes_are_refused(name, facts, field, allowed):
    depth, width, patches = facts
    with pytest.raises(InputError) as error:
        facts = ModelFacts(depth=depth, embed_dim=width, patches=patches)
        create(name).for_model(facts).steps(depth)
    assert error.value.field == field
    assert allowed in error.value.allowed
    assert str(depth) in error.value.problem


@pytest.mark.parametrize("name", METHODS)
def test_two_of_a_method_have_equal_steps(name):
    """Else two equal models differ, and jit compiles each."""
    facts = ModelFacts(depth=12, embed_dim=384, patches=196)
    one, other = (create(name).for_model(facts).steps(12) for _ in range(2))
    assert one == other
    assert hash(tuple(one)) == hash(tuple(other))


@pytest.mark.parametrize(
    "name, fields",
    [
        *[("evit", {"blocks": blocks}) for blocks in ((12,), (-1,), (3, 3))],
        ("imagepiece", {"prune_blocks": (12,)}),
        ("imagepiece", {"prune_blocks": (3, 3)}),
        ("imagepiece_dynamicvit", {"merge_blocks": (-1,)}),
        ("grid_pooling", {"block": DEPTH}),
        ("token_learner", {"block": DEPTH}),
    ],
)
def test_blocks_that_do_not_fit_are_refused(name, fields):
    *_, blocks = fields.values()
    with pytest.raises(InputError) as error:
        build(DEPTH, 196, create(name, **fields).steps(DEPTH))
    assert error.value.value in np.atleast_1d(blocks)
    assert "one step per" in error.value.allowed or "0 to 9" in error.value.allowed


@pytest.mark.parametrize(
    "fields, value, allowed",
    [
        ({"name": "token_pooling", "blocks": (0, 2)}, 0, "blocks from 1"),
        ({"name": "grid_pooling", "grid_size": 6, "block": 1}, 6, "from 1 to 5"),
        ({"name": "grid_pooling", "grid_size": 6, "macs": 0.5}, 6, "from 1 to 5"),
        ({"name": "token_learner", "num_tokens": 40, "macs": 0.5}, 40, "1 to 25"),
    ],
)
def test_what_a_model_does_not_have_is_refused(fields, value, allowed):
    """Before anything runs."""
    with pytest.raises(InputError) as error:
        tiny.model(fields)
    assert error.value.value == value
    assert allowed in error.value.allowed


@pytest.mark.parametrize(
    "name, fields",
    [
        ("tome", {"r": 98, "inflection": -1.0}),  # 196 in the first block: half of all
        ("tome", {"r": 500, "r_list": (98, 98)}),
        ("dtem", {"r": 98}),
        ("mctf", {"r": 98}),
        ("token_learner", {"num_tokens": 196}),
        ("diffrate", {"prune": (197,) * DEPTH, "merge": (197,) * DEPTH}),
    ],
)
def test_as_many_tokens_as_there_are_is_allowed(name, fields):
    facts = ModelFacts(depth=DEPTH, embed_dim=384, patches=196)
    method = create(name, **fields).for_model(facts)
    assert min(layer.mlp_tokens for layer in build(DEPTH, 196, method.steps(DEPTH))) > 0


def test_numbers_of_numpy_and_lists_are_the_same_method():
    given = create("evit", keep_rate=np.float32(0.5), blocks=list(np.arange(3)))
    assert given == create("evit", keep_rate=0.5, blocks=(0, 1, 2))
    assert create("tome", r=np.int64(5), inflection=np.float64(0.5), r_list=[1]) == (
        create("tome", r=5, inflection=0.5, r_list=(1,))
    )


def test_fields_that_training_alone_reads_are_apart():
    @dataclasses.dataclass(frozen=True)
    class Own(Method):
        tokens: int = count(3)
        own_weight: float = weight(0.5, training=True)

    method = Own(tokens=4)
    assert method.named_fields(training=False) == {"tokens": 4}
    assert (method.loss, method.rate_at, method.param_groups) == (None,) * 3
    assert not method.needs_teacher
    assert method.model_fields == {}
    evit = create("evit", rate_warmup_epochs=3).named_fields(training=False)
    own = {"keep_rate": 0.7, "blocks": (3, 6, 9), "fuse_token": False, "score": "auto"}
    assert evit == own
