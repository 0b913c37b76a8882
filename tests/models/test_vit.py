import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagepiece_jax.inference import optimize
from imagepiece_jax.models import vit
from imagepiece_jax.reduction.provenance import gather_tokens
from tests.helpers import oracles, oracles_peaks, slow_deit, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

assert_outputs_close = functools.partial(assert_close, units=128)


def reducing_blocks(model):
    return [block for block, plan in enumerate(model.plan) if plan.counts]


def slow_outputs(model, variables, images, results=(), scale=None, prop_attn=False):
    """Stacked float64 outputs: logits, tokens, sizes, and block inputs per image."""
    params = jax.tree.map(lambda a: np.asarray(a, float), variables["params"])
    options = {"heads": tiny_vit.HEADS, "patch": tiny_vit.PATCH, "prop_attn": prop_attn}
    outputs = []
    for b, image in enumerate(np.asarray(images, float)):
        moves = {}
        for block, result in zip(reducing_blocks(model), results, strict=True):
            weight = None if result.weight is None else np.asarray(result.weight[b])
            slots = np.asarray(result.slot_of_token[b])
            moves[block] = slots, weight, result.n_out, result.mean
        options["scale"] = None if scale is None else scale[b]

        def move(block, x, size, _, moves=moves):
            if block in moves:
                return oracles.apply_map(x, size, *moves[block])
            return x, size

        outputs.append(slow_deit.forward(params, image, reduce_tokens=move, **options))
    logits, tokens, size, records = zip(*outputs, strict=True)
    return np.stack(logits), np.stack(tokens), np.stack(size), records


PIECE = tiny_vit.IMAGEPIECE
SLOW = {  # {name: (reduction, attention row in reducer inputs, score)}
    "dense": ("none", None, None),
    "key": (PIECE, "cls_attn", "class"),
    "token": (f"{PIECE}:metric=token:size_weighting=False", "cls_attn", "class"),
    "fused": (tiny_vit.FUSED, "cls_attn", "class"),
    "both rows": (
        f"{PIECE}:score=class_and_mean",
        "cls_and_mean_attn",
        "class_and_mean",
    ),
    "mean row": (f"{tiny_vit.FUSED}:score=mean", "mean_attn", "mean"),
}
ROWS = ("cls_attn", "mean_attn", "cls_and_mean_attn")


@pytest.mark.parametrize("name", SLOW)
def test_a_model_equals_a_slow_deit_with_the_same_moves(name):
    reduction, row, score = SLOW[name]
    prop_attn = name not in ("dense", "token")
    model = tiny_vit.model(reduction, prop_attn=prop_attn)
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2)
    out = tiny_vit.compiled(model.apply)(variables, images)
    logits, tokens, size, records = slow_outputs(
        model, variables, images, out.results, prop_attn=prop_attn
    )
    assert_outputs_close(out.logits, logits)
    assert_outputs_close(out.tokens, tokens)
    np.testing.assert_array_equal(out.state.size, size)
    slots = np.asarray(tiny_vit.final_slots(out))
    blocks = reducing_blocks(model)
    assert len(blocks) > 1 or name == "dense"
    steps = list(zip(blocks, out.reducer_inputs, out.results, strict=True))
    for b in range(2):
        source = np.arange(tiny_vit.TOKENS)
        for block, inputs, result in steps:
            record = records[b][block]
            attention = record.query, record.key, record.size
            slow_scores = oracles_peaks.scores(score, *attention)
            assert [each for each in ROWS if getattr(inputs, each) is not None] == [row]
            assert_outputs_close(getattr(inputs, row)[b], slow_scores[1:])
            assert_outputs_close(inputs.x[b], record.x[1:])
            if name == "token" and inputs.metric is not None:
                assert_outputs_close(inputs.metric[b], record.x[1:])
            elif inputs.metric is not None:
                assert_outputs_close(inputs.metric[b], record.key[1:].mean(axis=1))
            patches = oracles.count_sources(source, len(record.x) - 1)
            np.testing.assert_array_equal(inputs.size[b], patches)
            source = oracles.compose(np.asarray(result.slot_of_token[b]), source)
        np.testing.assert_array_equal(slots[b], source)
        patches = oracles.count_sources(source, size.shape[1] - 1)
        np.testing.assert_array_equal(size[b, 1:], patches)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    fused = tiny_vit.with_fields(tiny_vit.FUSED, blocks=(0,))
    options = {"dtype": "bfloat16", "stem": "conv", "prop_attn": True, "depth": 2}
    model = tiny_vit.model(fused, **options)
    variables = tiny_vit.variables(model)
    images = tiny_vit.images()
    types = {leaf.dtype for leaf in jax.tree.leaves(tiny_vit.shapes(model))}
    assert types == {jnp.dtype("float32")}

    def loss(params):
        changed = variables | {"params": params}
        out, _ = model.apply(changed, images, True, mutable=["batch_stats"])
        return jnp.sum(out.logits**2), out

    slopes = tiny_vit.compiled(jax.grad(loss, has_aux=True))
    gradients, out = slopes(variables["params"])
    assert out.logits.dtype == jnp.float32
    assert out.state.x.dtype == out.tokens.dtype == jnp.bfloat16
    assert out.state.size.dtype == out.reducer_inputs[0].cls_attn.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables["params"])
    chex.assert_tree_all_finite(gradients)
    for path, leaf in traverse_util.flatten_dict(gradients, sep="/").items():
        # Softmax cancels a key bias.
        assert np.asarray(leaf).any() or path.endswith("attn/k/bias"), path


def test_weights_start_from_an_untruncated_normal():
    """A normal cut at two deviations would have no value beyond 0.04."""
    model = tiny_vit.model(embed_dim=96, depth=1)
    drawn = tiny_vit.compiled(model.init)(jax.random.key(0), tiny_vit.images(1))
    params = drawn["params"]
    del params["patch_embed"]  # test_layers_stems
    for name, values in traverse_util.flatten_dict(params, sep="/").items():
        if name.endswith(("bias", "scale")):
            assert (values == name.endswith("scale")).all(), name
        else:
            assert abs(values.std() / 0.02 - 1) < 4 / (2 * values.size) ** 0.5, name
    magnitudes = np.abs(params["blocks_0"]["mlp"]["fc1"]["kernel"])
    assert abs((magnitudes > 0.04).mean() - 0.0455) < 0.005


path_scale = tiny_vit.compiled(vit.draw_drop_path_scale, static_argnums=(1, 2))


def sample_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_drop_path_rates_rise_linearly_with_depth():
    count = 4000
    scale = path_scale(sample_keys(count), 5, 0.4)
    assert (scale[:, 0] == 1).all()
    for block, rate in enumerate([0, 0.1, 0.2, 0.3, 0.4]):
        alive = scale[:, block] != 0
        assert_close(scale[:, block][alive], 1 / (1 - rate), units=8)
        deviation = (rate * (1 - rate) / count) ** 0.5
        np.testing.assert_allclose(alive.mean(0), 1 - rate, atol=4 * deviation + 1e-9)
        both_alive = alive.all(axis=1).mean()  # branches draw independently
        np.testing.assert_allclose(both_alive, (1 - rate) ** 2, atol=0.035)


def test_training_scales_both_branches_of_every_block():
    model = tiny_vit.model(drop_path_rate=0.5)
    images = tiny_vit.images()
    variables = tiny_vit.variables(model)
    keys = {"drop_path": sample_keys(3)}
    run = tiny_vit.compiled(model.apply, static_argnums=2)
    out = run(variables, images, True, keys)
    scale = np.float64(path_scale(keys["drop_path"], tiny_vit.DEPTH, 0.5))
    assert (scale == 0).any()
    logits, _, _, _ = slow_outputs(model, variables, images, scale=scale)
    assert_outputs_close(out.logits, logits)


def test_only_training_drops_paths():
    model = tiny_vit.model(drop_path_rate=0.5)
    images = tiny_vit.images()
    shapes = tiny_vit.shapes(model)
    with pytest.raises(ValueError, match="needs keys=.*drop_path"):
        jax.eval_shape(functools.partial(model.apply, train=True), shapes, images)
    keys = {"drop_path": sample_keys(3)}
    with_keys = functools.partial(model.apply, train=False, keys=keys)
    evaluated = str(jax.make_jaxpr(with_keys)(shapes, images))
    undropped = tiny_vit.model(drop_path_rate=0.0).apply
    assert evaluated == str(jax.make_jaxpr(undropped)(shapes, images))
    with refused("rngs has ['dropout']", "keys"):  # they would draw nothing
        model.apply(shapes, images, rngs={"dropout": jax.random.key(0)})


def test_post_norms_end_the_branches():
    """Norms of scale 0 return their biases, which the branches add."""
    reduction = tiny_vit.with_fields(tiny_vit.EVIT, blocks=(0,))
    model = tiny_vit.model(reduction, arch={"post_norm": True}, depth=1)
    variables = tiny_vit.variables(model)
    block = variables["params"]["blocks_0"]
    norms = block["norm1"], block["norm2"]
    run = tiny_vit.compiled(model.apply)
    states = []
    added = norms[0]["bias"] + norms[1]["bias"]
    for name in ("scale", "bias"):
        for norm in norms:
            norm[name] = np.zeros_like(norm[name])
        states.append(run(variables, tiny_vit.images()).state.x)
    after, before = states
    assert_outputs_close(after - before, np.broadcast_to(added, after.shape))


def test_without_a_pool_logits_are_all_tokens():
    model = tiny_vit.model(tiny_vit.EVIT, arch={"pool": "none"}, num_classes=0)
    out = tiny_vit.compiled(model.apply)(tiny_vit.variables(model), tiny_vit.images())
    chex.assert_shape(out.logits, (3, model.plan[-1].mlp_tokens, tiny_vit.WIDTH))
    np.testing.assert_array_equal(out.logits, out.tokens)
    np.testing.assert_array_equal(out.pooled, out.tokens)


@pytest.mark.parametrize("reduction", ["tome:r=4", "grid_pooling:grid_size=2:block=1"])
def test_the_head_reads_the_mean_of_remaining_patches(reduction):
    """Without a class token, merged tokens count as often as they have patches."""
    model = tiny_vit.model(reduction, class_token=False, prop_attn=True)
    variables = tiny_vit.variables(model)
    out = tiny_vit.compiled(model.apply)(variables, tiny_vit.images())
    slots = jnp.asarray(tiny_vit.final_slots(out))
    mean = np.asarray(gather_tokens(jnp.asarray(out.tokens), slots)).mean(axis=1)
    assert np.abs(mean - out.tokens.mean(axis=1)).max() > 0.001
    head = variables["params"]["head"]
    logits = mean @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-4)


def test_every_key_and_block_draws_independently():
    """Four images are two images, repeated: the same pixels draw other tokens."""
    reductions = [f"random:keep_rate=0.6:blocks=({block},)" for block in (0, 1)]
    models = [tiny_vit.model(reduction, depth=2) for reduction in reductions]
    variables = tiny_vit.variables(models[0])
    images = jnp.concatenate([tiny_vit.images(2)] * 2)

    @tiny_vit.jit
    def kept_tokens(keys):  # of each block, [block, image, patch]
        outputs = [model.apply(variables, images, keys=keys) for model in models]
        return jnp.stack([out.results[0].slot_of_token >= 0 for out in outputs])

    keys = sample_keys(4)
    draws = np.asarray(kept_tokens({"reducer": keys}))
    assert (draws.sum(axis=2) == 15).all()
    for each in (draws, np.asarray(kept_tokens(None))):
        assert len({row.tobytes() for row in each.reshape(8, -1)}) == 8
    # Rolled keys roll the draws.
    rolled = kept_tokens({"reducer": jnp.roll(keys, 1)})
    np.testing.assert_array_equal(rolled, np.roll(draws, 1, axis=1))
    other_draws = kept_tokens({"reducer": sample_keys(4, seed=1)})
    assert (draws != other_draws).any(axis=2).all()


@pytest.mark.parametrize("train, count", [(True, 2 * tiny_vit.DEPTH), (False, 0)])
def test_only_training_rematerializes(train, count):
    model = tiny_vit.model().with_execution(remat=True)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, tiny_vit.images(), train).logits)

    traced = jax.make_jaxpr(jax.grad(loss))(tiny_vit.shapes(model)["params"])
    names = [equation.primitive.name for equation in traced.eqns]
    assert sum(name in ("remat2", "checkpoint") for name in names) == count


@pytest.mark.parametrize("folded", [False, True])
def test_pixels_beyond_whole_patches_are_not_read(folded):
    """They are at the bottom and on the right."""
    cut, whole = (tiny_vit.model(image_size=side, depth=1) for side in (23, 20))
    variables = tiny_vit.variables(whole)
    chex.assert_trees_all_equal_shapes(tiny_vit.shapes(cut), variables)
    images = tiny_vit.images(2, side=23)
    if folded:
        cut, _ = optimize.fold_and_cast(cut, variables)
        whole, variables = optimize.fold_and_cast(whole, variables)
    cut_logits = tiny_vit.logits(cut)(variables, images)
    whole_logits = tiny_vit.logits(whole)(variables, images[:, :20, :20])
    np.testing.assert_allclose(cut_logits, whole_logits, rtol=1e-5, atol=1e-5)
