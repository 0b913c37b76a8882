import itertools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from tests.helpers.rounding import assert_close

# Default draws of JAX 0.10.2. Every run so far has drawn them.
DRAWN = {
    "key": [[2161892057, 871100152], [1874072347, 1973776247]],
    "uniform": [[0.97904503, 0.37720144], [0.85104430, 0.79371524]],
    "normal": [[-0.08998215, -0.06593482], [-1.13009942, -1.65236807]],
    "integers": [[991, 70], [721, 105]],
    "gumbel": [[-1.05766320, 2.38599014], [0.42668635, 0.88152564]],
    "shared": 0.33424437,
}


def draw_all(positions):
    def draw(key):
        keys = jax.random.split(key, 4)
        return {
            "key": jax.random.key_data(key),
            "uniform": jax.random.uniform(keys[0], (3,))[:2],
            "normal": jax.random.normal(keys[1], (3,))[:2],
            "integers": jax.random.randint(keys[2], (3,), 0, 1000)[:2],
            "gumbel": jax.random.gumbel(keys[3], (3,))[:2],
        }

    keys = sample_keys(5, 7, positions, Purpose.AUGMENT)
    samples = jax.vmap(draw)(keys)
    return samples | {"shared": jax.random.uniform(batch_key(5, 7, Purpose.MIX))}


def uniform_draws(keys):
    return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))


def key_data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def test_purposes_keep_their_numbers():
    """A changed number would change every run."""
    numbers = {"INIT": 0, "AUGMENT": 1, "MIX": 2, "DROP_PATH": 3}
    numbers |= {"REDUCER": 5, "REDUCER_EVAL": 6}
    assert {purpose.name: int(purpose) for purpose in Purpose} == numbers


def test_draws_are_uniform_for_any_split_of_positions():
    def draw_paths(positions):
        return uniform_draws(sample_keys(3, 10, positions, Purpose.DROP_PATH))

    full = draw_paths(jnp.arange(8))
    for count in (2, 8):
        split = [draw_paths(positions) for positions in np.split(np.arange(8), count)]
        np.testing.assert_array_equal(np.concatenate(split), full)
    np.testing.assert_array_equal(draw_paths(jnp.arange(8)[::-1]), full[::-1])
    # 20,000 samples: mean .5 and no correlation between neighbors, to 5 sigma.
    keys = sample_keys(0, 0, jnp.arange(20_000), Purpose.DROP_PATH)
    u = np.asarray(jax.vmap(jax.random.uniform)(keys)) - 0.5
    assert abs(u.mean()) < 5 / np.sqrt(12 * u.size)
    assert abs((u[1:] * u[:-1]).mean()) < 5 / (12 * np.sqrt(u.size))


def test_no_two_draws_share_a_key():
    """About 1,300 keys of seeds, steps, purposes and positions."""
    keys = []
    steps = (0, 1, 5, 400_000)
    for seed, step, purpose in itertools.product((0, 1, 5), steps, Purpose):
        keys += key_data(batch_key(seed, step, purpose))
        keys += key_data(sample_keys(seed, step, np.arange(17), purpose))
    assert len(keys) == 3 * 4 * len(Purpose) * 18
    assert len(set(keys)) == len(keys)
    # A key is either drawn with or folded further, else streams may overlap.
    parent = batch_key(0, 1, Purpose.MIX)
    children = jax.vmap(jax.random.fold_in, (None, 0))(parent, jnp.arange(17))
    samples = sample_keys(0, 1, jnp.arange(17), Purpose.MIX)
    assert not set(key_data(children)) & set(key_data(samples))


def test_draws_stay_those_of_earlier_runs():
    for draw in (draw_all, jax.jit(draw_all)):
        draws = draw(np.arange(2))
        assert draws.keys() == DRAWN.keys()
        for name, values in DRAWN.items():
            # Keys are exact; a normal is a polynomial, a gumbel two logarithms.
            units = 0 if name in ("key", "integers") else 3
            assert_close(draws[name], values, units)
