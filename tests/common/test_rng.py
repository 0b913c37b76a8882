import itertools

import jax
import numpy as np

from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from tests.helpers.rounding import assert_close

# Draws of every run so far.
KEYS = [[2161892057, 871100152], [1874072347, 1973776247]]
UNIFORM = [[0.97904503, 0.37720144], [0.85104430, 0.79371524]]
SHARED = 0.33424437


def key_data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def test_purposes_keep_their_numbers():
    """A changed number would change every run."""
    numbers = {"INIT": 0, "AUGMENT": 1, "MIX": 2, "DROP_PATH": 3}
    numbers |= {"REDUCER": 5, "REDUCER_EVAL": 6}
    assert {purpose.name: int(purpose) for purpose in Purpose} == numbers


def test_no_two_draws_share_a_key():
    """About 1,300 keys of seeds, steps, purposes and positions."""
    keys = []
    steps = (0, 1, 5, 400_000)
    for seed, step, purpose in itertools.product((0, 1, 5), steps, Purpose):
        keys += key_data(batch_key(seed, step, purpose))
        keys += key_data(sample_keys(seed, step, np.arange(17), purpose))
    assert len(keys) == 3 * 4 * len(Purpose) * 18
    assert len(set(keys)) == len(keys)


def test_draws_stay_those_of_earlier_runs_for_any_split_of_positions():
    keys = sample_keys(5, 7, np.arange(2), Purpose.AUGMENT)
    np.testing.assert_array_equal(jax.random.key_data(keys), KEYS)
    for position in (0, 1):
        (own_key,) = sample_keys(5, 7, np.array([position]), Purpose.AUGMENT)
        np.testing.assert_array_equal(jax.random.key_data(own_key), KEYS[position])
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key, 4)[0], (3,)))
    assert_close(draw(keys)[:, :2], UNIFORM, units=3)
    assert_close(jax.random.uniform(batch_key(5, 7, Purpose.MIX)), SHARED, units=3)


def test_draws_of_neighboring_samples_are_uncorrelated():
    """20,000 samples, to 5 sigma."""
    keys = sample_keys(0, 0, np.arange(20_000), Purpose.DROP_PATH)
    u = np.asarray(jax.vmap(jax.random.uniform)(keys)) - 0.5
    assert abs(u.mean()) < 5 / np.sqrt(12 * u.size)
    assert abs((u[1:] * u[:-1]).mean()) < 5 / (12 * np.sqrt(u.size))
