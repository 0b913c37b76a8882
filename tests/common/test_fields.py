"""Checked fields: what each kind allows, and the sentence for anything else."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from imagepiece_jax.common import fields
from imagepiece_jax.common.fields import CheckedFields
from imagepiece_jax.errors import InputError


def made(value, x):
    """The value that a field x of this kind has in an object made with `value`."""
    cls = dataclasses.make_dataclass(
        "Made",
        [("x", object, x)],
        bases=(CheckedFields,),
        frozen=True,
    )
    return cls(value).x


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_a_rate_is_from_zero_to_one(value):
    with pytest.raises(InputError, match=r"^x is .*; .* from 0 to 1$"):
        made(value, fields.rate())


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True, None])
def test_a_weight_is_finite_and_not_negative(value):
    with pytest.raises(InputError, match=r"^x is .*numbers from 0$"):
        made(value, fields.weight())


@pytest.mark.parametrize("value", [2, 3.0, "3", True, None])
def test_a_count_is_a_whole_number_of_some_size(value):
    with pytest.raises(InputError, match=r"x is .* allowed: whole numbers from 3$"):
        made(value, fields.count(least=3))


@pytest.mark.parametrize("value", [3, ("a", 3), (1.5,), (True,), "36", None])
def test_blocks_are_whole_numbers(value):
    with pytest.raises(InputError, match=r"x is .*whole numbers, such as \(3, 6, 9\)$"):
        made(value, fields.blocks())


@pytest.mark.parametrize("value", [2, True, "0", None, 0.0])
def test_a_choice_is_of_the_kind_of_what_it_equals(value):
    with pytest.raises(InputError, match=rf"x is {value!r}; allowed: 0, 1$"):
        made(value, fields.choice(0, (0, 1)))


@pytest.mark.parametrize(
    "bounds, words, right, wrong",
    [
        ({"least": 0, "below": 1}, "from 0 to below 1", [0, 0.9], [1, -1]),
        ({"above": 0, "most": 1}, "above 0 and up to 1", [0.1, 1], [0, 1.1]),
        ({"above": 0, "below": 1}, "above 0 and below 1", [0.1], [0, 1]),
        ({"least": -1, "most": 1}, "from -1 to 1", [-1, 1], [-1.1, 1.1]),
        ({"above": 0}, "above 0", [1e-9], [0, float("inf")]),
    ],
)
def test_bounds_of_a_number(bounds, words, right, wrong):
    for value in right:
        assert made(value, fields.number(**bounds)) == value
    for value in wrong:
        with pytest.raises(InputError, match=f"x is {value}; .* numbers {words}$"):
            made(value, fields.number(**bounds))


def test_what_is_allowed_becomes_plain_python():
    """NumPy's numbers and the lists of JSON included."""
    found = [
        made(np.float32(0.5), fields.rate()),
        made(2, fields.weight()),
        made(np.int64(5), fields.count()),
        made(list(np.arange(2)), fields.blocks()),
        made([1, np.float32(0.5)], fields.several((), fields.rate(), "rates")),
    ]
    assert found == [0.5, 2.0, 5, (0, 1), (1.0, 0.5)]
    assert [type(value) for value in found] == [float, float, int, tuple, tuple]
    assert [type(block) for block in found[-2]] == [int, int]


def test_what_may_be_left_open():
    assert made(None, fields.optional(fields.count())) is None
    assert made(3, fields.optional(fields.count())) == 3
    with pytest.raises(InputError, match="x is -1; allowed: whole numbers from 0$"):
        made(-1, fields.optional(fields.count()))


@dataclasses.dataclass(frozen=True)
class Light(CheckedFields):
    group: ClassVar[str] = "light"

    color: str = fields.choice(allowed=("red", "green"))
    watts: float | None = fields.optional(fields.positive())


@dataclasses.dataclass(frozen=True)
class Street(CheckedFields):
    group: ClassVar[str] = ""

    length: float = fields.weight()
    light: Light


def test_fields_are_read_from_their_places_in_a_config():
    config = {"length": 3, "light": {"color": "red", "other": 1}, "more": 2}
    assert Street.from_config(config) == Street(3.0, Light("red", None))
    for config, place in (({}, "length"), ({"length": 3}, "light.color")):
        with pytest.raises(InputError, match=rf"^config\.{place} is missing; a config"):
            Street.from_config(config)
    with pytest.raises(InputError, match="^config.light.color is 'blue'; .* 'red', "):
        Street.from_config({"length": 3, "light": {"color": "blue"}})


@dataclasses.dataclass(frozen=True)
class Lamp(CheckedFields):
    watts: float = fields.positive(3)


def test_fields_of_no_config_are_named_alone():
    with pytest.raises(InputError, match="^watts is 0; allowed: numbers above 0$"):
        Lamp(0)
