import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax.benchmark import workloads
from imagepiece_jax.common import parallel
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.train_step import batch_shapes
from tests.helpers import tiny_vit
from tests.helpers.traced_programs import equations

EVERY_PART = {"dist_token": True, "registers": 2, "layer_scale": True, "mlp": "swiglu"}
EVERY_PART |= {"rotary": {"temperature": 100.0}, "attn_norm": True, "mlp_norm": True}
FUSED = tiny_vit.with_fields(tiny_vit.FUSED, blocks=(0, 1))
CASES = {
    "dense": (None, {"arch": EVERY_PART, "embed_dim": 36, "depth": 1}),
    "dropped behind": (FUSED, {"depth": 2}),
    "fused inside": ("mctf:r=7:blocks=(0,)", {"dist_token": True, "depth": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_head_only_logits_and_gradients_equal_the_full_models(case):
    """With drop path and rematerialization. Unread values have gradients of zero."""
    reduction, options = CASES[case]
    full = tiny_vit.model(reduction, drop_path_rate=0.5, **options)
    variables = tiny_vit.variables(full)
    image_keys = jax.random.split(jax.random.key(1), 3)
    keys = {"drop_path": image_keys, "reducer": image_keys}
    results = []
    for head_only in (False, True):
        model = full.with_execution(head_only=head_only, remat=head_only)

        def loss(params, images, model=model):
            out = model.apply({"params": params}, images, True, keys)
            return jnp.sum(out.logits**2), (out.logits, out.pooled, out.tokens[:, 0])

        run = tiny_vit.compiled(jax.grad(loss, has_aux=True))
        results.append(run(variables["params"], tiny_vit.images()))
    (gradients, outputs), (fewer, head_outputs) = results
    chex.assert_trees_all_close(head_outputs, outputs, rtol=1e-4, atol=1e-5)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    chex.assert_trees_all_close(fewer, gradients, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("pool", ["mean", "map"])
def test_a_head_that_reads_patches_needs_the_full_block(pool):
    model = tiny_vit.model("tome:counts=(25,21)", arch={"pool": pool}, depth=2)
    inputs = tiny_vit.shapes(model), tiny_vit.images()
    traced = jax.make_jaxpr(model.with_execution(head_only=True).apply)(*inputs)
    assert str(traced) == str(jax.make_jaxpr(model.apply)(*inputs))


def mlp_rows(fn, *arguments, hidden=4 * tiny_vit.WIDTH, **options):
    """Row counts of each MLP's first product in the traced `fn`."""
    rows = []
    for equation in equations(jax.make_jaxpr(fn, **options)(*arguments)):
        shape = equation.outvars[0].aval.shape if equation.outvars else ()
        if equation.primitive.name == "dot_general" and shape[1:] == (hidden,):
            rows.append(shape[0])
    return rows


def test_logits_alone_need_only_the_heads_tokens():
    model = tiny_vit.model()
    run = optimize.make_logits_function(model)
    rows = mlp_rows(run, tiny_vit.shapes(model), tiny_vit.images(2))
    assert rows == [52, 52, 2]  # 26 tokens an image


@pytest.mark.parametrize(
    "method, left_out", [("none", True), ("dynamicvit:blocks=(1,)", False)]
)
def test_training_uses_head_only_unless_a_loss_reads_tokens(method, left_out):
    config = quickstart.get_config()
    config.model.depth = 2
    config.update(grad_accum_steps=1, batch_size=6, reduction=method)
    if method == "none":
        config.distill.kind = "soft"
    run = RunConfig.from_config(config)
    step, make_state, model, teacher = workloads.make_training_step(run)
    state = jax.eval_shape(make_state, variable_shapes(model))
    arrays = (state, batch_shapes(run, (1, 6)), variable_shapes(teacher))
    axes = [(parallel.DEVICE_AXIS, 1)]
    rows = mlp_rows(step, *arrays, hidden=4 * model.config.embed_dim, axis_env=axes)
    assert rows.count(6) == 3 * left_out, rows
