"""Parts in which vision transformers differ, beyond their sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.rotary import Rotary

GELUS = ("exact", "tanh", "quick")
RESIZES = ("antialias", "bicubic", "offset", "linear")
POOLS = ("token", "mean", "map", "none")
MLPS = ("gelu", "swiglu")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The parts of a vision transformer; the defaults are DeiT's."""

    class_token: bool = True  # in front of the patches, as the next two
    dist_token: bool = False  # DeiT's, with a head (Touvron et al. 2021)
    registers: int = 0  # tokens without a meaning (Darcet et al. 2024)
    positions: bool = True  # an embedding is added to the patches
    prefix_positions: bool = True  # and to the tokens in front of them
    # how queries and keys turn with coordinates, also as its fields; None, or False:
    # they do not
    rotary: Rotary | None = None
    patch_bias: bool = True  # the projection of patches has a bias
    qkv_bias: bool = True  # so have those to queries, keys and values
    key_bias: bool = True  # False: only those to queries and values
    pre_norm: bool = False  # a norm before the first block (CLIP)
    # norms of what attention and MLP give, not of what they get (Swin v2)
    post_norm: bool = False
    attn_norm: bool = False  # a norm of the heads' output (EVA-02's sub-LN)
    mlp_norm: bool = False  # a norm of the hidden layer (likewise)
    norm_eps: float = 1e-6  # added to variances in norms
    layer_scale: bool = False  # a factor a channel for each branch (CaiT)
    # "tanh" is the usual approximation, "quick" x sigmoid(1.702 x)
    gelu: str = "exact"
    mlp: str = "gelu"  # "swiglu": Shazeer 2020
    # the head's input: the class "token", the "mean" of the patches, each token by its
    # size, "map", attention from a learned probe (SigLIP), or "none": there is no head,
    # and all tokens are the output
    pool: str = "token"
    pool_include_prefix: bool = False  # a mean or a map reads the prefix, too
    pool_heads: int = 0  # heads of a map; 0: as many as a block has
    # width of a map's hidden layer / embed_dim; None: as in a block
    pool_mlp_ratio: float | None = None
    final_norm: bool = True  # a norm of all tokens before the pool
    fc_norm: bool = False  # a norm of the pool's result
    resize: str = "antialias"  # by `resize_positions.resize`

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                check_choice(field.name, getattr(self, field.name), (True, False))
        check_range("registers", self.registers, 0, whole=True)
        check_range("pool_heads", self.pool_heads, 0, whole=True)
        if self.pool_mlp_ratio is not None:
            check_range("pool_mlp_ratio", self.pool_mlp_ratio, above=0)
        check_range("norm_eps", self.norm_eps, above=0, below=1)
        check_choice("gelu", self.gelu, GELUS)
        check_choice("mlp", self.mlp, MLPS)
        check_choice("pool", self.pool, POOLS)
        check_choice("resize", self.resize, RESIZES)
        rotary = self.rotary
        if rotary is False:  # which a caller gives for a name that has one
            rotary = None
        if isinstance(rotary, Mapping):  # as files have it
            rotary = Rotary(**rotary)
        if not isinstance(rotary, Rotary | None):
            raise InputError(f"rotary is {rotary!r}; it must be a Rotary or its fields")
        object.__setattr__(self, "rotary", rotary)

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.class_token + self.dist_token + self.registers

    @property
    def has_gelu(self) -> bool:
        """Whether something computes a GELU: an MLP of a block, or that of a map."""
        return self.mlp == "gelu" or self.pool == "map"

    @property
    def head_tokens(self) -> int | None:
        """Number of first tokens that the head reads; None: it reads patches."""
        if self.pool != "token":
            return None
        return 2 if self.dist_token else 1

    def with_parts(self, parts: Mapping[str, Any]) -> "Architecture":
        """The same with these parts.

        A class token that is added becomes the pool; without it the pool is the mean.
        """
        class_token = parts.get("class_token", self.class_token)
        if class_token != self.class_token:
            pool = "token" if class_token else "mean"
            parts = {"pool": pool, **parts}
        return dataclasses.replace(self, **parts)

    def difference(self, other: "Architecture") -> dict[str, Any]:
        """The parts that differ from those of `other`, with a dict for a Rotary."""
        parts = dataclasses.asdict(self)
        others = dataclasses.asdict(other)
        return {name: part for name, part in parts.items() if part != others[name]}

    def check_parts(self) -> None:
        """Check that the parts go together."""
        if self.pool == "token" and not self.class_token:
            raise InputError("pool is 'token', but the model has no class token")
        if self.dist_token and self.pool != "token":
            raise InputError(
                f"pool is {self.pool!r}; with a distillation token, whose head reads "
                "it, it must be 'token'"
            )


PARTS = tuple(field.name for field in dataclasses.fields(Architecture))
DEIT = Architecture()
