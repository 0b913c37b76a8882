"""The umask decides the modes of every written file."""

import os

import numpy as np
import pytest
import safetensors.numpy

from imagepiece_jax.common import files
from tests.helpers.small_states import save

UMASK = 0o027  # files are 0640 and folders 0750, unlike any system's default


def save_checkpoint(folder):
    save(folder, [1])


def write_by_safetensors(folder):
    """Write a file, and a folder by safetensors 0.8, which excludes other users."""
    tensors = {"a": np.zeros(3, np.float32)}
    files.replace_file(folder / "file", "text")
    with files.replacement_folder(folder / "folder") as new:
        safetensors.numpy.save_file(tensors, new / "file")


WRITERS = {"library": write_by_safetensors, "checkpoints": save_checkpoint}


@pytest.fixture
def umask():
    before = os.umask(UMASK)
    yield UMASK
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_the_umask_decides_modes(name, umask, tmp_path):
    folder = tmp_path / "written"
    folder.mkdir()
    WRITERS[name](folder)
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    assert any(path.is_file() for path in paths.values())
    modes = {name: path.stat().st_mode & 0o777 for name, path in paths.items()}
    assert modes == {name: 0o750 if paths[name].is_dir() else 0o640 for name in paths}
