"""PyTorch's files: types, views, and the form before PyTorch 1.6.

test_tensor_files.py has the refused ones.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.weights.tensor_files import read_state_dict
from tests.helpers.pth_files import (
    assert_same,
    mapping,
    old_tensor,
    old_torch,
    parameter,
    tensor,
    write_pth,
)


@pytest.mark.parametrize(
    "storage, array",
    [
        ("FloatStorage", np.array([1.5, -2, 3e-40, 7], "<f4")),
        ("DoubleStorage", np.array([1e300, -2, 3, 7], "<f8")),
        ("HalfStorage", np.array([1.5, -2, 6e-8, 7], "<f2")),
        ("BFloat16Storage", np.array([1, -2, 0.15625, 7], jnp.bfloat16)),
        ("LongStorage", np.array([2**40, -2, 3, 7], "<i8")),
        ("BoolStorage", np.array([True, False, True, True])),
    ],
)
def test_pth_files_keep_their_types(tmp_path, storage, array):
    content = mapping(a=tensor("0", 4, (2, 2), (2, 1), storage=storage))
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": array}))
    assert_same(read, {"a": array.reshape(2, 2)})


def test_pth_views_share_one_storage(tmp_path):
    """Transposed, sliced, scalar and empty views; parameters are their tensors."""
    flat = np.arange(12, dtype="<f4")
    content = mapping(
        transposed=tensor("0", 12, (4, 3), (1, 4)),
        column=parameter(tensor("0", 12, (3,), (4,), offset=1)),
        scalar=tensor("0", 12, (), (), offset=5),
        empty=tensor("0", 12, (0, 3), (3, 1)),
    )
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": flat}))
    np.testing.assert_array_equal(read["transposed"], flat.reshape(3, 4).T)
    np.testing.assert_array_equal(read["column"], [1, 5, 9])
    assert read["scalar"].shape == ()
    assert read["scalar"] == 5
    assert read["empty"].shape == (0, 3)
    read["column"][:] = -1
    assert read["scalar"] == 5 and read["transposed"].min() == 0, "views share memory"


def test_files_before_pytorch_1_6_are_read(tmp_path):
    first = old_tensor("7", 4, (2, 2), (1, 2))
    content = mapping(a=first, b=parameter(old_tensor("3", 5, (5,), (1,))))
    path = tmp_path / "a.pth"
    path.write_bytes(old_torch(content, keys=("3", "7"), counts=(5, 4)))
    expected = np.arange(4, dtype="<f4").reshape(2, 2).T
    assert_same(read_state_dict(path), {"a": expected, "b": np.arange(5, dtype="<f4")})
