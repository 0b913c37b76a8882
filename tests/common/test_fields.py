"""Checked fields: what each kind allows, and the sentence for anything else."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import fields
from imagepiece_jax.common.fields import CheckedFields
from imagepiece_jax.errors import InputError


def value_of(value, x):
    """The value that a field x of this kind has in an object made with `value`."""
    cls = dataclasses.make_dataclass(
        "Made", [("x", object, x)], bases=(CheckedFields,), frozen=True
    )
    return cls(value).x


NAN = float("nan")
INF = float("inf")
LEAST = "numbers of at least"


@pytest.mark.parametrize(
    "kind, allowed, right, wrong",
    [
        (fields.rate(), "numbers from 0 to 1", [0, 1], [-0.1, 1.1, NAN, "0.5", True]),
        (
            fields.weight(),
            f"finite {LEAST} 0",
            [0, 1e9],
            [-1, NAN, INF, "1", True, None],
        ),
        (fields.positive(3), "finite numbers above 0", [1e-9], [0, INF, None]),
        (fields.count(least=None), "whole numbers", [-9], [0.5, None]),
        (fields.count(least=3), f"whole {LEAST} 3", [3], [2, 3.0, "3", True, None]),
        (
            fields.blocks(),
            "whole numbers, such as (3, 6, 9)",
            [(), (3, 6)],
            [3, ("a", 3), (1.5,), (True,), "36", None],
        ),
        (fields.choice(0, (0, 1)), "0, 1", [0, 1], [2, True, "0", None, 0.0]),
        (fields.optional(fields.count()), f"whole {LEAST} 0", [None, 3], [-1]),
        (fields.number(least=0, below=1), f"{LEAST} 0 and below 1", [0], [1, -1]),
        (fields.number(above=0, most=1), "numbers above 0 and up to 1", [1], [0, 1.1]),
        (fields.number(above=0, below=1), "numbers above 0 and below 1", [0.1], [0, 1]),
        (fields.number(), "finite numbers", [-1e9], [-INF, INF, NAN, 10**309]),
        (fields.number(most=1), "finite numbers up to 1", [-1e9], [-INF, 2]),
        (fields.number(least=-1, most=1), "numbers from -1 to 1", [-1, 1], [-1.1, 1.1]),
    ],
)
def test_values_of_a_kind(kind, allowed, right, wrong):
    for value in right:
        assert value_of(value, kind) == value
    for value in wrong:
        with pytest.raises(InputError) as caught:
            value_of(value, kind)
        error = caught.value
        assert (error.field, error.allowed) == ("x", allowed)
        assert error.value is value


@pytest.mark.parametrize("text", ["{[]: 1}", "-" * 100_000 + "1", "(" * 5_000])
def test_text_that_python_cannot_evaluate_stays_text(text):
    assert fields.literal(text) == text


def test_what_is_allowed_becomes_plain_python():
    """Numbers and arrays of other libraries and the lists of JSON included."""
    found = [
        value_of(np.float32(0.5), fields.rate()),
        value_of(2, fields.weight()),
        value_of(np.int64(5), fields.count()),
        value_of(list(np.arange(2)), fields.blocks()),
        value_of([1, np.float32(0.5)], fields.several((), fields.rate(), "rates")),
    ]
    assert found == [0.5, 2.0, 5, (0, 1), (1.0, 0.5)]
    assert [type(value) for value in found] == [float, float, int, tuple, tuple]
    assert [type(block) for block in found[-2]] == [int, int]
    found = [
        value_of(jnp.float32(0.5), fields.rate()),
        value_of(np.array(5), fields.count()),
        value_of(jnp.arange(2), fields.blocks()),
        value_of("50%", fields.share()),
    ]
    assert found == [0.5, 5, (0, 1), 0.5]
    assert [type(value) for value in found] == [float, int, tuple, float]


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
