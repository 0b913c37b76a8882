"""Draws depend on what they are for, and on nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys


def draws(keys):
    return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))


def data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def test_purposes_keep_their_numbers():
    """Changing one would change every run that was ever started."""
    names = "INIT AUGMENT MIX DROP_PATH DROPOUT REDUCER REDUCER_EVAL".split()
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        name: number for number, name in enumerate(names)
    }


def test_draws_are_uniform_however_positions_are_split():
    def drawn(positions):
        return draws(sample_keys(3, 10, positions, Purpose.DROP_PATH))

    full = drawn(jnp.arange(8))
    for parts in (1, 2, 4, 8):
        cut = [drawn(part) for part in np.split(np.arange(8), parts)]
        np.testing.assert_array_equal(np.concatenate(cut), full)
    np.testing.assert_array_equal(drawn(jnp.arange(8)[::-1]), full[::-1])
    # 20,000 samples: mean .5 and no correlation between neighbors, to 5 sigma.
    keys = sample_keys(0, 0, jnp.arange(20_000), Purpose.DROP_PATH)
    u = np.asarray(jax.vmap(jax.random.uniform)(keys)) - 0.5
    assert abs(u.mean()) < 5 / np.sqrt(12 * u.size)
    assert abs((u[1:] * u[:-1]).mean()) < 5 / (12 * np.sqrt(u.size))


def test_traced_arguments_give_the_same_keys():
    """And so does any configured generator of JAX."""

    @jax.jit
    def traced(seed, step, positions):
        each = sample_keys(seed, step, positions, Purpose.MIX)
        return batch_key(seed, step, Purpose.MIX), each

    one, each = traced(7, 100, jnp.arange(4))
    with jax.default_prng_impl("rbg"):
        assert data(one) == data(batch_key(7, 100, Purpose.MIX))
    assert data(each) == data(sample_keys(7, 100, np.arange(4), Purpose.MIX))


def test_no_two_draws_share_a_key():
    """1500 keys over seeds, steps (a long run's too), purposes and positions."""
    keys = []
    steps = (0, 1, 5, 400_000)
    for seed, step, purpose in itertools.product((0, 1, 5), steps, Purpose):
        keys += data(batch_key(seed, step, purpose))
        keys += data(sample_keys(seed, step, np.arange(17), purpose))
    assert len(keys) == 3 * 4 * len(Purpose) * 18
    assert len(set(keys)) == len(keys)
    # A key is either drawn with or folded further: else streams may overlap.
    parent = batch_key(0, 1, Purpose.MIX)
    children = jax.vmap(jax.random.fold_in, (None, 0))(parent, jnp.arange(17))
    each = sample_keys(0, 1, jnp.arange(17), Purpose.MIX)
    assert not set(data(children)) & set(data(each))
