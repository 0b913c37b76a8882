"""Tiny models in masked training, and the same models with tokens removed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.block_plan import KeepFixed, Step
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.state import Assignment
from tests.helpers import tiny_vit


def keys(batch=3, seed=0):
    """Keys of the reducers, one per image, like a training step's."""
    return {"reducer": jax.random.split(jax.random.key(seed), batch)}


def train(model):
    """Compiled (variables, images, keys) -> Outputs in training."""
    return tiny_vit.compiled(
        lambda variables, *args: model.apply(variables, args[0], True, args[1])
    )


def trained(fields):
    """A training model, and a compiled function of keys that returns Outputs."""
    model = tiny_vit.model(fields, masked=True)
    variables = tiny_vit.variables(model)
    run = train(model)
    return model, lambda keys: run(variables, tiny_vit.images(), keys)


def lean(variables, to):
    """Set the bias of all selectors so log odds of keeping are about `to`."""
    for name, parameters in variables["params"].items():
        if name.startswith("reducer_"):
            score = parameters["scores"]["score"]
            score["bias"] = np.float32([to / 2, -to / 2])
    return variables


def taught(model, seed=5):
    """Random Outputs in a model's shapes, to teach a student."""
    draw = np.random.default_rng(seed)
    outputs = jax.eval_shape(model.apply, tiny_vit.shapes(model), tiny_vit.images())
    return jax.tree.map(lambda a: draw.normal(size=a.shape).astype(a.dtype), outputs)


@dataclasses.dataclass(frozen=True)
class KeepShare(Reducer):
    """Keep only these tokens, in every image."""

    tokens: tuple[int, ...]

    def __call__(self, inputs, counts, train=False):
        dest = [
            self.tokens.index(i) if i in self.tokens else DROPPED
            for i in range(counts.n_in)
        ]
        dest = jnp.broadcast_to(jnp.asarray(dest), inputs.x.shape[:2])
        return Assignment(slot_of_token=dest, n_out=len(self.tokens))


def without(model, masks):
    """`model` without the masked tokens. masks: {block: [n] of 0 and 1}.

    A mask covers the first block's tokens and is part of the previous mask.
    """
    steps = []
    held = list(range(tiny_vit.TOKENS))
    for block, mask in masks.items():
        rest = [token for token in held if mask[token] > 0.5]
        keep = KeepShare(tuple(held.index(token) for token in rest))
        steps.append(Step(block, keep, KeepFixed(len(rest)), "pre"))
        held = rest
    plan = block_plan.plan_blocks(
        tiny_vit.DEPTH, tiny_vit.TOKENS, steps, model.config.arch.prefix
    )
    return model.clone(plan=plan)
