"""Random draws of reducers are functions of the image's key and the block alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny


@pytest.fixture(scope="module")
def kept():
    """keys -> tokens kept in each of four images, [4, 25] bool, by block.

    The images are two different ones and the same two again.
    """
    fields = {"name": "random", "keep_rate": 0.6}
    models = [tiny.model(fields | {"blocks": (b,)}, depth=2) for b in (0, 1)]
    variables, images = tiny.variables(models[0]), tiny.images(2)

    @tiny.jit
    def run(keys):
        twice = jnp.concatenate([images, images])
        outputs = [model.apply(variables, twice, keys=keys) for model in models]
        return [out.results[0].dest >= 0 for out in outputs]

    return lambda keys: np.asarray(run(keys))


def keys_of(seed):
    return {"reducer": jax.random.split(jax.random.key(seed), 4)}


def test_the_same_keys_draw_the_same(kept):
    np.testing.assert_array_equal(kept(keys_of(0)), kept(keys_of(0)))
    assert (kept(keys_of(0)) != kept(keys_of(1))).any(axis=2).all()


def test_every_key_and_every_block_draws_its_own(kept):
    draws = kept(keys_of(0))
    assert (draws.sum(axis=2) == 15).all()
    assert len({row.tobytes() for row in draws.reshape(8, -1)}) == 8


def test_the_draw_goes_with_the_key_not_with_the_place(kept):
    turned = {"reducer": keys_of(0)["reducer"][::-1]}
    np.testing.assert_array_equal(kept(turned), kept(keys_of(0))[:, ::-1])


def test_without_keys_the_draws_are_fixed_and_differ_by_image(kept):
    draws = kept(None)
    np.testing.assert_array_equal(draws, kept(None))
    assert len({row.tobytes() for row in draws.reshape(8, -1)}) == 8
