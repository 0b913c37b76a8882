"""The names that projects give to the parts of a ViT, beside timm's."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError

# Of the images of OpenAI's CLIP, of pixels in [0, 1].
CLIP_IMAGES = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of one layout.

    title: how sentences call it. mark: the tensor that shows it. blocks: a pattern of
    what a block's names start with, with its number. inner, outer: {module or tensor of
    a block, or of the rest of the tower: timm's}; beside: of what stands beside the
    tower. left_out: a pattern of how names start that no forward pass of ours needs.
    refused: {module: what it is}, where we lack it. strict: names that are in no table
    are errors, not timm's. says: what else the tensors, by their names here, show.
    """

    title: str
    mark: str
    blocks: str
    inner: Mapping[str, str]
    outer: Mapping[str, str]
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: str = r"(?!)"  # nothing
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    strict: bool = True
    says: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] = lambda _: {}

    def place(self, name: str, prefix: str) -> str | None:
        """timm's name of a tensor, "" for one left out, None where it has no place.

        Names in front of which there is no `prefix` are beside the tower. Some names
        are not timm's yet: see `_canonical`.
        """
        inside = name.removeprefix(prefix) if name.startswith(prefix) else None
        if inside is not None:
            if re.match(self.left_out, inside):
                return ""
            number = re.match(self.blocks, inside)
            if number:
                found = _renamed(inside[number.end() :], self.inner, self.strict)
                return found and f"blocks.{number[1]}.{found}"
            refused = self.refused.get(inside.rpartition(".")[0])
            if refused:
                raise InputError(f"tensor {name} is {refused}")
            found = _renamed(inside, self.outer)
            if found is not None:
                return found
        found = _renamed(name, self.beside)
        if found is not None:
            return found
        if inside is not None and not self.strict:
            return inside
        outside = prefix and inside is None and re.match(BESIDE, name)
        return "" if outside else None


def _renamed(name, table, strict=True):
    """The name by a table of tensors and modules; itself or None if in neither."""
    module, _, leaf = name.rpartition(".")
    if name in table:
        return table[name]
    if module in table:
        return f"{table[module]}.{leaf}"
    return None if strict else name


# Beside a vision tower, and knowingly left out: the text tower of CLIP and SigLIP with
# what compares the two, an optimizer's state, the heads of self-distillation (DINO,
# DINOv2), and decoders.
BESIDE = (
    r"(text|text_model|text_projection|transformer|token_embedding|attn_mask|ln_final|"
    r"positional_embedding|logit_scale|logit_bias|input_resolution|context_length|"
    r"vocab_size|(params\.)?(txt|t|b)|opt|head\.(mlp|last_layer)|dino_head|ibot_head|decoder)"
    r"(\.|$)"
)


def _google_says(tensors):
    # nn.gelu of Flax is its approximation by tanh, the epsilon of nn.LayerNorm 1e-6;
    # images go from -1 to 1 (value_range in big_vision), positions through a zoom.
    if "pos_embed" not in tensors:
        raise InputError(
            "it has no pos_embedding, so its positions are computed (sincos2d), which "
            "no model here does; allowed are files with learned positions"
        )
    says = {"gelu": "tanh", "norm_eps": 1e-6, "resize": "linear"}
    says |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    kernel = tensors.get("blocks.0.attn.q.kernel")  # [width, heads, width of a head]
    if kernel is not None and kernel.ndim == 3:
        says["num_heads"] = kernel.shape[1]
    return says


def _openai_says(tensors):
    # Only OpenAI's own files have this; OpenCLIP has the same names with either GELU.
    if "input_resolution" not in tensors:
        return {}
    width = tensors["cls_token"].shape[-1]
    fixed = {"gelu": "quick", "norm_eps": 1e-5, "num_heads": width // 64}
    return fixed | CLIP_IMAGES


def _attention(theirs, ours):
    """{projection of Flax's module: timm's}."""
    letters = {"query": "q", "key": "k", "value": "v", "out": "proj"}
    return {f"{theirs}.{name}": f"{ours}.{ends}" for name, ends in letters.items()}


LAYOUTS = (
    Layout(
        # Files from before Flax's linen number all modules of a block together, others
        # those of each kind.
        title="Google's Flax files",
        mark="embedding.kernel",
        blocks=r"Transformer\.encoderblock_(\d+)\.",
        inner={
            "LayerNorm_0": "norm1",
            **_attention("MultiHeadDotProductAttention_0", "attn"),
            **_attention("MultiHeadDotProductAttention_1", "attn"),
            "LayerNorm_1": "norm2",
            "LayerNorm_2": "norm2",
            "MlpBlock_0.Dense_0": "mlp.fc1",
            "MlpBlock_0.Dense_1": "mlp.fc2",
            "MlpBlock_3.Dense_0": "mlp.fc1",
            "MlpBlock_3.Dense_1": "mlp.fc2",
        },
        outer={
            "embedding": "patch_embed.proj",
            "cls": "cls_token",
            "pos_embedding": "pos_embed",
            "Transformer.pos_embedding": "pos_embed",
            "Transformer.posembed_input.pos_embedding": "pos_embed",
            "Transformer.encoder_norm": "norm",
            "head": "head",
            "MAPHead_0.probe": "attn_pool.latent",
            **_attention("MAPHead_0.MultiHeadDotProductAttention_0", "attn_pool"),
            "MAPHead_0.LayerNorm_0": "attn_pool.norm",
            "MAPHead_0.MlpBlock_0.Dense_0": "attn_pool.mlp.fc1",
            "MAPHead_0.MlpBlock_0.Dense_1": "attn_pool.mlp.fc2",
        },
        refused={
            "pre_logits": "of a tanh layer in front of the head, which no model here "
            "has; allowed are files without pre_logits"
        },
        says=_google_says,
    ),
    Layout(
        # ViT, DeiT, DINOv2, with registers or without; in files and, since version 5,
        # in memory. Poolers belong to no public head.
        title="transformers' ViT, DeiT and DINOv2",
        mark="embeddings.patch_embeddings.projection.weight",
        blocks=r"(?:encoder\.layer|layers)\.(\d+)\.",
        inner={
            "attention.attention.query": "attn.q",
            "attention.attention.key": "attn.k",
            "attention.attention.value": "attn.v",
            "attention.output.dense": "attn.proj",
            "attention.q_proj": "attn.q",
            "attention.k_proj": "attn.k",
            "attention.v_proj": "attn.v",
            "attention.o_proj": "attn.proj",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "norm1": "norm1",
            "norm2": "norm2",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.weights_in": "mlp.fc1",
            "mlp.weights_out": "mlp.fc2",
            "mlp.gate_proj": "mlp.fc1_g",
            "mlp.up_proj": "mlp.fc1_x",
            "mlp.down_proj": "mlp.fc2",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
        },
        outer={
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.cls_token": "cls_token",
            "embeddings.distillation_token": "dist_token",
            "embeddings.register_tokens": "register_tokens",
            "layernorm": "norm",
        },
        beside={
            "classifier": "head",
            "cls_classifier": "head",
            "distillation_classifier": "head_dist",
        },
        left_out=r"embeddings\.mask_token$|pooler\.",
    ),
    Layout(
        # In files and, since version 5, in memory, where blocks are in a "model".
        title="transformers' DINOv3",
        mark="embeddings.patch_embeddings.weight",
        blocks=r"(?:model\.)?layer\.(\d+)\.",
        inner={
            "attention.q_proj": "attn.q",
            "attention.k_proj": "attn.k",
            "attention.v_proj": "attn.v",
            "attention.o_proj": "attn.proj",
            "norm1": "norm1",
            "norm2": "norm2",
            "mlp.gate_proj": "mlp.fc1_g",
            "mlp.up_proj": "mlp.fc1",  # beside a gate what it opens, else all there is
            "mlp.down_proj": "mlp.fc2",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
        },
        outer={
            "embeddings.patch_embeddings": "patch_embed.proj",
            "embeddings.cls_token": "cls_token",
            "embeddings.register_tokens": "reg_token",
            "norm": "norm",
        },
        left_out=r"embeddings\.mask_token$",
    ),
    Layout(
        title="transformers' CLIP and SigLIP",
        mark="embeddings.patch_embedding.weight",
        blocks=r"encoder\.layers\.(\d+)\.",
        inner={
            "self_attn.q_proj": "attn.q",
            "self_attn.k_proj": "attn.k",
            "self_attn.v_proj": "attn.v",
            "self_attn.out_proj": "attn.proj",
            "layer_norm1": "norm1",
            "layer_norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
        outer={
            "embeddings.patch_embedding": "patch_embed.proj",
            "embeddings.position_embedding.weight": "pos_embed",
            "embeddings.class_embedding": "cls_token",
            "pre_layrnorm": "norm_pre",  # as it is spelled there
            "post_layernorm": "norm",
            "head.probe": "attn_pool.latent",
            "head.attention.in_proj_weight": "attn_pool.qkv.weight",
            "head.attention.in_proj_bias": "attn_pool.qkv.bias",
            "head.attention.out_proj": "attn_pool.proj",
            "head.layernorm": "attn_pool.norm",
            "head.mlp.fc1": "attn_pool.mlp.fc1",
            "head.mlp.fc2": "attn_pool.mlp.fc2",
        },
        beside={"visual_projection": "projection", "classifier": "mean_head"},
        left_out=r"embeddings\.position_ids$",
    ),
    Layout(
        title="OpenAI's CLIP and OpenCLIP",
        mark="class_embedding",
        blocks=r"transformer\.resblocks\.(\d+)\.",
        inner={
            "ln_1": "norm1",
            "attn.in_proj_weight": "attn.qkv.weight",
            "attn.in_proj_bias": "attn.qkv.bias",
            "attn.out_proj": "attn.proj",
            "ln_2": "norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        },
        outer={
            "conv1": "patch_embed.proj",
            "class_embedding": "cls_token",
            "positional_embedding": "pos_embed",
            "ln_pre": "norm_pre",
            "ln_post": "norm",
            "proj": "projection.kernel",  # [in, out], as Flax has it
        },
        says=_openai_says,
    ),
    Layout(
        # Other names are timm's. local_cls_norm is of the small crops of its training.
        title="DINOv3's own models",
        mark="storage_tokens",
        blocks=r"blocks\.(\d+)\.",
        inner={
            "attn.qkv.bias": "attn.masked.bias",
            "attn.qkv.bias_mask": "attn.masked.mask",
            "mlp.w1": "mlp.fc1_g",
            "mlp.w2": "mlp.fc1_x",
            "mlp.w3": "mlp.fc2",
        },
        outer={"storage_tokens": "reg_token"},
        left_out=r"rope_embed\.periods$|mask_token$|local_cls_norm\.",
        strict=False,
    ),
    Layout(
        # The original DeiT, MAE, DINO, DINOv2, EVA and EVA-02, and OpenCLIP with a timm
        # trunk too. DINOv2 saves chunks of blocks, whose second number counts through.
        # Rotary positions are computed from the grid, unless they are learned: freqs.
        title="timm's models",
        mark="patch_embed.proj.weight",
        blocks=r"blocks\.(?:\d+\.)?(\d+)\.",
        inner={
            "gamma_1": "ls1.gamma",
            "gamma_2": "ls2.gamma",
            "attn.q_proj": "attn.q",
            "attn.k_proj": "attn.k",
            "attn.v_proj": "attn.v",
            "attn.inner_attn_ln": "attn.norm",
            "mlp.w1": "mlp.fc1_g",
            "mlp.w2": "mlp.fc1_x",
            "mlp.w12": "mlp.fc1",
            "mlp.w3": "mlp.fc2",
            "mlp.ffn_ln": "mlp.norm",
        },
        outer={"register_tokens": "register_tokens"},
        beside={"visual.head.proj": "projection"},
        left_out=r"mask_token$|decoder_(embed|blocks|norm|pos_embed|pred)(\.|$)|"
        r"(.*\.)?rope\.(?!freqs$)",
        strict=False,
    ),
)
TIMM = LAYOUTS[-1]
# Names of ours and of timm's in files without a patch embedding of one convolution.
TIMM_NAMES = r"blocks\.\d|patch_embed\.|pos_embed$|cls_token$|reducer\."
# What people try instead, most special first.
FOREIGN = (
    (r"(.*\.)?layer[1-4]\.0\.conv1\.", "a ResNet"),
    (
        r"(.*\.)?(token_embedding|text_model|word_embeddings|embed_tokens|wte)\.",
        "a text model",
    ),
)
