"""Mistakes that a call refuses, by their facts; tests/errors.txt has the sentences."""

import contextlib

import pytest

from imagepiece_jax.errors import InputError


def untrained(part="head"):
    """Context in which a model is said to have a part that nothing has trained."""
    return pytest.warns(UserWarning, match=f"untrained {part}.*drawn from a seed")


@contextlib.contextmanager
def refused(subject, value=None, *texts):
    """Context in which an InputError about a field (or place) and its value is raised.

    texts: parts of its sentence, which tell mistakes of one field apart
    """
    with pytest.raises(InputError) as caught:
        yield caught
    error = caught.value
    assert (error.field or error.place, error.value) == (str(subject), value)
    assert all(text in str(error) for text in texts), str(error)
