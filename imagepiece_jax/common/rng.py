"""Random keys: every draw is a function of its seed, step, sample and purpose.

Batch-wide draws use a key of (seed, step, purpose). Per-sample draws add the sample's
position in the global batch. Device and host counts change no draw, and no state is
carried: a resumed run draws the same numbers as an uninterrupted run.
"""

import enum
import functools

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

# Users change JAX's settings by flags and in the environment. No setting changes a
# draw: generator, its form, seeds, dtypes and modes are fixed here, at JAX's defaults.
# jax_enable_x64 would draw other numbers in other dtypes, and
# jax_high_dynamic_range_gumbel would change the mode.
draw_uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
draw_normal = functools.partial(jax.random.normal, dtype=jnp.float32)
draw_integers = functools.partial(jax.random.randint, dtype=jnp.int32)
draw_gumbel = functools.partial(jax.random.gumbel, dtype=jnp.float32, mode="low")


def _partitionable(function):
    """Call a generator's function with jax_threefry_partitionable always on."""

    # Set inside the call: JAX calls a generator while it lowers a program, after any
    # setting around the draw has ended.
    @functools.wraps(function)
    def call(*args):
        with jax.threefry_partitionable(True):
            return function(*args)

    return call


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


def root_key(seed):
    """Make a typed key with its generator. The lowest 32 bits of `seed` count."""
    if isinstance(seed, int):
        seed %= 2**32
    # jax.random.key would add jax_random_seed_offset.
    low = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(threefry_prng_impl.seed(low), impl=_GENERATOR)


def batch_key(seed, step, purpose):
    """Typed key for the whole batch. `seed` and `step` are integers or scalars."""
    return jax.random.fold_in(_step_key(seed, step, purpose), _BATCH_BRANCH)


def sample_keys(seed, step, positions, purpose):
    """Typed keys [B] for samples at `positions` [B] in the global batch.

    Under gradient accumulation, positions run on through the step's micro-batches.
    """
    branch = jax.random.fold_in(_step_key(seed, step, purpose), _SAMPLE_BRANCH)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(branch, positions)


def _step_key(seed, step, purpose):
    """Parent key of all draws with one purpose in one step."""
    of_purpose = jax.random.fold_in(root_key(seed), int(purpose))
    return jax.random.fold_in(of_purpose, step)
