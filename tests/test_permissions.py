"""Who may read what the package writes: for every writer the umask decides."""

import os

import numpy as np
import pytest
import safetensors.numpy

from imagepiece_jax.common import files
from imagepiece_jax.common.orbax_files import StepWriter

UMASK = 0o027  # of no system by default: files are 0640 and folders 0750


def checkpoints(folder):
    writer = StepWriter(folder / "latest", num_newest=1)
    writer.save(1, {"params/kernel": np.zeros((300, 300), np.float32)}, {"step": 1})
    writer.wait()
    writer.close()


def a_library_that_chooses(folder):
    """A file and a folder of safetensors 0.8, which writes for the owner alone."""
    tensors = {"a": np.zeros(3, np.float32)}
    with files.replacement_file(folder / "file") as new:
        safetensors.numpy.save_file(tensors, new)
    with files.replacement_folder(folder / "folder") as new:
        safetensors.numpy.save_file(tensors, new / "file")


WRITERS = {"library": a_library_that_chooses, "checkpoints": checkpoints}


@pytest.fixture
def umask():
    before = os.umask(UMASK)
    yield UMASK
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_the_umask_decides(name, umask, tmp_path):
    folder = tmp_path / "written"
    folder.mkdir()
    WRITERS[name](folder)
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    assert any(path.is_file() for path in found.values())
    modes = {name: path.stat().st_mode & 0o777 for name, path in found.items()}
    assert modes == {name: 0o750 if found[name].is_dir() else 0o640 for name in found}
