"""Random keys: every draw is a function of its seed, step, sample and purpose.

A key depends on (seed, step, purpose) for draws that a whole batch shares, and on the
sample's position in the global batch too for draws of one sample. Nothing depends on
the number of devices or hosts, and no state is carried: a resumed run draws the same as
an uninterrupted one.
"""

import enum
import functools

import jax
import jax.numpy as jnp

# JAX's own types depend on a flag of users, jax_enable_x64, and other types draw other
# numbers.
uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
normal = functools.partial(jax.random.normal, dtype=jnp.float32)
integers = functools.partial(jax.random.randint, dtype=jnp.int32)


class Purpose(enum.IntEnum):
    """The purpose of a draw. The numbers are part of every run: never change one."""

    INIT = 0  # fresh parameters
    AUGMENT = 1  # crops, flips, RandAugment, random erasing of one sample
    MIX = 2  # mixup and cutmix: one draw per batch
    DROP_PATH = 3
    DROPOUT = 4
    REDUCER = 5  # reducers that draw, in training: position in the global batch
    REDUCER_EVAL = 6  # the same in evaluation: step 0, position = index in the data set


# Two branches, so that a batch-wide draw and the keys of the samples never share a key.
_SHARED = 0
_EACH_SAMPLE = 1


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
    # The generator is named: a run must not depend on jax's configurable default.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), int(purpose))
    return jax.random.fold_in(key, step)
