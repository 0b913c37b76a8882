"""Fields of all methods: defaults, checks, and which of them inference reads."""

import dataclasses

import numpy as np
import pytest

from imagepiece_jax.common.fields import count, weight
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.methods import METHODS, create
from imagepiece_jax.reduction.methods.method import Method, ModelFacts

DEPTH = 10
FIELDS = [
    (name, field.name)
    for name, method in METHODS.items()
    for field in dataclasses.fields(method)
]
BLOCKS = [
    ("imagepiece", "prune_blocks"),
    ("evit", "blocks"),
    ("random", "blocks"),
    ("token_pooling", "blocks"),
    ("dynamicvit", "blocks"),
    ("imagepiece_dynamicvit", "merge_blocks"),
]


@pytest.mark.parametrize("name, field", FIELDS)
def test_every_field_is_checked(name, field):
    with pytest.raises(InputError, match=rf"^config\.reduction\.{field} is {{}}; allo"):
        create(name, **{field: {}})


@pytest.mark.parametrize("name, field", FIELDS)
def test_every_default_is_allowed_and_stays_as_it_is(name, field):
    value = getattr(create(name), field)
    again = create(name, **{field: value})
    assert again == create(name)
    assert type(getattr(again, field)) is type(value)


@pytest.mark.parametrize("name", METHODS)
def test_two_of_a_method_have_equal_steps(name):
    """Else two equal models differ, and jit compiles each."""
    facts = ModelFacts(depth=12, embed_dim=384, patches=196)
    one, other = (create(name).resolved(facts).steps(12) for _ in range(2))
    assert one == other and hash(tuple(one)) == hash(tuple(other))


@pytest.mark.parametrize("name, field", BLOCKS)
@pytest.mark.parametrize("blocks", [(12,), (-1,), (3, 3)])
def test_blocks_that_do_not_fit_are_refused(name, field, blocks):
    steps = create(name, **{field: blocks}).steps(DEPTH)
    with pytest.raises(InputError, match=rf"block {blocks[0]}\b"):
        build(DEPTH, 196, steps)


@pytest.mark.parametrize(
    "name, fields, sentence",
    [
        ("tome", {"r": 99}, "r is 99; allowed: 0 to 98, half of the 196"),
        ("tome", {"r_list": (0, 0, 500)}, "r_list has 500; allowed: 0 to 98"),
        ("dtem", {"r": 200}, "r is 200; allowed: 0 to 98, half of the 196"),
        ("dtem", {"r_list": (99,)}, "r_list has 99; allowed: 0 to 98"),
        ("mctf", {"r": 99}, "r is 99; allowed: 0 to 98, half of the 196"),
        ("token_learner", {"num_tokens": 197}, "num_tokens is 197; allowed: 1 to"),
        (
            "diffrate",
            {"prune": (577,) * DEPTH, "merge": (9,) * DEPTH},
            "prune has 577; allowed: 2 to 197, the 196 image tokens",
        ),
    ],
)
def test_more_tokens_than_there_are_is_refused(name, fields, sentence):
    facts = ModelFacts(depth=DEPTH, embed_dim=384, patches=196)
    with pytest.raises(InputError, match=f"^config.reduction.{sentence}"):
        create(name, **fields).resolved(facts)


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
    method = create(name, **fields).resolved(facts)
    assert min(layer.mlp_tokens for layer in build(DEPTH, 196, method.steps(DEPTH))) > 0


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="'zebra'; the methods are .*evit.*none"):
        create("zebra")
    for typed, meant in (("ToMe", "tome"), ("dpc-knn", "dpc_knn")):
        with pytest.raises(InputError, match=f"'{typed}'; did you mean {meant}?"):
            create(typed)
    with pytest.raises(InputError, match="keep_ratio.*'evit'.*keep_rate.*fuse_token"):
        create("evit", keep_ratio=0.7)
    with pytest.raises(InputError, match="a field of 'none', which has macs, "):
        create(r=3)


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
    assert method.inference_fields() == {"tokens": 4}
    assert (method.loss, method.rate_at, method.param_groups) == (None,) * 3
    assert not method.needs_teacher and method.model_fields == {}
    evit = create("evit", rate_warmup_epochs=3).inference_fields()
    own = {"keep_rate": 0.7, "blocks": (3, 6, 9), "fuse_token": False, "score": "auto"}
    assert evit == own
