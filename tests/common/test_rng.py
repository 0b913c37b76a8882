"""Draws depend on seed, step, sample and purpose alone."""

import ast
import contextlib
import itertools
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.common import rng
from imagepiece_jax.common.rng import Purpose, batch_key, sample_keys
from imagepiece_jax.models import variables
from imagepiece_jax.models.variables import draw_variables, variables_digest
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close

# {JAX setting that could change a draw: another value}. `rng` fixes all of them.
SETTINGS = {
    "jax_default_prng_impl": "rbg",  # the generator
    "jax_threefry_partitionable": False,  # the generator's form
    "jax_random_seed_offset": 7,  # added to seeds
    "jax_threefry_gpu_kernel_lowering": True,  # the implementation
    "jax_enable_custom_prng": True,  # typed keys
    "jax_numpy_dtype_promotion": "strict",  # result types
    "jax_enable_x64": True,  # default types
    "jax_high_dynamic_range_gumbel": True,  # bits of Gumbel noise
    "jax_numpy_rank_promotion": "allow",
}
# Default draws of JAX 0.10.2. Every run so far has drawn them.
DRAWN = {
    "key": [[2161892057, 871100152], [1874072347, 1973776247]],
    "uniform": [[0.97904503, 0.37720144], [0.85104430, 0.79371524]],
    "normal": [[-0.08998215, -0.06593482], [-1.13009942, -1.65236807]],
    "integers": [[991, 70], [721, 105]],
    "gumbel": [[-1.05766320, 2.38599014], [0.42668635, 0.88152564]],
    "shared": 0.33424437,
}


@contextlib.contextmanager
def jax_settings(names):
    """Context in which JAX has these settings."""
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        assert before[name] != SETTINGS[name]
        jax.config.update(name, SETTINGS[name])
    try:
        yield
    finally:
        for name in names:
            jax.config.update(name, before[name])


def draw_all(positions):
    def draw(key):
        keys = jax.random.split(key, 4)
        return {
            "key": jax.random.key_data(key),
            "uniform": rng.draw_uniform(keys[0], (3,))[:2],
            "normal": rng.draw_normal(keys[1], (3,))[:2],
            "integers": rng.draw_integers(keys[2], (3,), 0, 1000)[:2],
            "gumbel": rng.draw_gumbel(keys[3], (3,))[:2],
        }

    keys = sample_keys(5, 7, positions, Purpose.AUGMENT)
    samples = jax.vmap(draw)(keys)
    return samples | {"shared": rng.draw_uniform(batch_key(5, 7, Purpose.MIX))}


def uniform_draws(keys):
    return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))


def key_data(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


def test_keys_do_not_depend_on_the_count_of_keys():
    key = rng.root_key(3)
    assert key_data(jax.random.split(key, 5))[:4] == key_data(jax.random.split(key, 4))


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


def assert_drawn(draws):
    assert draws.keys() == DRAWN.keys()
    for name, values in DRAWN.items():
        dtype = {"key": np.uint32, "integers": np.int32}.get(name, np.float32)
        assert draws[name].dtype == dtype, name
        # Keys are exact; a normal is a polynomial, a gumbel two logarithms.
        units = 0 if dtype is not np.float32 else 3
        assert_close(draws[name], values, units)


@pytest.mark.parametrize("half", [0, 1])
def test_no_jax_setting_changes_a_draw(half):
    """Eagerly and in a program, because lowering reads some settings.

    Settings of one half do not hide each other's effects.
    """
    with jax_settings([*SETTINGS][half::2]):
        # New functions, which are not yet traced.
        assert_drawn(draw_all(np.arange(2)))
        assert_drawn(jax.jit(lambda positions: draw_all(positions))(np.arange(2)))


def test_no_setting_changes_fresh_variables():
    """Neither JAX's nor flax's, which changes parameters' keys."""

    def fresh_digest():
        learned = tiny_vit.small_reduction("token_learner")
        model = tiny_vit.model(learned, stem="conv", depth=2)
        return variables_digest(draw_variables(model, seed=2**32 - 1))

    before = fresh_digest()
    jax.clear_caches()
    variables._init_function.cache_clear()
    variables._traced_shapes.cache_clear()
    separator = flax.config.temp_flip_flag("fix_rng_separator", True)
    with jax_settings(SETTINGS), separator:
        assert fresh_digest() == before


def test_only_the_rng_module_draws():
    allowed = {"split", "fold_in"}
    package = pathlib.Path(imagepiece_jax.__file__).parent
    for file in package.rglob("*.py"):
        if file == pathlib.Path(rng.__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            used = isinstance(node, ast.Attribute) and ast.unparse(node.value)
            if used == "jax.random":
                assert node.attr in allowed, f"{file}: jax.random.{node.attr}"
            imported = isinstance(node, ast.ImportFrom) and node.module or ""
            assert not imported.startswith("jax.random"), file
