"""Architecture: the parts of a vision transformer beyond its sizes."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imagepiece_jax.common.checks import check_choice, check_options, option

if TYPE_CHECKING:  # this module imports JAX
    from imagepiece_jax.models.rotary import Rotary

GELU_KINDS = ("exact", "tanh", "quick")
RESIZE_KINDS = ("antialias", "bicubic", "offset", "linear")
POOL_KINDS = ("token", "mean", "map", "none")
MLP_KINDS = ("gelu", "swiglu")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The parts of a vision transformer; the defaults are DeiT's."""

    # the prefix, in front of the patches: class token, distillation token, registers
    class_token: bool = True
    dist_token: bool = False  # with a head of its own (Touvron et al. 2021, DeiT)
    registers: int = option(0, least=0)  # Darcet et al. 2024
    positions: bool = True  # learned embeddings are added to the patches
    prefix_positions: bool = True  # and to the prefix
    # rotary positions, as a Rotary or a dict of its fields; None or False: none
    rotary: "Rotary | None" = None
    patch_bias: bool = True  # bias in the patch projection
    qkv_bias: bool = True  # biases in the projections to queries, keys and values
    key_bias: bool = True  # False: with qkv_bias, biases for queries and values only
    pre_norm: bool = False  # norm before the first block (CLIP)
    # norms after attention and MLP, within the residual branches, not before (Swin v2)
    post_norm: bool = False
    attn_norm: bool = False  # norm of the heads' output (EVA-02's sub-LN)
    mlp_norm: bool = False  # norm of the MLP's hidden layer (EVA-02's sub-LN)
    norm_eps: float = option(1e-6, above=0, below=1)  # added to variances in norms
    layer_scale: bool = False  # learned factor per channel and branch (CaiT)
    # "tanh": the usual approximation; "quick": x sigmoid(1.702 x)
    gelu: str = option("exact", GELU_KINDS)
    mlp: str = option("gelu", MLP_KINDS)  # "swiglu": Shazeer 2020
    # the head's input: "token", the class token; "mean", the patches' mean weighted by
    # token size; "map", attention from a learned probe (SigLIP); "none": no head, all
    # tokens are the output
    pool: str = option("token", POOL_KINDS)
    pool_include_prefix: bool = False  # "mean" and "map" read the prefix, too
    pool_heads: int = option(0, least=0)  # attention heads of "map"; 0: num_heads
    # hidden width of the MLP in "map" / embed_dim; None: mlp_ratio
    pool_mlp_ratio: float | None = option(None, above=0)
    final_norm: bool = True  # norm of all tokens before the pool
    fc_norm: bool = False  # norm of the pooled vector
    resize: str = option("antialias", RESIZE_KINDS)  # as in `resize_grid`

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                check_choice(field.name, getattr(self, field.name), (True, False))
        check_options(self)
        rotary = self.rotary
        if rotary is False:  # a caller's way to switch off a named model's rotary
            rotary = None
        if rotary is not None:
            from imagepiece_jax.models.rotary import Rotary

            if isinstance(rotary, Mapping):  # from a file
                rotary = Rotary(**rotary)
        object.__setattr__(self, "rotary", rotary)

    @property
    def prefix(self) -> int:
        """Token count in front of the patches."""
        return self.class_token + self.dist_token + self.registers

    @property
    def has_gelu(self) -> bool:
        """Whether a GELU is computed, in the blocks' MLPs or in a map's MLP."""
        return self.mlp == "gelu" or self.pool == "map"

    @property
    def num_head_tokens(self) -> int | None:
        """How many of the first tokens the head reads; None if it reads patches."""
        if self.pool != "token":
            return None
        return 2 if self.dist_token else 1

    def with_fields(self, fields: Mapping[str, Any]) -> "Architecture":
        """The same architecture with changed fields.

        Adding a class token sets pool to "token", removing it sets pool to "mean",
        unless `fields` names a pool.
        """
        class_token = fields.get("class_token", self.class_token)
        if class_token != self.class_token:
            pool = "token" if class_token else "mean"
            fields = {"pool": pool, **fields}
        return dataclasses.replace(self, **fields)


PART_NAMES = tuple(field.name for field in dataclasses.fields(Architecture))
DEIT = Architecture()
