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
    with pytest.raises(InputError, match=rf"^{field} is {{}}; allo"):
        create(name, **{field: {}})


NAN = float("nan")
REFUSED = [  # (method, its fields, the one that is refused, what is allowed)
    ("dynamicvit", {"ratio_weight": -1.0}, "ratio_weight", "from 0"),
    ("dynamicvit", {"kl_weight": NAN}, "kl_weight", "from 0"),
    ("dynamicvit", {"token_weight": "1"}, "token_weight", "from 0"),
    ("dynamicvit", {"backbone_lr": 1.5}, "backbone_lr", "from 0 to 1"),
    ("dynamicvit", {"frozen_epochs": -1}, "frozen_epochs", "from 0"),
    *[
        ("grid_pooling", {"grid_size": size}, "grid_size", "numbers from 1")
        for size in (0, -1, 2.0, True, "7")
    ],
    ("grid_pooling", {"block": -1}, "block", "numbers from 0"),
    ("grid_pooling", {"counts": (50,) * DEPTH}, "counts", "such as 49 and 64"),
    ("imagepiece", {"schedule": "C"}, "schedule", "'A', 'B'"),
    ("imagepiece", {"merge_base": "some"}, "merge_base", "'all', 'candidates'"),
    ("imagepiece", {"order": "random"}, "order", "'descending', 'ascending'"),
    ("imagepiece", {"parity": 2}, "parity", "0, 1"),
    ("imagepiece", {"metric": "keys"}, "metric", "'key', 'query', 'value', 'token'"),
    ("imagepiece", {"size_weighting": 1}, "size_weighting", "True, False"),
    ("imagepiece", {"inattentive": "fuse"}, "inattentive", "'merge', 'drop', 'random'"),
    ("imagepiece", {"inattentive": "tome", "keep_rate": 0.4}, "keep_rate", "from 0.5"),
    ("imagepiece_tome", {"metric": "keys"}, "metric", "'key', 'query'"),
    ("imagepiece_tome", {"keep_rate": 2}, "keep_rate", "from 0 to 1"),
    ("imagepiece_dynamicvit", {"mode": "soft"}, "mode", "'mask', 'topk'"),
    ("imagepiece_dynamicvit", {"predictor_pos": "post"}, "predictor_pos", "'mid', 'p"),
    ("imagepiece_dynamicvit", {"merge_base": "some"}, "merge_base", "'candidates'"),
    ("imagepiece_dynamicvit", {"inattentive": "tome"}, "inattentive", "mode 'topk'"),
    ("spvit", {"keep_rates": (0.5,)}, "keep_rates", "one for each of blocks, 3"),
    ("spvit", {"keep_rates": (0.5, 1.5, 0.2)}, "keep_rates", "from 0 to 1"),
    ("spvit", {"keep_rates": 0.5}, "keep_rates", "one for each of blocks"),
    ("spvit", {"keep_rates": (0.2, 0.5, 0.7)}, "keep_rates", "rising blocks with"),
    ("spvit", {"blocks": (6, 3, 9)}, "keep_rates", "rising blocks with"),
    ("spvit", {"package_norm": "mean"}, "package_norm", "'none', 'score', 'count'"),
    ("spvit", {"share_heads": 2}, "share_heads", "True, False"),
    ("token_learner", {"num_tokens": 0}, "num_tokens", "from 1"),
    ("token_learner", {"num_tokens": 2.0}, "num_tokens", "from 1"),
    ("token_learner", {"block": -1}, "block", "from 0"),
    ("token_learner", {"block": "7"}, "block", "from 0"),
    ("token_learner", {"bottleneck_dim": -1}, "bottleneck_dim", "from 1"),
    ("token_learner", {"version": "v2"}, "version", "'v1.1', 'v1.0'"),
    ("token_learner", {"pooling": "max"}, "pooling", "'sum', 'mean'"),
    ("token_pooling", {"keep_rate": 1.5}, "keep_rate", "0 to 1"),
    ("token_pooling", {"blocks": (3, 6.5)}, "blocks", "whole numbers"),
    ("token_pooling", {"blocks": 3}, "blocks", "whole numbers"),
    ("token_pooling", {"algorithm": "dbscan"}, "algorithm", "'kmedoids', 'kmeans'"),
    ("token_pooling", {"score": "rows"}, "score", "'auto', 'class', 'received'"),
    ("token_pooling", {"iterations": 0}, "iterations", "from 1"),
    ("tome", {"r": -1}, "r", "whole numbers from 0"),
    ("tome", {"r": 2.5}, "r", "whole numbers"),
    ("tome", {"r": True}, "r", "whole numbers"),
    ("tome", {"inflection": 1.5}, "inflection", "from -1 to 1"),
    ("tome", {"inflection": "0"}, "inflection", "from -1 to 1"),
    ("tome", {"inflection": NAN}, "inflection", "from -1 to 1"),
    ("tome", {"r_list": (1,) * 13}, "r_list", f"at most {DEPTH}"),
    ("tome", {"r_list": (0.5, 1)}, "r_list", "whole numbers"),
    ("tome", {"r_list": 5}, "r_list", "whole numbers"),
    ("tome", {"r_list": (4, -4)}, "r_list", "whole numbers"),
    ("tome", {"metric": "keys"}, "metric", "'key', 'query', 'value', 'token'"),
    *[("mctf", {"r": r}, "r", "shares") for r in (-1, 1.5, "16", True, None)],
    *[
        ("mctf", {field: value}, field, "above 0")
        for field in ("similarity", "attention", "sizes")
        for value in (0, -1, float("inf"))
    ],
    ("diffrate", {"target": 9}, "target", "2.9"),
    ("diffrate", {"prune": (2,) * DEPTH}, "prune", "both or neither"),
    ("diffrate", {"prune": (9, 8), "merge": (9, 8)}, "prune", f"{DEPTH}, one for each"),
    ("diffrate", {"prune": (1,) * 12, "merge": (1,) * 12}, "prune", "numbers from 2"),
    ("evit", {"counts": (9,) * 12, "rate_warmup_epochs": 5}, "rate_warmup_epochs", "0"),
]


@pytest.mark.parametrize("name, fields, field, allowed", REFUSED)
def test_what_a_field_may_be_is_said(name, fields, field, allowed):
    with pytest.raises(InputError) as error:
        depth = 12 if name == "diffrate" and "target" in fields else DEPTH
        facts = ModelFacts(depth=depth, embed_dim=384, patches=196)
        create(name, **fields).resolved(facts).planned_steps(depth, 196)
    assert error.value.field == field and allowed in error.value.allowed
    found = error.value.value
    assert found == fields.get(field, found) or field == "counts" or found != found


@pytest.mark.parametrize(
    "depth, width, patches", [(24, 1024, 196), (12, 384, 576), (12, 100, 196)]
)
def test_diffrate_has_no_other_sizes_schedule(depth, width, patches):
    facts = ModelFacts(depth=depth, embed_dim=width, patches=patches)
    words = f"target has no schedule for {depth} blocks of width {width} and {patches}"
    with pytest.raises(InputError, match=words):
        create("diffrate").resolved(facts)


def test_imagepieces_schedule_needs_four_blocks():
    with pytest.raises(InputError, match="'B' with a depth of 3; .*merge_blocks"):
        create("imagepiece").steps(3)


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
    "name, fields, block",
    [
        ("grid_pooling", {"block": DEPTH}, DEPTH),
        ("token_learner", {"block": DEPTH}, DEPTH),
        ("spvit", {"keep_rates": (0.5,), "blocks": (12,)}, 12),
        ("spvit", {"keep_rates": (0.5,), "blocks": (-1,)}, -1),
    ],
)
def test_a_block_outside_the_model_is_refused(name, fields, block):
    with pytest.raises(InputError, match=rf"block {block}; .* blocks 0 to 9"):
        build(DEPTH, 196, create(name, **fields).steps(DEPTH))


@pytest.mark.parametrize(
    "name, fields, sentence",
    [
        ("tome", {"r": 99}, "r is 99; allowed: 0 to 98, as the first block has 196"),
        ("tome", {"r_list": (0, 0, 500)}, "r_list has 500; allowed: 0 to 98"),
        ("dtem", {"r": 200}, "r is 200; allowed: 0 to 98, as the first block has 196"),
        ("dtem", {"r_list": (99,)}, "r_list has 99; allowed: 0 to 98"),
        ("mctf", {"r": 99}, "r is 99; allowed: 0 to 98, as the first block has 196"),
        ("token_learner", {"num_tokens": 197}, "num_tokens is 197; allowed: 1 to"),
        (
            "diffrate",
            {"prune": (577,) * DEPTH, "merge": (9,) * DEPTH},
            "prune has 577; allowed: 2 to 197, as the first block",
        ),
    ],
)
def test_more_tokens_than_there_are_is_refused(name, fields, sentence):
    facts = ModelFacts(depth=DEPTH, embed_dim=384, patches=196)
    with pytest.raises(InputError, match=f"^{sentence}"):
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
    with pytest.raises(
        InputError, match="keep_ratio .* of 'evit'; did you mean keep_rate?"
    ):
        create("evit", keep_ratio=0.7)
    with pytest.raises(InputError, match="r is not a field of 'none'; allowed: macs, "):
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
