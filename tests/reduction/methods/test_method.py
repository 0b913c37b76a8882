import dataclasses

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers import tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.refused_calls import refused

DEPTH = 10
FIELDS = []
for name, method in METHODS.items():
    FIELDS += [(name, field.name) for field in dataclasses.fields(method)]
LISTS = {"prune": "merge", "merge": "prune", "keep_rates": "blocks"}  # pairs of lists


@pytest.mark.parametrize("name, field", FIELDS)
def test_every_field_is_checked(name, field):
    with pytest.raises(InputError) as error:
        METHODS[name](**{field: {}}).plan(facts())
    assert field in str(error.value) or LISTS[field] in str(error.value)


REFUSED = [  # (a reduction's text, part of the error)
    (f"grid_pooling:counts={(50,) * DEPTH}", "counts has 50, not a square"),
    # Merge steps take at most half of the candidates: 29 of the 58 of 196.
    (f"imagepiece:counts={(166,) * DEPTH}", "at least 167 of 196"),
    (f"imagepiece:counts={(196,) * 9 + (9,)}", "after block 9"),
    ("spvit:keep_rates=(0.5,)", "each have a rate"),
    ("spvit:keep_rates=(0.2,0.5,0.7)", "blocks must rise"),
    ("token_learner:num_tokens=197", "leaves 197 tokens"),
    (f"token_learner:block={DEPTH}", "blocks, 0 to 9"),
    ("evit:blocks=(3,30)", "a step is at block 30"),
    (f"evit:counts={(9,) * 12}:rate_warmup_epochs=5", "needs keep_rate"),
    (f"evit:counts={(9,) * 12}", "it must have 10 entries"),
    ("diffrate", "diffrate has schedules only for"),
    (f"diffrate:prune={(2,) * DEPTH}", "merge is None"),
    ("diffrate:prune=(8,8):merge=(9,8)", "merge is (9, 8)"),
    ("none:macs=0.5", "none keeps all tokens"),
]


@pytest.mark.parametrize("text, message", REFUSED)
def test_a_wrong_value_names_the_allowed_ones(text, message):
    with refused(message):
        Reduction.read(text).method.plan(facts(DEPTH))


@pytest.mark.parametrize("depth", [2, 6])
def test_default_blocks_follow_the_models_depth(depth):
    """Default blocks move, unless two would coincide."""
    method = METHODS["evit"](macs=0.5).at_ratio(0.5, facts(depth, patches=16))
    assert method.blocks == {2: (3, 6, 9), 6: (1, 3, 4)}[depth]


@pytest.mark.parametrize(
    "text, pool, message",
    [
        ("token_pooling:blocks=(0,2)", "token", "block 0 reads attention"),
        ("grid_pooling:grid_size=6:block=1", "token", "leaves 36 tokens"),
        ("evit:blocks=(1,):score=class", "map", "no class token"),
        ("peaks:blocks=(1,):score=class_and_mean", "map", "no class token"),
        ("evit:blocks=(1,):score=probe", "token", "no attention-pooling head"),
    ],
)
def test_a_step_cannot_read_what_its_model_lacks(text, pool, message):
    with refused(message):
        tiny_vit.model(text, arch={"pool": pool, "class_token": pool == "token"})


# Token counts by hand; tests/models/cost_vectors.json has the published ones.


def expand_counts(text):
    """Expand "3*197 98" to [197, 197, 197, 98]."""
    pairs = [part.rpartition("*")[::2] for part in text.split()]
    counts = []
    for repeats, number in pairs:
        counts += [int(number)] * int(repeats or 1)
    return counts


@pytest.mark.parametrize(
    "text, site, tokens",
    [
        ("random:keep_rate=0.7", "mid", "3*197 3*139 3*98 3*69"),  # as EViT
        ("dynamicvit:keep_rate=0.0", "pre", "3*197 9*2"),
        ("token_pooling:keep_rate=0.5:blocks=(9,3,6)", "pre", "3*197 3*99 3*50 3*25"),
        # One token and a package are left, so later steps cannot shrink.
        ("spvit:keep_rates=(0.,0.,0.)", "pre", "3*197 9*3"),
        ("spvit:keep_rates=(.1,.001,0.)", "pre", "3*197 3*21 6*4"),
        # A step without a change leaves no package.
        ("spvit:keep_rates=(1.,.5,.5)", "pre", "6*197 6*100"),
        ("tome:r=1000", "mid", "99 50 26 14 8 5 3 5*2"),
        ("pitome:keep_rate=0.0", "mid", "99 50 26 14 8 5 3 5*2"),
    ],
)
def test_tokens_by_hand(text, site, tokens):
    plan = Reduction.read(text).method.plan(facts(), num_prefix=1)
    assert [layer.mlp_tokens for layer in plan] == expand_counts(tokens)
    arriving = [197, *expand_counts(tokens)[:-1]]
    attn_tokens = expand_counts(tokens) if site == "pre" else arriving
    assert [layer.attn_tokens for layer in plan] == attn_tokens


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("dynamicvit", "12*197"),
        ("dtem", "12*197"),
        ("spvit", "3*197 3*198 3*199 3*200"),  # a package each step
        # Masks keep all tokens except those merged in evaluation.
        ("imagepiece_dynamicvit", "181 2*166 155 2*145 137 5*130"),
        ("imagepiece_dynamicvit:mode=topk", "181 166 133 122 112 90 82 75 4*61"),
    ],
)
def test_tokens_in_masked_training(text, tokens):
    plan = Reduction.read(text).method.plan(facts(), num_prefix=1, masked=True)
    assert [layer.mlp_tokens for layer in plan] == expand_counts(tokens)
    assert any(layer.counts for layer in plan)
