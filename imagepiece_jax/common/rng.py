"""Random keys: every draw is a function of its seed, step, sample and purpose.

Batch-wide draws use a key of (seed, step, purpose). Per-sample draws add the sample's
position in the global batch. Device and host counts change no draw, and no state is
carried: a resumed run draws the same numbers as an uninterrupted run.
"""

import enum
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PRNGKeyArray, UInt32

Scalar: TypeAlias = int | Int[Array, ""] | UInt32[Array, ""]


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
    """Make a typed key. The lowest 32 bits of `seed` count."""
    if isinstance(seed, int):
        seed %= 2**32
    return jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")


def batch_key(seed: Scalar, step: Scalar, purpose: Purpose) -> PRNGKeyArray:
    """Typed key for the whole batch."""
    return jax.random.fold_in(_step_key(seed, step, purpose), _BATCH_BRANCH)


def sample_keys(
    seed: Scalar, step: Scalar, positions: Int[Array, " images"], purpose: Purpose
) -> Key[Array, " images"]:
    """Typed keys for samples at `positions` in the global batch, not a micro-batch."""
    branch_key = jax.random.fold_in(_step_key(seed, step, purpose), _SAMPLE_BRANCH)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(branch_key, positions)


def _step_key(seed, step, purpose):
    """Parent key of all draws with one purpose in one step."""
    purpose_key = jax.random.fold_in(root_key(seed), int(purpose))
    return jax.random.fold_in(purpose_key, step)
