"""Parts in which vision transformers differ, beyond their sizes."""

import dataclasses

GELUS = ("exact", "tanh", "quick")
MLPS = ("gelu", "swiglu")
POOLS = ("token", "mean", "map")
RESIZES = ("antialias", "bicubic", "offset", "linear")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a vision transformer computes; the defaults are DeiT's.

    Tokens in front of the patches: `class_token`; `dist_token`, DeiT's distillation
    token with a head of its own (Touvron et al. 2021); `registers` (Darcet et al.
    2024). `prefix_positions`: they have rows in the position embedding too.
    `patch_bias`, `qkv_bias`: these projections have biases. `pre_norm`: a norm before
    the first block (CLIP). `norm_eps`: added to variances in layer norms.
    `layer_scale`: each branch has a factor a channel (CaiT, Touvron et al. 2021).
    `gelu`: "exact", "tanh" (its usual approximation) or "quick" (x sigmoid(1.702 x)).
    `mlp`: "gelu", or "swiglu" (Shazeer 2020). `pool`: what the head reads, the class
    "token", the "mean" of the patches, each token by its size, or "map", attention from
    a learned probe (SigLIP). `final_norm`: a norm of all tokens before that; `fc_norm`:
    one of what the pool gives. `resize`: how positions get another grid
    (positions.resize).
    """

    class_token: bool = True
    dist_token: bool = False
    registers: int = 0
    prefix_positions: bool = True
    patch_bias: bool = True
    qkv_bias: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6
    layer_scale: bool = False
    gelu: str = "exact"
    mlp: str = "gelu"
    pool: str = "token"
    final_norm: bool = True
    fc_norm: bool = False
    resize: str = "antialias"

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.class_token + self.dist_token + self.registers
