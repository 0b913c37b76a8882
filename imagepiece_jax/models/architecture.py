"""Parts in which vision transformers differ, beyond their sizes."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.rotary import Rotary

GELUS = ("exact", "tanh", "quick")
MLPS = ("gelu", "swiglu")
POOLS = ("token", "mean", "map")
RESIZES = ("antialias", "bicubic", "offset", "linear")
CHOICES = {"gelu": GELUS, "mlp": MLPS, "pool": POOLS, "resize": RESIZES}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a vision transformer computes; the defaults are DeiT's.

    Tokens in front of the patches: `class_token`; `dist_token`, DeiT's distillation
    token with a head of its own (Touvron et al. 2021); `registers` (Darcet et al.
    2024). `positions`: a position embedding is added to the patches;
    `prefix_positions`: it has rows for the tokens in front of them too. `rotary`: how
    queries and keys turn with coordinates (rotary.Rotary); None: they do not.
    `patch_bias`, `qkv_bias`: these projections have biases; without `key_bias` queries
    and values alone. `pre_norm`: a norm before the first block (CLIP). `attn_norm`: a
    norm of what the heads give, before it is projected; `mlp_norm`: one of the hidden
    layer (EVA-02's sub-LN). `norm_eps`: added to variances in layer norms.
    `layer_scale`: each branch has a factor a channel (CaiT, Touvron et al. 2021).
    `gelu`: "exact", "tanh" (its usual approximation) or "quick" (x sigmoid(1.702 x)).
    `mlp`: "gelu", or "swiglu" (Shazeer 2020). `pool`: what the head reads, the class
    "token", the "mean" of the patches, each token by its size, or "map", attention from
    a learned probe (SigLIP); `pool_include_prefix`: a mean or a map reads the tokens in
    front of the patches too. `final_norm`: a norm of all tokens before that; `fc_norm`:
    one of what the pool gives. `resize`: how positions get another grid
    (positions.resize).
    """

    class_token: bool = True
    dist_token: bool = False
    registers: int = 0
    positions: bool = True
    prefix_positions: bool = True
    rotary: Rotary | None = None
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    pre_norm: bool = False
    attn_norm: bool = False
    mlp_norm: bool = False
    norm_eps: float = 1e-6
    layer_scale: bool = False
    gelu: str = "exact"
    mlp: str = "gelu"
    pool: str = "token"
    pool_include_prefix: bool = False
    final_norm: bool = True
    fc_norm: bool = False
    resize: str = "antialias"

    @classmethod
    def of(cls, facts):
        """The Architecture by a dict such as a file holds; `rotary` is one too."""
        rotary = facts.get("rotary")
        return cls(**facts | ({"rotary": Rotary(**rotary)} if rotary else {}))

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.class_token + self.dist_token + self.registers

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as `of` takes them."""
        own, usual = dataclasses.asdict(self), dataclasses.asdict(DEIT)
        return {k: v for k, v in own.items() if v != usual[k]}


DEIT = Architecture()


def of_fields(name: str, fields: Mapping[str, Any]) -> Architecture:
    """The Architecture with these fields, the others as by default.

    InputError, which says `name`, for a field or a value that there is not.
    """
    if not isinstance(fields, Mapping) or not {*fields} <= {*vars(DEIT)}:
        found = dict(fields) if isinstance(fields, Mapping) else fields
        raise InputError(f"{name} is {found!r}; its fields are {', '.join(vars(DEIT))}")
    check_fields(name, fields)
    return Architecture.of(fields)


def check_parts(name: str, arch: Architecture) -> None:
    """InputError, which says `name`, for parts that do not go together."""
    if arch.pool == "token" and not arch.class_token:
        raise InputError(
            f"{name}.pool is 'token' without a class token; allowed are 'mean' and "
            "'map'"
        )
    if arch.dist_token and arch.pool != "token":
        raise InputError(
            f"{name}.pool is {arch.pool!r} with a distillation token, whose head reads "
            "it; allowed is 'token'"
        )


def check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """InputError, which says `name`, for a value that a field cannot have."""
    for field, value in fields.items():
        usual = getattr(DEIT, field)
        if field == "rotary":
            known = [f.name for f in dataclasses.fields(Rotary)]
            right = value is None or (
                isinstance(value, Mapping) and {*value} <= {*known}
            )
            allowed = f"None and a dict of {', '.join(known)}"
        elif field in CHOICES:
            right, allowed = value in CHOICES[field], ", ".join(CHOICES[field])
        elif isinstance(usual, bool):
            right, allowed = isinstance(value, bool), "True, False"
        elif isinstance(usual, int):
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            right, allowed = whole and value >= 0, "0, 1, 2, .."
        else:
            right = isinstance(value, numbers.Real) and 0 < value < 1
            allowed = "numbers above 0 and below 1"
        if not right:
            raise InputError(f"{name}.{field} is {value!r}; allowed are {allowed}")
