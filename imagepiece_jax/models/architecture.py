"""Parts in which vision transformers differ, beyond their sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.fields import (
    CheckedFields,
    checked,
    choice,
    count,
    number,
    optional,
    switch,
)
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.rotary import Rotary

GELUS = ("exact", "tanh", "quick")
RESIZES = ("antialias", "bicubic", "offset", "linear")


ROTARY = [field.name for field in dataclasses.fields(Rotary)]


def _rotary(value):
    if isinstance(value, Rotary):
        return value
    if not isinstance(value, Mapping) or not {*value} <= {*ROTARY}:
        raise ValueError(value)
    return Rotary(**value)


@dataclasses.dataclass(frozen=True)
class Architecture(CheckedFields):
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

    class_token: bool = switch(True)
    dist_token: bool = switch(False)
    registers: int = count(0)
    positions: bool = switch(True)
    prefix_positions: bool = switch(True)
    rotary: Rotary | None = optional(
        checked(None, _rotary, f"None and a dict of {', '.join(ROTARY)}")
    )
    patch_bias: bool = switch(True)
    qkv_bias: bool = switch(True)
    key_bias: bool = switch(True)
    pre_norm: bool = switch(False)
    attn_norm: bool = switch(False)
    mlp_norm: bool = switch(False)
    norm_eps: float = number(1e-6, above=0, below=1)
    layer_scale: bool = switch(False)
    gelu: str = choice("exact", GELUS)
    mlp: str = choice("gelu", ("gelu", "swiglu"))
    pool: str = choice("token", ("token", "mean", "map"))
    pool_include_prefix: bool = switch(False)
    final_norm: bool = switch(True)
    fc_norm: bool = switch(False)
    resize: str = choice("antialias", RESIZES)

    @classmethod
    def of(cls, fields: "Mapping[str, Any] | Architecture") -> "Architecture":
        """The Architecture by a dict of what differs from the defaults.

        Raises InputError for an unknown field, and for a value that is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if isinstance(fields, Mapping) and {*fields} <= {*names}:
            fields = cls(**fields)
        if not isinstance(fields, cls):
            raise InputError(value=fields, hint=f"its fields are {', '.join(names)}")
        return fields

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.class_token + self.dist_token + self.registers

    @property
    def head_tokens(self) -> int | None:
        """How many tokens the head reads, the first of all; None: it reads patches."""
        return 1 + self.dist_token if self.pool == "token" else None

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as `of` takes them."""
        parts, usual = dataclasses.asdict(self), dataclasses.asdict(DEIT)
        return {k: v for k, v in parts.items() if v != usual[k]}

    def check_parts(self) -> None:
        """Raise InputError for parts that do not go together."""
        if self.pool == "token" and not self.class_token:
            self.refuse("pool", "'mean', 'map'", "is 'token' without a class token")
        if self.dist_token and self.pool != "token":
            problem = f"is {self.pool!r} with a distillation token, whose head reads it"
            self.refuse("pool", "'token'", problem)


DEIT = Architecture()
