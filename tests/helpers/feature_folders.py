"""Folders of features, written and read by tests."""

import numpy as np

PHOTOGRAPH_COUNT = 22  # photographs, in batches of 4
DAMAGED_ROWS = (5, 9, 21)
WRITE_OPTIONS = {"batch_size": 4, "patches": True, "logits": True, "threads": 2}
ARRAY_NAMES = ("pooled", "logits", "patches")


def read_folder(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def load_arrays(folder):
    """{name: all rows} of a folder."""
    return {name: np.load(folder / f"{name}.npy") for name in ARRAY_NAMES}


def assert_folders_close(folder, other_folder):
    """Two folders have equal arrays up to rounding, as batch sizes differ."""
    other_arrays = load_arrays(other_folder)
    for name, array in load_arrays(folder).items():
        np.testing.assert_allclose(array, other_arrays[name], rtol=2e-3, atol=2e-3)
