"""Models as folders that `load`, and timm for their dense part, read: public `save`.

The folder has the form of the Hugging Face hub. model.safetensors holds the dense part
by timm's names, selectors.safetensors what a reduction learned, and config.json names
timm's architecture, with arguments where the model differs, and beside that all that
this package needs to make the same model again.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from imagepiece_jax import __version__
from imagepiece_jax.common.files import replacing_folder
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import (
    convert,
    hub,
    hub_config,
    layouts,
    public,
    registry,
    summary,
    timm_config,
)
from imagepiece_jax.models.architecture import DEIT
from imagepiece_jax.models.hub import SELECTORS
from imagepiece_jax.models.hub_config import CONFIG, OURS
from imagepiece_jax.models.model_card import model_card
from imagepiece_jax.models.positions import sides
from imagepiece_jax.models.vit import ViT

WEIGHTS = hub.WEIGHTS[0]
CARD = "README.md"
# Architectures of timm that others are made of by arguments, by what those cannot say.
BASES = {
    ("gelu", 1e-6, False): "vit_base_patch16_224",
    ("gelu", 1e-5, False): "vit_base_patch16_clip_224",
    ("swiglu", 1e-6, False): "vit_giant_patch14_dinov2",
    ("gelu", 1e-6, True): "deit_base_distilled_patch16_224",
}
GELUS = {ours: theirs for theirs, ours in timm_config.GELUS.items()}
POOLS = {ours: theirs for theirs, ours in timm_config.POOLS.items()}


def save(
    folder: str | os.PathLike, model: ViT, variables: Mapping[str, Any]
) -> pathlib.Path:
    """Write `model` and its variables to a folder, whole or not at all.

    `load(folder)` gives a model with the same logits, bit for bit, its reduction with
    learned selectors, class names and preprocessing included. timm loads the dense part
    by timm.create_model("local-dir:FOLDER", pretrained=True), where it has such models.
    Returns the folder, which can be uploaded as it is. A model that was saved there
    before is replaced; InputError for a folder that holds anything else, and for
    variables that are not the model's.
    """
    folder = pathlib.Path(folder)
    _check_folder(folder)
    _check(model, variables)
    tensors = convert.to_timm(variables)
    learned = {k: v for k, v in tensors.items() if k.startswith("reducer.")}
    dense = {k: v for k, v in tensors.items() if k not in learned}
    config = _config(model)
    if _is_eva(model.arch):
        dense = layouts.to_eva(dense, model.arch)
    elif model.arch.mlp == "swiglu":
        dense = _packed(dense)
    card = model_card(folder.absolute().name, model, "model_args" in config)
    metadata = {"format": "pt"}  # some readers refuse a file without it
    with replacing_folder(folder) as new:
        safetensors.numpy.save_file(dense, new / WEIGHTS, metadata)
        if learned:
            safetensors.numpy.save_file(learned, new / SELECTORS, metadata)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (new / CARD).write_text(card, "utf-8")
    return folder


def _check_folder(folder):
    """InputError where something else than a saved model would be lost."""
    allowed = "allowed are a new or empty folder, and one that save has written"
    try:
        held = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        reason = error.strerror
        raise InputError(f"{folder} is no folder ({reason}); {allowed}") from error
    others = [name for name in held if name not in (WEIGHTS, SELECTORS, CONFIG, CARD)]
    if held and (others or not hub_config.is_own(folder)):
        raise InputError(f"{folder} holds {(others or held)[0]}; {allowed}")


def _check(model, variables):
    """InputError for what `load` could not make again."""
    if not isinstance(model, ViT) or None in (model.reduction, model.preprocessing):
        raise InputError(
            f"model is a {type(model).__name__} that create_model has not made; "
            "allowed are models of create_model and load"
        )
    if model.folded:
        raise InputError(
            "model is in the form of optimize; allowed is what that was made from"
        )
    needed = summary.shapes(model, model.preprocessing.image_size)
    needed, found = _shapes(needed), _shapes(variables)
    for name in sorted(needed.keys() | found.keys()):
        ours, theirs = found.get(name, "missing"), needed.get(name, "no such variable")
        if ours != theirs:
            raise InputError(
                f"variables: {name} is {ours}, in the model it is {theirs}; allowed "
                "are variables of this model"
            )
    again = registry.create_model(
        None,
        arch=model.arch,
        image_size=model.preprocessing.image_size,
        reduction=model.reduction,
        **_size(model),
    )
    if again.plan != model.plan:
        raise InputError(
            f"model.plan is not that of {dict(model.reduction)}; allowed are models of "
            "create_model with masked=False, unchanged"
        )


def _shapes(variables):
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def _size(model):
    own = [field for field in registry.SIZES if field != "depth"]
    return {"depth": len(model.plan), **{field: getattr(model, field) for field in own}}


def _packed(tensors):
    """SwiGLU's first layer in one, the gate first, as timm has it."""
    out = {}
    for name, tensor in tensors.items():
        if ".mlp.fc1_g." in name:
            other = tensors[name.replace("fc1_g", "fc1_x")]
            out[name.replace("fc1_g", "fc1")] = np.concatenate([tensor, other])
        elif ".mlp.fc1_x." not in name:
            out[name] = tensor
    return out


def _config(model):
    """The content of config.json."""
    prepared = dataclasses.asdict(model.preprocessing)
    size = prepared.pop("image_size")
    known = prepared if prepared["crop"] is not None else {}
    images = {"input_size": [3, *sides(size)], "fixed_input_size": True}
    images |= {"mean": model.mean, "std": model.std, "num_classes": model.num_classes}
    names = {"crop": "crop_pct"}
    images |= {names.get(field, field): value for field, value in known.items()}
    heads = ["head", "head_dist"] if model.arch.dist_token else "head"
    images |= {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": heads}
    labels = _labels(model.class_names)
    return {
        **_architecture(model),
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        **({"label_names": labels} if labels else {}),
        "pretrained_cfg": images,
        OURS: {
            "version": __version__,
            "model": {
                "arch": dataclasses.asdict(model.arch),
                "num_heads": model.num_heads,
                "image_size": size,
                "mean": model.mean,
                "std": model.std,
            },
            "preprocessing": known,
            "reduction": {**model.reduction, "prop_attn": model.prop_attn},
            "dtype": model.dtype.name,
        },
    }


def _labels(names):
    """A list, or where some classes have no name those that have one by number."""
    if names is None or None not in names:
        return names
    return {str(i): name for i, name in enumerate(names) if name is not None}


def _architecture(model):
    """timm's architecture and its arguments; a name of ours where timm has none."""
    arch, image_size = model.arch, model.preprocessing.image_size
    size, eva = _size(model), _is_eva(arch)
    plain = {"resize": DEIT.resize} | ({} if eva else {"gelu": DEIT.gelu})
    parts = dataclasses.replace(arch, **plain)
    same = [
        name
        for name in public.table()
        if registry.size_of(facts := registry.facts(name)) == size
        and dataclasses.replace(facts["arch"], **plain) == parts
    ]
    same.sort(key=lambda name: registry.facts(name).get("image_size") != image_size)
    arguments = {"img_size": image_size}
    if arch.mlp != "swiglu" and not eva:
        arguments["act_layer"] = GELUS[arch.gelu]
    if same and model.stem == "patch":
        return {"architecture": same[0], "model_args": arguments}
    eps = 1e-6 if abs(arch.norm_eps - 1e-6) <= abs(arch.norm_eps - 1e-5) else 1e-5
    base = BASES.get((arch.mlp, eps, arch.dist_token))
    if base is None or not _is_vision_transformer(model):
        return {"architecture": OURS}
    return {"architecture": base, "model_args": arguments | _arguments(model)}


def _is_eva(arch):
    """Whether it has parts that only timm's class Eva has."""
    own = ("positions", "rotary", "key_bias", "attn_norm", "mlp_norm")
    return any(getattr(arch, field) != getattr(DEIT, field) for field in own)


def _is_vision_transformer(model):
    """Whether arguments of timm's VisionTransformer can say what the model is."""
    arch = model.arch
    if model.stem != "patch" or _is_eva(arch):
        return False
    if arch.dist_token and (arch.pool != "token" or arch.registers):
        return False
    if arch.mlp == "swiglu" and not arch.layer_scale:  # its base has it
        return False
    return arch.patch_bias != arch.pre_norm and not (arch.final_norm and arch.fc_norm)


def _arguments(model):
    """All arguments of timm's VisionTransformer that make the parts of a model."""
    arch, hidden = model.arch, int(model.embed_dim * model.mlp_ratio)
    packed = 2 if arch.mlp == "swiglu" else 1
    normed = arch.final_norm or arch.fc_norm
    return {
        **_size(model),
        "mlp_ratio": packed * hidden / model.embed_dim,
        "qkv_bias": arch.qkv_bias,
        "init_values": 1e-5 if arch.layer_scale else None,
        "class_token": arch.class_token,
        "reg_tokens": arch.registers,
        "no_embed_class": not arch.prefix_positions,
        "pre_norm": arch.pre_norm,
        "global_pool": POOLS[arch.pool],
        "final_norm": normed,
        "fc_norm": arch.fc_norm,
    }
