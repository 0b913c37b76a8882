"""Names of tensors of models with rotary positions, in checkpoints and as `convert` has
them.

timm's class Eva (EVA, EVA02, DINOv3) has names of its own for LayerScale and for
queries, keys and values; DINOv3's own code and Hugging Face's have others. Each reader
takes a state dict of its layout and returns one that `convert.from_timm` and
`infer_config` understand; `to_eva` is the way back for timm.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.rotary import Rotary

# Regular expressions of a whole name, and what stands in its place; None: left out.
_EVA = {
    r"(?:.*\.)?rope\.(?!freqs$).*": None,  # computed from the grid, unless learned
    r"(.*)\.gamma_([12])": r"\1.ls\2.gamma",
    r"(.*\.attn)\.([qv])_proj\.bias": r"\1.\2_bias",
}
_META = {
    r"rope_embed\.periods|mask_token|.*\.bias_mask|local_cls_norm\..*": None,
    r"storage_tokens": "reg_token",
    r"(.*\.mlp)\.w1\.(.*)": r"\1.fc1_g.\2",
    r"(.*\.mlp)\.w2\.(.*)": r"\1.fc1_x.\2",
    r"(.*\.mlp)\.w3\.(.*)": r"\1.fc2.\2",
}
_HUGGING_FACE = {
    r"embeddings\.mask_token": None,
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.patch_embeddings\.(.*)": r"patch_embed.proj.\1",
    r"(?:model\.)?layer\.(.*)\.attention\.o_proj\.(.*)": r"blocks.\1.attn.proj.\2",
    r"(?:model\.)?layer\.(.*)\.attention\.([qv])_proj\.bias": r"blocks.\1.attn.\2_bias",
    r"(?:model\.)?layer\.(.*)\.attention\.(.*)": r"blocks.\1.attn.\2",
    r"(?:model\.)?layer\.(.*)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"(?:model\.)?layer\.(.*)\.mlp\.gate_proj\.(.*)": r"blocks.\1.mlp.fc1_g.\2",
    r"(?:model\.)?layer\.(.*)\.mlp\.up_proj\.(.*)": r"blocks.\1.mlp.fc1.\2",
    r"(?:model\.)?layer\.(.*)\.mlp\.down_proj\.(.*)": r"blocks.\1.mlp.fc2.\2",
    r"(?:model\.)?layer\.(.*)": r"blocks.\1",
}


def read(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Tensors of one of these layouts, recognized by their names; None: of no such."""
    if "storage_tokens" in tensors:
        return from_meta(tensors)
    names = set(tensors)
    if names & {f"{of}layer.0.attention.q_proj.weight" for of in ("", "model.")}:
        return from_hugging_face(tensors)
    apart = {f"blocks.0.attn.{part}" for part in ("q_proj.weight", "q_bias")}
    patches = "patch_embed.proj.weight" in names and "blocks.0.norm1.weight" in names
    if patches and (names & apart or "pos_embed" not in names):
        return from_eva(tensors)
    return None


def from_eva(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names of timm's class Eva."""
    found = _stacked(_renamed(tensors, _EVA))
    for name in [n for n in found if n.endswith(".mlp.fc1.weight")]:
        block = name.removesuffix("fc1.weight")
        if found[f"{block}fc2.weight"].shape[1] * 2 != found[name].shape[0]:
            continue
        for kind in ("weight", "bias"):  # the gate stands before what it opens
            halves = np.split(found.pop(f"{block}fc1.{kind}"), 2)
            found[f"{block}fc1_g.{kind}"], found[f"{block}fc1_x.{kind}"] = halves
    return found


def from_meta(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names of DINOv3's own code, which masks the bias of the keys."""
    found = _renamed(tensors, _META)
    for name in [n for n in found if n.endswith(".attn.qkv.bias")]:
        attention = name.removesuffix("qkv.bias")
        query, _, value = np.split(found.pop(name), 3)
        found[f"{attention}q_bias"], found[f"{attention}v_bias"] = query, value
    return found


def from_hugging_face(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names of transformers' DINOv3ViTModel."""
    found = _stacked(_renamed(tensors, _HUGGING_FACE))
    for name in [n for n in found if ".mlp.fc1." in n]:
        gate = name.replace("fc1", "fc1_g")
        if gate in found:
            found[gate.replace("_g", "_x")] = found.pop(name)
    return found


def to_eva(
    tensors: Mapping[str, np.ndarray], arch: Architecture
) -> dict[str, np.ndarray]:
    """Tensors of `convert.to_timm` by the names of timm's class Eva.

    arch: of the model; timm keeps the projections of EVA-02's sub-LN apart, and two
    layers of a gated MLP without a norm together where positions are learned.
    """
    apart, found = arch.mlp_norm and not arch.key_bias, {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        attention, qkv, _ = name.partition("qkv.weight")
        if qkv and apart:
            for part, third in zip("qkv", np.split(tensor, 3), strict=True):
                found[f"{attention}{part}_proj.weight"] = third
            continue
        if apart:
            name = re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", name)
        found[name] = tensor
    if arch.mlp == "swiglu" and arch.positions and not arch.mlp_norm:
        for gate in [n for n in found if ".mlp.fc1_g." in n]:
            halves = [found.pop(n) for n in (gate, gate.replace("_g.", "_x."))]
            found[gate.replace("_g.", ".")] = np.concatenate(halves)
    return found


def dinov3(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of create_model in transformers' config.json of a "dinov3_vit".

    What it leaves out has DINOv3ViTConfig's default. Its pooled output is the class
    token; it has no classes. InputError for another activation than "gelu", or "silu"
    of a gated MLP.
    """
    config = _DEFAULTS | dict(config)
    width, gated = config["hidden_size"], config["use_gated_mlp"]
    activation = "silu" if gated else "gelu"
    if config["hidden_act"] != activation:
        raise InputError(
            f"hidden_act is {config['hidden_act']!r}; allowed with use_gated_mlp "
            f"{gated} is {activation!r}"
        )
    arch = Architecture(
        registers=config["num_register_tokens"],
        positions=False,
        rotary=Rotary("center", float(config["rope_theta"]), planes="halves"),
        qkv_bias=config["query_bias"],
        key_bias=config["key_bias"] or not config["query_bias"],
        norm_eps=config["layer_norm_eps"],
        layer_scale=True,
        mlp="swiglu" if gated else "gelu",
    )
    return {
        "arch": arch,
        "image_size": config["image_size"],
        "num_classes": 0,
        "patch_size": config["patch_size"],
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / width,
    }


_DEFAULTS = {
    "patch_size": 16,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "image_size": 224,
    "query_bias": True,
    "key_bias": False,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}


def _renamed(tensors, table):
    """Tensors by other names, that of the first row of `table` that fits."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in table.items():
            if match := re.fullmatch(old, name):
                name = None if new is None else match.expand(new)
                break
        if name is not None:
            found[name] = tensor
    return found


def _stacked(tensors):
    """The projections q, k and v as one tensor where each has its own."""
    found = dict(tensors)
    for name in [n for n in tensors if n.endswith(".q_proj.weight")]:
        attention = name.removesuffix("q_proj.weight")
        parts = [found.pop(f"{attention}{part}_proj.weight") for part in "qkv"]
        found[f"{attention}qkv.weight"] = np.concatenate(parts)
    return found
