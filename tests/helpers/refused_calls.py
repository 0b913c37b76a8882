"""Mistakes that a call refuses."""

import contextlib

import pytest

from imagepiece_jax.errors import InputError


def untrained(part="head"):
    """Context in which a model is said to have a part that nothing has trained."""
    return pytest.warns(UserWarning, match=f"untrained {part}.*drawn from a seed")


@contextlib.contextmanager
def refused(*texts):
    """Context in which an InputError is raised, whose sentence has these texts."""
    with pytest.raises(InputError) as caught:
        yield caught
    sentence = str(caught.value)
    for text in texts:
        assert str(text) in sentence, sentence
