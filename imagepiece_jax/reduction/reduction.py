"""Reductions as records: a method, and whether attention is proportional.

A reduction's text is METHOD:FIELD=VALUE:FIELD=VALUE, such as
"evit:keep_rate=0.7:blocks=(3,6,9)", or a share of the dense model's MACs, such as 0.5.
"""

import ast
import dataclasses
from typing import Any

from imagepiece_jax.common.checks import check_choice, check_range, find_similar_name
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.method import Method

# errors of `ast.literal_eval` for a text that is not a literal
NOT_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A model's token reduction; equal reductions compute the same.

    `str(reduction)` is a text for `Reduction.read`.
    """

    method: Method  # plain Method: placeholder for the method recommended for a model
    # whether attention is proportional; None: the default of method and model
    prop_attn: bool | None = None
    # the text with a cost that was replaced by these counts, for messages
    typed: str | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("prop_attn", self.prop_attn, (None, True, False))

    @classmethod
    def read(cls, value: "ReductionLike", prop_attn: bool | None = None) -> "Reduction":
        """Read the reduction given by a caller, a config or a file.

        value: a share of the dense model's MACs for the recommended method; a text,
            "tome", "tome:r=8", "tome:macs=0.5" or "0.5", with Python literals and
            unquoted words as field values; a Method; a Reduction; None: the dense model
        prop_attn: from the model's config; the reduction may not contradict it
        Raises InputError for an invalid value, and for two values of prop_attn.
        """
        if value is None:
            reduction = DENSE_REDUCTION
        elif isinstance(value, Reduction):
            reduction = value
        elif isinstance(value, Method):
            reduction = cls(value)
        elif isinstance(value, str):
            reduction = cls._parse_text(value)
        else:
            check_range("reduction", value, above=0, most=1)
            reduction = cls(Method(macs=value))
        if prop_attn is None or reduction.prop_attn == prop_attn:
            return reduction
        if reduction.prop_attn is not None:
            raise InputError(f"reduction is {reduction}, but prop_attn is {prop_attn}")
        return dataclasses.replace(reduction, prop_attn=prop_attn)

    @classmethod
    def _parse_text(cls, text):
        """Parse a method's name or a share of the MACs, and FIELD=VALUE behind ":"."""
        method_text, *field_texts = [part.strip() for part in text.split(":")]
        field_values: dict[str, Any] = {}
        literal = _parse_literal(method_text)
        if isinstance(literal, int | float):
            method_class = Method
            field_values["macs"] = literal
        else:
            method_class = methods.find_method(method_text)
        if method_class is None:
            similar = find_similar_name(method_text, METHODS)
            suggestion = f" (did you mean {similar!r}?)" if similar else ""
            raise InputError(
                f"reduction is {text!r}; it must be one share of the MACs, or begin "
                f"with a method{suggestion}: {', '.join(METHODS)}, or your own (in "
                f"METHODS, or an entry point {methods.ENTRY_POINTS})"
            )
        known_fields = [field.name for field in dataclasses.fields(method_class)]
        known_fields.append("prop_attn")
        for field_text in field_texts:
            field_name, equals_sign, value_text = field_text.partition("=")
            is_known = equals_sign and field_name in known_fields
            if not is_known or field_name in field_values:
                raise InputError(
                    f"reduction is {text!r}; {field_text!r} must be FIELD=VALUE, once, "
                    f"with a field of {method_text}: {', '.join(known_fields)}"
                )
            field_values[field_name] = _parse_literal(value_text)
        prop_attn = field_values.pop("prop_attn", None)
        with titled_errors(f"reduction {text}"):
            return cls(method_class(**field_values), prop_attn)

    def __str__(self) -> str:
        """METHOD:FIELD=VALUE:.., with the fields that differ from their defaults."""
        field_values = {}
        for field in dataclasses.fields(self.method):
            value = getattr(self.method, field.name)
            if value != field.default:
                field_values[field.name] = value
        if self.prop_attn is not None:
            field_values["prop_attn"] = self.prop_attn
        head = self.name
        if type(self.method) is Method:  # a placeholder, no subclass: its share of MACs
            head = str(field_values.pop("macs"))
        parts = [head]
        for field_name, value in field_values.items():
            value_text = value  # a word stands without quotes
            if not isinstance(value, str):
                value_text = repr(value).replace(" ", "")
            parts.append(f"{field_name}={value_text}")
        return ":".join(parts)

    @property
    def name(self) -> str:
        """The method's name in METHODS; otherwise its class name."""
        method_class = type(self.method)
        module_name = method_class.__module__.rpartition(".")[2]
        METHODS.get(module_name)  # imports this class alone into METHODS.data
        names = (name for name, value in METHODS.data.items() if value is method_class)
        return next(names, method_class.__name__)


ReductionLike = Reduction | Method | str | float | None
DENSE_REDUCTION = Reduction(METHODS["none"]())


def _parse_literal(text):
    """Parse a Python literal, lists as tuples; return any other text unchanged."""
    try:
        value = ast.literal_eval(text)
    except NOT_LITERAL:
        return text
    return tuple(value) if isinstance(value, list) else value
