"""Checks of fields: what each kind allows, and the sentence for anything else."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import validate


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_a_rate_is_from_zero_to_one(value):
    with pytest.raises(InputError, match=r"^config\.reduction\.x is .*0 to 1$"):
        validate.check_rate("x", value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True, None])
def test_a_weight_is_finite_and_not_negative(value):
    with pytest.raises(InputError, match=r"^config\.reduction\.x is .*from 0$"):
        validate.check_weight("x", value)


@pytest.mark.parametrize("value", [2, 3.0, "3", True, None])
def test_a_count_is_a_whole_number_of_some_size(value):
    with pytest.raises(InputError, match=r"x is .*allowed are whole numbers from 3$"):
        validate.check_count("x", value, least=3)


@pytest.mark.parametrize("value", [3, ("a", 3), (1.5,), (True,), "36", None])
def test_blocks_are_whole_numbers(value):
    with pytest.raises(InputError, match=r"x is .*whole numbers, such as \(3, 6, 9\)$"):
        validate.check_blocks("x", value)


@pytest.mark.parametrize("value", [2, True, "0", None, 0.0])
def test_a_choice_is_of_the_kind_of_what_it_equals(value):
    with pytest.raises(InputError, match=rf"x is {value!r}; allowed are 0, 1$"):
        validate.check_choice("x", value, (0, 1))


def test_what_is_allowed_becomes_plain_python():
    """NumPy's numbers and the lists of JSON included."""
    found = [
        validate.check_rate("x", np.float32(0.5)),
        validate.check_weight("x", 2),
        validate.check_count("x", np.int64(5)),
        validate.check_blocks("x", list(np.arange(2))),
    ]
    assert found == [0.5, 2.0, 5, (0, 1)]
    assert [type(value) for value in found] == [float, float, int, tuple]
    assert [type(block) for block in found[-1]] == [int, int]
