"""Settings of every test, and the assets that live outside the repository."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def assets():
    """Folder with weights, data and reference outputs; skips where it is absent."""
    folder = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", ROOT.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip(
            f"no weights in {folder}: point IMAGEPIECE_ASSETS at a folder with "
            "weights/, data/ and fixtures/"
        )
    return folder
