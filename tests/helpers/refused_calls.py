"""Contexts for refused calls and their warnings."""

import contextlib

import pytest

from imagepiece_jax.errors import InputError


def warns_untrained(part="head"):
    return pytest.warns(UserWarning, match=f"untrained {part}.*drawn from a seed")


@contextlib.contextmanager
def refused(*texts):
    """Context that must raise an InputError with these texts."""
    with pytest.raises(InputError) as caught:
        yield caught
    message = str(caught.value)
    for text in texts:
        assert str(text) in message, message
