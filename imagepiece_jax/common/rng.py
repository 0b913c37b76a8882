"""Random keys: every draw is a function of its seed, step, sample and purpose.

Batch-wide draws use a key of (seed, step, purpose). Per-sample draws add the sample's
position in the global batch. Device and host counts change no draw, and no state is
carried: a resumed run draws the same numbers as an uninterrupted run.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Int, Key, PRNGKeyArray, UInt32

Scalar: TypeAlias = int | Int[Array, ""] | UInt32[Array, ""]

# Users change JAX's settings by flags and in the environment. No setting changes a
# draw: generator, its form, seeds, dtypes and modes are fixed here, at JAX's defaults.
# jax_enable_x64 would draw other numbers in other dtypes, and
# jax_high_dynamic_range_gumbel would change the mode.
draw_uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
draw_normal = functools.partial(jax.random.normal, dtype=jnp.float32)
draw_integers = functools.partial(jax.random.randint, dtype=jnp.int32)
draw_gumbel = functools.partial(jax.random.gumbel, dtype=jnp.float32, mode="low")


def _partitionable(function: Callable) -> Callable:
    """Call a generator's function with jax_threefry_partitionable always on."""

    # Set inside the call: JAX calls a generator while it lowers a program, after any
    # setting around the draw has ended.
    @functools.wraps(function)
    def call_partitionable(*args: Any) -> Any:
        with jax.threefry_partitionable(True):
            return function(*args)

    return call_partitionable


_GENERATOR = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=_partitionable(threefry_prng_impl.split),
    random_bits=_partitionable(threefry_prng_impl.random_bits),
    fold_in=threefry_prng_impl.fold_in,
    name="partitionable threefry2x32",
    tag="pry",
)


class Purpose(enum.IntEnum):
    """The purpose of a draw. The numbers are part of every run: never change them."""

    INIT = 0  # fresh parameters
    AUGMENT = 1  # RandAugment and random erasing of one sample
    MIX = 2  # mixup and cutmix: one draw per batch
    DROP_PATH = 3
    REDUCER = 5  # random reducers in training; position in the global batch
    REDUCER_EVAL = 6  # in evaluation: step 0, position = index in the data set


# Two branches: a batch-wide draw never shares its key with a sample.
_BATCH_BRANCH = 0
_SAMPLE_BRANCH = 1


def root_key(seed: Scalar) -> PRNGKeyArray:
    """Make a typed key with its generator. The lowest 32 bits of `seed` count."""
    if isinstance(seed, int):
        seed %= 2**32
    # jax.random.key would add jax_random_seed_offset.
    low_bits = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(threefry_prng_impl.seed(low_bits), impl=_GENERATOR)


def batch_key(seed: Scalar, step: Scalar, purpose: Purpose) -> PRNGKeyArray:
    """Typed key for the whole batch."""
    return jax.random.fold_in(_step_key(seed, step, purpose), _BATCH_BRANCH)


def sample_keys(
    seed: Scalar, step: Scalar, positions: Int[Array, " images"], purpose: Purpose
) -> Key[Array, " images"]:
    """Typed keys for samples at `positions` in the global batch.

    Under gradient accumulation, positions run on through the step's micro-batches.
    """
    branch_key = jax.random.fold_in(_step_key(seed, step, purpose), _SAMPLE_BRANCH)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(branch_key, positions)


def _step_key(seed: Scalar, step: Scalar, purpose: Purpose) -> PRNGKeyArray:
    """Parent key of all draws with one purpose in one step."""
    purpose_key = jax.random.fold_in(root_key(seed), int(purpose))
    return jax.random.fold_in(purpose_key, step)
