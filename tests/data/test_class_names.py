"""Names of classes as people give them."""

import numpy as np
import pytest

from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.errors import InputError


@pytest.mark.parametrize(
    "names, strings",
    [
        ([7, 8], ("7", "8")),
        (np.arange(2), ("0", "1")),
        (np.array(["a", "b"]), ("a", "b")),
        (["a", None], ("a", None)),
    ],
)
def test_names_are_strings(names, strings):
    found = checked_names(names, 2)
    assert found == strings
    assert {type(name) for name in found} <= {str, type(None)}


@pytest.mark.parametrize(
    "names", [b"ab", {0: "a", 1: "b"}, {"a", "b"}, ["a", 1.5], ["a", b"b"], [[1], [2]]]
)
def test_what_is_no_list_of_names_is_refused(names):
    with pytest.raises(InputError, match="class_names"):
        checked_names(names, 2)
