"""Reductions as dicts of a name and fields: defaults, comparison, labels."""

from imagepiece_jax.reduction import methods

DENSE = {"name": "none"}
# Fields of the model that a reduction may name beside those of its method.
MODEL_FIELDS = ("prop_attn",)
# Fields of former versions, with the value that had no effect: saved runs have them.
RETIRED = {"round_to": 0}
RENAMED = {"score": {"columns": "received", "cls": "class"}}  # values of fields
ADDED = ("score", "inattentive")  # fields whose default is what methods did before


def with_defaults(reduction):
    """A reduction with all fields that decide what it computes.

    reduction: a dict of a name and fields; None or empty: the dense model
    """
    fields, of_model = split(reduction or DENSE)
    method = methods.create(**fields)
    defaults = {field: method.model_fields.get(field, False) for field in MODEL_FIELDS}
    name = fields.get("name", DENSE["name"])
    return {"name": name, **defaults, **of_model, **method.inference_fields()}


def changed(reduction, base=None):
    """`reduction` with only those fields that differ from those of another.

    base: the other reduction; None: the method with its defaults
    """
    base = with_defaults(base or {"name": reduction["name"]})
    fields = with_defaults(reduction)
    return {k: v for k, v in fields.items() if k == "name" or v != base.get(k)}


def split(reduction):
    """Split a reduction: (fields of the method, name included; fields of the model)."""
    reduction = dict(reduction)
    of_model = {k: reduction.pop(k) for k in MODEL_FIELDS if k in reduction}
    return reduction, of_model


def current(reduction):
    """A reduction that any version saved, in fields and values of this version."""
    method = methods.METHODS.get(reduction.get("name"), type(None))
    added = {k: getattr(method, k) for k in ADDED if hasattr(method, k)}
    return added | {
        k: RENAMED.get(k, {}).get(v, v) if isinstance(v, str) else v
        for k, v in reduction.items()
        if k not in RETIRED or v != RETIRED[k]
    }


def as_tuple(value):
    """A list (JSON's form of a tuple) or an array as a tuple; all else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


def label(reduction):
    """A reduction in a few words: "evit keep_rate=0.7"."""
    fields = [f"{k}={v}" for k, v in reduction.items() if k != "name"]
    name = reduction["name"]
    name = "dense" if name == DENSE["name"] else name
    return " ".join([name, *fields])
