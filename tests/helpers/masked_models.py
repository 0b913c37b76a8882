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


def keys(batch=3):
    """A training step's keys for reducers, one per image."""
    return {"reducer": jax.random.split(jax.random.key(0), batch)}


def training(model):
    """Compiled (variables, images, keys) -> Outputs in training."""
    return tiny_vit.compiled(
        lambda variables, images, keys: model.apply(variables, images, True, keys)
    )


def training_model(reduction):
    """A training model, and a compiled function of keys that returns Outputs."""
    model = tiny_vit.model(reduction, masked=True)
    variables = tiny_vit.variables(model)
    run = training(model)
    return model, lambda keys: run(variables, tiny_vit.images(), keys)


def lean_selectors(variables, log_odds):
    """Set all selectors' bias so that the log odds of keeping are about `log_odds`."""
    for name, parameters in variables["params"].items():
        if name.startswith("reducer_"):
            score = parameters["scores"]["score"]
            score["bias"] = np.float32([log_odds / 2, -log_odds / 2])
    return variables


def random_outputs(model, seed=5):
    """Random Outputs in a model's shapes, as a teacher's."""
    rng = np.random.default_rng(seed)
    outputs = jax.eval_shape(model.apply, tiny_vit.shapes(model), tiny_vit.images())
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), outputs)


@dataclasses.dataclass(frozen=True)
class KeepListed(Reducer):
    tokens: tuple[int, ...]

    def __call__(self, inputs, counts, train=False):
        slots = np.full(inputs.x.shape[:2], DROPPED)
        slots[:, list(self.tokens)] = np.arange(len(self.tokens))
        return Assignment(slot_of_token=jnp.asarray(slots), n_out=len(self.tokens))


def without_masked(model, masks):
    """`model` without the masked tokens. masks: {block: [n] of 0 and 1}.

    A mask covers the first block's tokens and is part of the previous mask.
    """
    steps = []
    live = list(range(tiny_vit.TOKENS))
    for block, mask in masks.items():
        left = [token for token in live if mask[token] > 0.5]
        keep = KeepListed(tuple(live.index(token) for token in left))
        steps.append(Step(block, keep, KeepFixed(len(left)), "pre"))
        live = left
    sizes = tiny_vit.DEPTH, tiny_vit.TOKENS
    plan = block_plan.plan_blocks(*sizes, steps, model.config.arch.prefix)
    return model.clone(plan=plan)
