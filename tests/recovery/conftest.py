"""Tiny models, before and after a recovery."""

import pytest

from tests.helpers import tiny_vit
from tests.helpers.recovery_trials import reduced_model, run_recovery


@pytest.fixture(scope="module")
def vit():
    return reduced_model()


@pytest.fixture(scope="module")
def better(vit):
    return run_recovery(vit, steps=40)


@pytest.fixture(scope="module")
def public():
    return tiny_vit.pretrained(depth=2)
