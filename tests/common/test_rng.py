import itertools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from tests.helpers.rounding import assert_close

# Draws of every run so far.
KEYS = [[2161892057, 871100152], [1874072347, 1973776247]]
UNIFORM = [[0.97904503, 0.37720144], [0.85104430, 0.79371524]]
SHARED = 0.33424437


def uniform_draws(keys):
    return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))


def key_data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def test_purposes_keep_their_numbers():
    """A changed number would change every run."""
    numbers = {"INIT": 0, "AUGMENT": 1, "MIX": 2, "DROP_PATH": 3}
    numbers |= {"REDUCER": 5, "REDUCER_EVAL": 6}
    assert {purpose.name: int(purpose) for purpose in Purpose} == numbers


def test_draws_are_equal_for_any_split_of_positions():
    def draw_paths(positions):
        return uniform_draws(sample_keys(3, 10, positions, Purpose.DROP_PATH))

    full = draw_paths(jnp.arange(8))
    for count in (2, 8):
        split = [draw_paths(positions) for positions in np.split(np.arange(8), count)]
        np.testing.assert_array_equal(np.concatenate(split), full)
    np.testing.assert_array_equal(draw_paths(jnp.arange(8)[::-1]), full[::-1])


def test_no_two_draws_share_a_key():
    """About 1,300 keys of seeds, steps, purposes and positions."""
    keys = []
    steps = (0, 1, 5, 400_000)
    for seed, step, purpose in itertools.product((0, 1, 5), steps, Purpose):
        keys += key_data(batch_key(seed, step, purpose))
        keys += key_data(sample_keys(seed, step, np.arange(17), purpose))
    assert len(keys) == 3 * 4 * len(Purpose) * 18
    assert len(set(keys)) == len(keys)


def test_draws_stay_those_of_earlier_runs():
    keys = sample_keys(5, 7, np.arange(2), Purpose.AUGMENT)
    np.testing.assert_array_equal(jax.random.key_data(keys), KEYS)
    first_keys = jax.vmap(lambda key: jax.random.split(key, 4)[0])(keys)
    assert_close(uniform_draws(first_keys)[:, :2], UNIFORM, units=3)
    assert_close(jax.random.uniform(batch_key(5, 7, Purpose.MIX)), SHARED, units=3)
