"""Random keys: every draw is a function of its seed, step, sample and purpose.

A key depends on (seed, step, purpose) for draws that a whole batch shares, and on the
sample's position in the global batch too for draws of one sample. Nothing depends on
the number of devices or hosts, and no state is carried: a resumed run draws the same as
an uninterrupted one.

Nor does anything depend on settings of JAX, which users change by flags and in the
environment: generator, its form, seeds, types and modes are fixed here, as JAX has them
by default.
"""

import enum
import functools

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

# By jax_enable_x64, JAX's own types are others, which draw other numbers, and
# jax_high_dynamic_range_gumbel is another mode.
uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
normal = functools.partial(jax.random.normal, dtype=jnp.float32)
integers = functools.partial(jax.random.randint, dtype=jnp.int32)
gumbel = functools.partial(jax.random.gumbel, dtype=jnp.float32, mode="low")


def _partitionable(function):
    """A function of a generator, in the form that jax_threefry_partitionable sets.

    JAX calls it while it lowers a program, when no setting around a draw holds anymore.
    """

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
    """The purpose of a draw. The numbers are part of every run: never change one."""

    INIT = 0  # fresh parameters
    AUGMENT = 1  # RandAugment and random erasing of one sample
    MIX = 2  # mixup and cutmix: one draw per batch
    DROP_PATH = 3
    DROPOUT = 4  # nothing draws by it
    REDUCER = 5  # reducers that draw, in training: position in the global batch
    REDUCER_EVAL = 6  # the same in evaluation: step 0, position = index in the data set


# Two branches, so that a batch-wide draw and the keys of the samples never share a key.
_SHARED = 0
_EACH_SAMPLE = 1


def root_key(seed):
    """A typed key, which tells jax.random's functions the generator.

    seed: an integer or a scalar; the lowest 32 bits count
    """
    if isinstance(seed, int):
        seed %= 2**32
    # jax.random.key would add jax_random_seed_offset.
    low = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(threefry_prng_impl.seed(low), impl=_GENERATOR)


def batch_key(seed, step, purpose):
    """One typed key for the whole batch; `seed` and `step` are integers or scalars."""
    return jax.random.fold_in(_step_key(seed, step, purpose), _SHARED)


def sample_keys(seed, step, positions, purpose):
    """Typed keys [B] for `positions` [B], the samples' places in the global batch.

    Under gradient accumulation the positions count on through the step's micro-batches.
    """
    branch = jax.random.fold_in(_step_key(seed, step, purpose), _EACH_SAMPLE)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(branch, positions)


def _step_key(seed, step, purpose):
    """The key from which all keys of a purpose at a step are folded."""
    of_purpose = jax.random.fold_in(root_key(seed), int(purpose))
    return jax.random.fold_in(of_purpose, step)
