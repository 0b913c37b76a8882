"""ImagePiece's merges and DynamicViT's learned prunes in one model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.cost import plan_macs
from imagepiece_jax.reduction import tokens
from imagepiece_jax.reduction.layer_plan import Counts, build
from imagepiece_jax.reduction.methods.dynamicvit import LearnedSelection
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import (
    ImagePieceDynamicViT,
    NoisyTopK,
    kept_shares,
)
from imagepiece_jax.reduction.tokens import Assignment, Masking, Taps, start
from tests import oracles, oracles_learned
from tests.models import masked, tiny

FIELDS = {  # 25 image tokens; merged 23; pruned 14; merged 13
    "name": "imagepiece_dynamicvit",
    "keep_rate": 0.6,
    "merge_ratio": 0.06,
    "merge_blocks": (0, 2),
    "prune_blocks": (1,),
}
MASK, TOPK = FIELDS | {"mode": "mask"}, FIELDS | {"mode": "topk"}


def trained(fields, seed=0):
    """(training model, compiled (keys) -> Outputs for three images)."""
    model = tiny.model(fields, masked=True)
    variables, run = tiny.variables(model, seed), masked.train(model)
    return model, lambda keys: run(variables, tiny.images(), keys)


@pytest.fixture(scope="module")
def with_masks():
    return trained(MASK)


@pytest.fixture(scope="module")
def with_topk():
    return trained(TOPK)


@pytest.fixture(scope="module")
def taught():
    """Outputs of a dense teacher with other weights."""
    teacher = tiny.model(depth=1)
    return tiny.jit(teacher.apply)(tiny.variables(teacher, seed=5), tiny.images())


# Counts


def traces(**fields):
    """Tokens in the MLPs of 12 blocks on 196 patches: (evaluation, training)."""
    steps = ImagePieceDynamicViT(**fields).steps(12)
    plans = (build(12, 196, steps, masked=m) for m in (False, True))
    return [[layer.mlp_tokens for layer in plan] for plan in plans]


def test_masks_keep_all_but_what_evaluation_merges():
    """Removed by merges: 16 15, 11 10, 8 7; by prunes 33 22 14, in evaluation alone."""
    evaluation, training = traces()
    assert evaluation == [181, 166, 133, 122, 112, 90, 82, 75, 61, 61, 61, 61]
    assert training == [181, 166, 166, 155, 145, 145, 137, 130, 130, 130, 130, 130]


def test_topk_trains_with_what_evaluation_keeps():
    evaluation, training = traces(mode="topk")
    assert training == evaluation


def test_merges_look_at_as_many_candidates_as_in_evaluation():
    steps = ImagePieceDynamicViT().steps(12)
    plans = (build(12, 196, steps, masked=m) for m in (False, True))
    small, large = ([p.counts and p.counts.candidates for p in plan] for plan in plans)
    assert small == large and small[3] == 39  # floor(.3 * 132)


def test_the_score_is_read_where_the_field_says():
    mid, pre = (
        build(12, 196, ImagePieceDynamicViT(predictor_pos=pos).steps(12))
        for pos in ("mid", "pre")
    )
    assert (mid[2].attn_tokens, mid[2].mlp_tokens) == (166, 133)
    assert (pre[2].attn_tokens, pre[2].mlp_tokens) == (133, 133)
    assert sum(plan_macs(pre, 384, 6)) < sum(plan_macs(mid, 384, 6))


# Evaluation


def test_both_modes_are_one_model_in_evaluation():
    models = [tiny.model(fields) for fields in (MASK, TOPK)]
    variables = [tiny.shapes(model) for model in models]
    assert variables[0] == variables[1]
    programs = [
        str(jax.make_jaxpr(m.apply)(variables[0], tiny.images())) for m in models
    ]
    assert programs[0] == programs[1]


def test_evaluation_keeps_the_best_scores_between_merges():
    model = tiny.model(MASK)
    variables = tiny.variables(model)
    out = tiny.jit(model.apply)(variables, tiny.images())
    assert out.state.x.shape == (3, 1 + 13, tiny.WIDTH)
    merge, prune, _ = out.results
    assert merge.index.groups.shape[1] == 2 and prune.index.groups.shape[1] == 0
    params = variables["params"]["reducer_1"]["scores"]
    for image in range(3):
        tokens = np.asarray(out.taps[1].x[image], float)
        scores = oracles_learned.keep_scores(params, tokens)[:, 0]
        np.testing.assert_array_equal(prune.dest[image], oracles.top_k(scores, 14))


# Training with masks


def test_masked_tokens_are_never_merged(with_masks):
    """The last merge moves live tokens alone; a slot with a live token is live."""
    _, run = with_masks
    out = run(masked.keys())
    first, second, third = out.results
    assert isinstance(second, Masking) and isinstance(third, Assignment)
    assert second.keep.shape == (3, 23) and out.state.mask.shape == (3, 22)
    keep, dest = np.asarray(second.keep), np.asarray(third.dest)
    for image in range(3):
        assert 4 < keep[image].sum() < 20  # more than the candidates of the merge
        together = oracles.count_sources(dest[image], 22)[dest[image]]
        assert (together > 1).sum() == 2
        assert (keep[image][together > 1] == 1).all()
        live = [keep[image][dest[image] == slot].max() for slot in range(22)]
        np.testing.assert_array_equal(out.state.mask[image], live)


def test_masked_training_has_terms_for_all(with_masks, taught):
    """The ratio's target is 14 of 23; the teacher's tokens are merged alike."""
    model, run = with_masks
    out = run(masked.keys())
    terms = tiny.jit(lambda *a: ImagePieceDynamicViT().loss(*a, model.plan))(
        out, taught
    )
    share = np.asarray(out.results[1].keep).mean(axis=1)
    assert float(terms["ratio"]) == pytest.approx(
        2 * np.mean((share - 14 / 23) ** 2), rel=1e-4
    )
    gaps = []
    for image in range(3):
        rows, size = np.asarray(taught.tokens[image, 1:], float), np.ones(25)
        for result in (out.results[0], out.results[2]):
            rows, size = oracles.apply_map(rows, size, np.asarray(result.dest[image]))
        live = np.asarray(out.state.mask[image]) > 0.5
        gaps.append((np.asarray(out.tokens[image, 1:]) - rows)[live])
    wanted = 0.5 * np.mean(np.concatenate(gaps) ** 2)
    assert float(terms["tokens"]) == pytest.approx(wanted, rel=1e-4)
    kl = 0.5 * oracles_learned.kl(out.logits, taught.logits)
    assert float(terms["kl"]) == pytest.approx(kl, rel=1e-4)


def test_targets_are_what_evaluation_keeps():
    """132 of 165, then 89 of 111, then 60 of 74; a prune that keeps all has none."""
    plan = build(12, 196, ImagePieceDynamicViT().steps(12), masked=True)
    one, two, three = 132 / 165, 89 / 111, 60 / 74
    wanted = [one, one * two, one * two * three]
    np.testing.assert_allclose(kept_shares(plan, 196), wanted)
    steps = ImagePieceDynamicViT(keep_rate=1.0).steps(12)
    assert kept_shares(build(12, 196, steps, masked=True), 196) == []


# Training by noisy top-k


def test_topk_removes_tokens_and_multiplies_by_one(with_topk, taught):
    model, run = with_topk
    out = run(masked.keys())
    assert out.state.x.shape == (3, 1 + 13, tiny.WIDTH) and out.state.mask is None
    _, prune, _ = out.results
    np.testing.assert_array_equal(prune.weight, np.ones((3, 23)))
    other = run(masked.keys(seed=1))
    assert (np.asarray(prune.dest) != np.asarray(other.results[1].dest)).any()
    terms = tiny.jit(lambda *a: ImagePieceDynamicViT().loss(*a, model.plan))(
        out, taught
    )
    assert float(terms["ratio"]) == 0
    assert min(float(terms["kl"]), float(terms["tokens"])) > 0.01


def noisy_topk(spread=1.0):
    """(parameters, compiled (parameters, x, train) -> result) with 9 tokens to 4."""
    reducer, counts = NoisyTopK(), Counts(n_in=9, n_out=4)

    def taps(x):
        rng = jax.random.split(jax.random.key(3), len(x))
        return Taps(x=x, size=jnp.ones(x.shape[:2]), rng=rng)

    def init(key):
        return reducer.init(key, taps(jnp.zeros((2, 9, 8))), counts)

    parameters = tiny.fill(jax.eval_shape(init, jax.random.key(0)))
    score = parameters["params"]["scores"]["score"]
    score["kernel"] *= np.float32(spread)
    # Far below 0 a log probability is the score itself: none are alike.
    score["bias"] -= np.float32([100 * (spread - 1), 0])

    def run(parameters, x, train=True):
        return reducer.apply(parameters, taps(x), counts, train)

    return parameters, run


def nine_tokens():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8)), jnp.float32)


def test_noise_decides_between_scores_that_are_close():
    """Spread out a lot, the scores alone decide, as in evaluation."""
    for spread, same in ((1.0, False), (1e5, True)):
        parameters, run = noisy_topk(spread)
        noisy, plain = (
            tiny.jit(run, static_argnums=2)(parameters, nine_tokens(), train).dest
            for train in (True, False)
        )
        assert bool((noisy == plain).all()) == same
        for row in np.asarray(noisy):
            assert sorted(row[row >= 0]) == [0, 1, 2, 3]


def test_the_score_learns_from_the_kept_tokens():
    """Slope of the last bias: sum of (token . gradient) p (1 - p) over the kept."""
    parameters, run = noisy_topk()
    x = nine_tokens()
    weight = np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)

    def objective(parameters):
        result = run(parameters, x)
        state = tokens.apply(start(x, num_prefix=0), result)
        return jnp.sum(state.x * weight), result.dest

    slopes, dest = tiny.jit(jax.grad(objective, has_aux=True))(parameters)
    wanted = 0.0
    for image in range(2):
        scores = oracles_learned.keep_scores(
            parameters["params"]["scores"], np.asarray(x[image], float)
        )
        for token, slot in enumerate(np.asarray(dest[image])):
            if slot >= 0:
                p = np.exp(scores[token, 0])
                wanted += x[image, token] @ weight[image, slot] * p * (1 - p)
    bias = slopes["params"]["scores"]["score"]["bias"]
    np.testing.assert_allclose(bias, [wanted, -wanted], rtol=1e-4)


# Fields


def test_it_has_the_fields_of_both():
    """And is trained as DynamicViT is."""
    assert ImagePieceDynamicViT.needs_teacher
    assert issubclass(ImagePieceDynamicViT, LearnedSelection)
    inference = ImagePieceDynamicViT().inference_fields()
    assert {"mode", "merge_ratio"} <= set(inference)
    assert not {"ratio_weight", "backbone_lr"} & set(inference)
