"""Rematerialization: the same numbers from the same parameters."""

import chex
import jax
import jax.numpy as jnp

from tests.models import tiny


def gradient(model, variables, train):
    """A function of the images: logits and the gradient of their squares."""
    draw = jax.random.split(jax.random.key(1), 3)
    keys = {"drop_path": draw, "reducer": draw} if train else None

    def loss(params, images):
        outputs = model.apply({"params": params}, images, train=train, keys=keys)
        return jnp.sum(outputs.logits**2), outputs.logits

    return jax.grad(loss, has_aux=True), variables["params"], tiny.images()


def test_same_gradient_by_another_program():
    """Attention with taps, drop path, merging and pruning included."""
    short = tiny.IMAGEPIECE | {"merge_blocks": (0,), "prune_blocks": (1,)}
    plain = tiny.model(short, drop_path_rate=0.3, prop_attn=True, depth=2)
    twice = plain.clone(remat=True)
    variables = tiny.variables(plain)
    assert jax.tree.structure(tiny.shapes(twice)) == jax.tree.structure(variables)
    results = []
    for model in (plain, twice):
        fn, *arguments = gradient(model, variables, train=True)
        results.append(tiny.jit(fn)(*arguments))
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_only_training_computes_twice():
    """Attention and MLP of each of the three blocks are marked, in training alone."""
    model = tiny.model().clone(remat=True)
    for train, count in ((True, 2 * tiny.DEPTH), (False, 0)):
        fn, *arguments = gradient(model, tiny.variables(model), train)
        program = jax.make_jaxpr(fn)(*arguments)
        names = [equation.primitive.name for equation in program.eqns]
        assert sum(name in ("remat2", "checkpoint") for name in names) == count
