"""Mistakes that a call refuses."""

import contextlib

import pytest

from imagepiece_jax.errors import InputError


def untrained(part="head"):
    """Context that must warn of an untrained part of a model."""
    return pytest.warns(UserWarning, match=f"untrained {part}.*drawn from a seed")


@contextlib.contextmanager
def refused(*texts):
    """Context that must raise an InputError with these texts."""
    with pytest.raises(InputError) as caught:
        yield caught
    sentence = str(caught.value)
    for text in texts:
        assert str(text) in sentence, sentence
