"""A tiny classifier, its weights in a file, and pictures for it."""

import numpy as np
import pytest

from tests.models import tiny


@pytest.fixture(scope="module")
def trained():
    return tiny.pretrained(depth=1)


@pytest.fixture(scope="module")
def weights_file(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return tiny.write(folder / "tiny.npz", trained.variables)


@pytest.fixture(scope="module")
def pictures():
    shape = (3, tiny.SIDE, tiny.SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
