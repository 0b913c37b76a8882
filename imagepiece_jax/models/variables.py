"""A model's variables: shapes, random values, checks."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.rng import Purpose, batch_key, root_key
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import BlockPlan, StepCounts


class StateDictMismatch(InputError):
    """Tensors do not fit a model.

    fresh_parts: names of parts to draw so the rest fits; () if the rest would not fit
    """

    def __init__(self, sentence: str, fresh_parts: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.fresh_parts = fresh_parts


def variable_shapes(model: ViT) -> dict[str, Any]:
    """The shapes and dtypes of a model's variables, without computing any."""
    # All blocks have equal shapes, so one block is traced for all plans and methods,
    # with a plan of no tokens. Every learned reducer is traced on its own.
    one_block_model = model.with_execution(axis_name=None)
    one_block_model = one_block_model.clone(plan=(BlockPlan(0, 0),), prop_attn=False)
    sides = image_sides(model.config.image_size)
    images = jax.ShapeDtypeStruct((1, *sides, 3), jnp.float32)
    # Flax modules are hashable, but its stubs do not say so.
    init = _init_function(one_block_model)  # pyrefly: ignore[bad-argument-type]
    one_block_shapes = jax.eval_shape(init, jax.eval_shape(root_key, 0), images)
    shapes = {}
    for collection, collection_shapes in one_block_shapes.items():
        shapes[collection] = {}
        for name, part_shapes in collection_shapes.items():
            copy_names = [name]
            if name == "blocks_0":
                copy_names = [f"blocks_{i}" for i in range(model.depth)]
            for copy_name in copy_names:
                shapes[collection][copy_name] = _copy_dicts(part_shapes)
    shapes_by_reducer = {}
    for index, block_plan in enumerate(model.plan):
        reducer = block_plan.reducer
        if not isinstance(reducer, nn.Module):
            continue
        if reducer not in shapes_by_reducer:
            shapes_by_reducer[reducer] = _reducer_shapes(model, block_plan)
        for collection, reducer_shapes in shapes_by_reducer[reducer].items():
            shapes[collection][f"reducer_{index}"] = _copy_dicts(reducer_shapes)
    return shapes


def _copy_dicts(tree):
    # Callers may change the dicts, but blocks of equal shapes share them.
    return jax.tree.map(lambda leaf: leaf, tree)


def _reducer_shapes(model, block_plan):
    """The shapes and dtypes of a learned reducer's variables: {collection: tree}."""
    reducer = block_plan.reducer
    num_tokens = block_plan.mlp_tokens - model.config.arch.prefix
    counts = block_plan.counts or StepCounts(num_tokens, num_tokens)

    def init(key):
        widths = model.config.embed_dim, model.config.num_heads
        inputs = contract.random_inputs(reducer, counts.n_in, *widths)
        # Some reducers read the grid. Variables do not depend on its shape.
        inputs = dataclasses.replace(inputs, grid=(1, counts.n_in))
        return reducer.init(key, inputs, counts)

    return jax.eval_shape(init, jax.eval_shape(root_key, 0))


def draw_variables(
    model: ViT, seed: int, parts: Collection[str] | None = None
) -> dict[str, Any]:
    """Draw a model's variables from a seed, or only the named parts."""
    image_shape = (1, *image_sides(model.config.image_size), 3)
    # device_put and jit: JAX's transfer guard refuses implicit transfers.
    images = jax.device_put(np.zeros(image_shape, np.float32))
    key = jax.jit(lambda: batch_key(seed, 0, Purpose.INIT))()
    # The device axis exists only inside a training step. Initial statistics do not
    # depend on it.
    model = model.with_execution(axis_name=None)
    init = _init_function(model)  # pyrefly: ignore[bad-argument-type]
    if parts is None:
        return init(key, images)

    part_names = tuple(parts)

    @jax.jit  # XLA drops the computation of other parts
    def draw(key, images):
        variables = {}
        for collection, params in init(key, images).items():
            drawn_names = [name for name in part_names if name in params]
            variables[collection] = {name: params[name] for name in drawn_names}
        return variables

    return draw(key, images)


def check_parts(part_names: Iterable[str], model: ViT, field: str) -> None:
    """Check that the model has every part; `field` is the setting, for the error."""
    leaves = traverse_util.flatten_dict(variable_shapes(model), sep="/")
    paths = [path.partition("/")[2] for path in leaves]  # without the collection
    for part_name in part_names:
        if not has_part(paths, part_name):
            # blocks_3 is listed as "blocks".
            parts = sorted({re.sub(r"_\d+$", "", path.split("/")[0]) for path in paths})
            raise InputError(f"{field} names {part_name!r}; the model has {parts}")


def has_part(paths: Iterable[str], part_name: str) -> bool:
    """Whether any path is in the part."""
    return any(is_in_parts(path, [part_name]) for path in paths)


def is_in_parts(path: str, part_names: Iterable[str]) -> bool:
    """Whether a path is in a part of `part_names`, with or without block number."""
    return any(re.match(rf"{re.escape(name)}(_\d+)?(/|$)", path) for name in part_names)


def variables_digest(tree: Any) -> str:
    """SHA-256 of a tree's paths and array bytes, as hex digits."""
    # Shapes and dtypes are left out: published results and saved folders hold digests.
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        hasher.update(jax.tree_util.keystr(path).encode())
        hasher.update(np.ascontiguousarray(leaf).tobytes())
    return hasher.hexdigest()


@functools.lru_cache(maxsize=4)
def _init_function(model):
    """`model.init`, traced once for both shapes and values."""
    return jax.jit(model.init)
