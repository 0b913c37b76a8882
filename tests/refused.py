"""Mistakes that a call refuses, by their facts; tests/errors.txt has the sentences."""

import contextlib

import pytest

from imagepiece_jax.errors import InputError


def untrained(part="head"):
    """Context in which a model is said to have a part that nothing has trained."""
    return pytest.warns(UserWarning, match=f"untrained {part}.*drawn from a seed")


@contextlib.contextmanager
def refused(subject, value=None, *texts):
    """Context in which an InputError about a subject is raised.

    subject: what its sentence names, or the last part of that path
    texts: other parts of its sentence, which tell mistakes of one subject apart
    """
    with pytest.raises(InputError) as caught:
        yield caught
    sentence = str(caught.value)
    assert str(subject).rpartition(".")[2].lstrip("-") in sentence, sentence
    assert all(text in sentence for text in texts), sentence
