import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import block_plan, contract
from imagepiece_jax.reduction.block_plan import KeepShare, Step, StepCounts
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import Reducer, TopK, keep_highest
from imagepiece_jax.reduction.state import Assignment, Masking, Mixing
from tests.helpers import masked_models, tiny_vit
from tests.helpers.refused_calls import refused
from tests.models.test_vit_families import small_case

RIGHT = [0, 1, 2, 3, 0, -1]


def assign(*rows, **fields):
    """An Assignment to four slots, one row per image."""
    return Assignment(**{"slot_of_token": np.int32(rows), "n_out": 4} | fields)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "result, n_out, message",
    [
        (assign(RIGHT, [0, 1, 2, 4, 0, 3]), 4, "image 1: no slot .* token 3"),
        (assign(RIGHT, [0, 1, 1, 3, 0, -1]), 4, "image 1: no token is in slot 2"),
        (assign(RIGHT, merges=False), 4, "several tokens are in slot 0"),
        (assign(RIGHT, weight=np.nan * ones(1, 6)), 4, "weight is not finite at 0"),
        (ones(1, 6), 4, "returned .*ndarray.*Assignment"),
        (assign(RIGHT, n_out=3), 4, "n_out is 3; .* 4, of 6"),
        (assign(RIGHT, n_out=7), 7, "n_out is 7; .* of 6"),
        (assign(RIGHT[:5]), 4, r"slot_of_token has shape \(1, 5\); .*'B', 6"),
        (assign(RIGHT, slot_of_token=ones(1, 6)), 4, "slot_of_token is float32"),
        (Mixing(ones(1, 6, 4)), 4, r"has shape \(1, 6, 4\); .* 4, 6\]"),
        (Masking(ones(1, 6)), 4, "keep leaves 6 tokens"),
    ],
)
def test_a_broken_contract_is_named(result, n_out, message):
    with pytest.raises(InputError, match=message):
        contract.check_values(result, StepCounts(n_in=6, n_out=n_out))


@dataclasses.dataclass(frozen=True)
class KeepFewer(Reducer):
    def __call__(self, inputs, counts, train=False):
        return keep_highest(inputs.x[..., 0], counts.n_out - 1)


def method_class(steps):
    named = {"steps": lambda method, depth: steps}
    return dataclasses.dataclass(frozen=True)(type("Mine", (Method,), named))


@pytest.mark.parametrize(
    "reducer, rule, message",
    [
        (TopK(), block_plan.KeepFixed(0), "KeepFixed at block 1 leaves 0 tokens"),
        (TopK(), block_plan.KeepFixed(26), "leaves 26 tokens, not 1 to 25"),
        (Retokenize(), KeepShare(0.5), "of None candidates"),
    ],
)
def test_a_wrong_method_is_named_when_a_model_is_made(
    monkeypatch, reducer, rule, message
):
    monkeypatch.setitem(METHODS, "wrong", method_class([Step(1, reducer, rule)]))
    with refused("wrong", message):
        tiny_vit.model("wrong")


def test_every_model_checks_shapes(monkeypatch):
    steps = [Step(1, KeepFewer(), KeepShare(0.6))]
    monkeypatch.setitem(METHODS, "wrong", method_class(steps))
    model = tiny_vit.model("wrong")
    with pytest.raises(InputError, match="^block 1, KeepFewer: n_out is 14; .* 15"):
        jax.eval_shape(model.apply, tiny_vit.shapes(model), ones(1, 20, 20, 3))


def learned_model(name, **options):
    """A method's model, with the fewest blocks that train all parameters."""
    depth, reduction, _ = small_case(name)
    if name in ("dtem", "imagepiece_dynamicvit"):
        depth += 1  # only the next block reads the last decision
    if name == "dtem":  # DTEM has one count per block
        reduction = tiny_vit.small_reduction(name)
    return tiny_vit.model(reduction, depth=depth, **options)


LEARNED = [name for name in METHODS if learned_model(name).has_selectors]
assert len(LEARNED) >= 5


@pytest.mark.parametrize("name", LEARNED)
def test_the_logits_teach_every_parameter_of_a_reducer(name):
    """In bfloat16, in training form. A choice such as top-k would learn nothing."""
    model = learned_model(name, masked=True, dtype="bfloat16")
    params = tiny_vit.variables(model)["params"]
    images = tiny_vit.images(4)
    probe = np.random.default_rng(0).normal(size=(4, tiny_vit.CLASSES))
    learned = {key: params[key] for key in params if key.startswith("reducer_")}

    def loss(learned):
        variables = {"params": params | learned}
        out = model.apply(variables, images, True, masked_models.keys(4))
        return jnp.sum(out.logits * probe)

    gradients = tiny_vit.compiled(jax.grad(loss))(learned)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, learned)
    chex.assert_tree_all_finite(gradients)
    gradients = traverse_util.flatten_dict(gradients, sep="/")
    largest_gradients = {path: np.abs(gradients[path]).max() for path in gradients}
    assert [path for path, slope in largest_gradients.items() if not slope] == []
    assert max(largest_gradients.values()) > 1e-3
