"""Checkpoints of any layout by timm's names, which `convert` reads.

A layout is recognized by one tensor that all of its checkpoints have. What stands
before that name, such as "vision_model." or "backbone.", is where the vision tower is.
The canonical layout is timm's, with SwiGLU's first layer in two: mlp.fc1_g, the gate,
and mlp.fc1_x.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import layouts_rope
from imagepiece_jax.models.layout_tables import FOREIGN, LAYOUTS, TIMM, TIMM_NAMES
from imagepiece_jax.models.state_dict import read_state_dict

MOST = 3  # names in a sentence
_WRAPPERS = ("module.", "_orig_mod.")  # of parallel training and of torch.compile


class Recognized(NamedTuple):
    """A checkpoint by timm's names, and what its layout says of the model.

    says: fields as in `infer_config`'s `given`: gelu, norm_eps, resize, num_heads, mean
    and std, as far as the layout knows.
    """

    tensors: dict[str, np.ndarray]
    says: dict[str, Any]

    def check(self, given: Mapping[str, Any]) -> None:
        """InputError where `given` has another number of heads than the tensors."""
        asked, own = given.get("num_heads"), self.says.get("num_heads")
        if None not in (asked, own) and asked != own:
            raise InputError(
                f"num_heads is {asked!r}, but its tensors are those of {own} heads; "
                f"allowed is {own}"
            )


def read_weights(path: str | os.PathLike) -> Recognized:
    """A weights file by timm's names; InputError as `read_state_dict` and `to_timm`."""
    if not pathlib.Path(path).exists():
        raise InputError(f"weights {path}: no such file or folder")
    found = read_state_dict(path)
    try:
        return to_timm(found)
    except InputError as error:
        raise InputError(f"weights file {path}: {error}") from error


def to_timm(state_dict: Mapping[str, np.ndarray]) -> Recognized:
    """A checkpoint of any layout by timm's names.

    Text towers, decoders, mask tokens, poolers and the heads of self-distillation are
    left out. InputError for tensors of no layout, of one part that is not known here,
    and for a part of which we have no equivalent. Tensors of timm's layout are not
    checked: `convert.from_timm` does.
    """
    tensors = {name.replace("/", "."): tensor for name, tensor in state_dict.items()}
    for wrapper in _WRAPPERS:
        while tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {k.removeprefix(wrapper): v for k, v in tensors.items()}
    tensors = _unscanned(tensors)
    try:
        rotary = layouts_rope.read(tensors)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"its tensors are not all those of a model with rotary positions: {error}"
        ) from error
    if rotary is not None:
        return Recognized(rotary, {})
    layout, prefix = _layout(tensors)
    renamed, origin = {}, {}
    for name, tensor in tensors.items():
        place = layout.place(name, prefix)
        if place is None:
            at = f" beside the tower {prefix[:-1]}" if prefix else ""
            raise InputError(
                f"tensor {name} has no place in {layout.title}{at}; allowed are the "
                "tensors of a vision transformer"
            )
        if place and place in renamed:
            raise InputError(
                f"tensors {origin[place]} and {name} are the same part, {place}; "
                "allowed is one of them"
            )
        if place:
            renamed[place], origin[place] = tensor, name
    try:
        says = layout.says({**tensors, **renamed})
        return Recognized(_canonical(renamed), says)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"its tensors have other shapes than those of {layout.title}: {error}"
        ) from error


def _layout(tensors):
    """(layout, prefix of the vision tower) of a checkpoint."""
    for layout in LAYOUTS:
        ends = (layout.mark, f".{layout.mark}")
        marked = [name for name in tensors if name == ends[0] or name.endswith(ends[1])]
        prefixes = sorted(name.removesuffix(layout.mark) for name in marked)
        if len(prefixes) > 1:
            found = ", ".join(prefix.rstrip(".") or "one" for prefix in prefixes)
            raise InputError(
                f"it holds {len(prefixes)} vision towers, {found}; allowed is one"
            )
        if prefixes:
            return layout, prefixes[0]
    if any(re.match(TIMM_NAMES, name) for name in tensors):
        return TIMM, ""
    for pattern, kind in FOREIGN:
        found = next((name for name in tensors if re.match(pattern, name)), None)
        if found:
            raise InputError(
                f"it holds {kind}, as tensor {found} shows, and no vision transformer "
                "of a known layout"
            )
    names, titles = ", ".join([*tensors][:MOST]), [layout.title for layout in LAYOUTS]
    raise InputError(
        f"its tensors, such as {names}, are in no layout of a vision transformer that "
        f"is known here; known are {', '.join(titles[:-1])} and {titles[-1]}"
    )


def _unscanned(tensors):
    """Blocks in one tensor, block by block in the first axis, as tensors of their own.

    big_vision saves models so whose blocks are a scan.
    """
    out = {}
    for name, tensor in tensors.items():
        before, scan, after = name.rpartition("Transformer.encoderblock.")
        if scan:
            start = f"{before}Transformer.encoderblock_"
            out |= {f"{start}{i}.{after}": part for i, part in enumerate(tensor)}
        else:
            out[name] = tensor
    return out


def _canonical(tensors):
    """Tensors by timm's names, as timm has them.

    They come with kernels as Flax has them, q, k and v apart or all three of an
    attention pool stacked, SwiGLU's first layer packed, a projection instead of a
    head, the head of a mean of patches, and registers whose class token has a position.
    """
    out = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            out[f"{module}.weight"] = _from_flax(module, tensor)
        elif leaf == "scale":
            out[f"{module}.weight"] = tensor
        elif leaf == "bias":
            out[name] = tensor.reshape(-1)  # Flax has one axis of heads more
        elif name in _ROWS and tensor.ndim != 3 and (name, tensor.ndim) != _NO_GRID:
            out[name] = tensor.reshape(1, -1, tensor.shape[-1])
        else:
            out[name] = tensor
    _stack(out)
    _split(out)
    _add_positions(out)
    _name_head(out)
    return out


_ROWS = ("cls_token", "dist_token", "register_tokens", "pos_embed", "attn_pool.latent")
_NO_GRID = ("pos_embed", 1)  # a mistake, for `infer_config` to report


def _from_flax(module, kernel):
    """A kernel as PyTorch's weight: outputs first, no axis of heads of its own."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if kernel.ndim == 3:  # [D, heads, d], of the projection after it [heads, d, D]
        last = kernel.shape[-1] if module.endswith(".proj") else kernel[0].size
        kernel = kernel.reshape(-1, last)
    return kernel.T


def _stack(tensors):
    """Join q, k and v, of an attention pool k and v, in place."""
    for name in [*tensors]:
        found = re.fullmatch(r"(.*\battn|attn_pool)\.k\.(weight|bias)", name)
        if not found:
            continue
        module, leaf = found.groups()
        letters = "kv" if module == "attn_pool" else "qkv"
        parts = [f"{module}.{letter}.{leaf}" for letter in letters]
        lacking = [part for part in parts if part not in tensors]
        if lacking:
            raise InputError(f"it has tensor {name}, but none for {lacking[0]}")
        parts = [tensors.pop(part) for part in parts]
        tensors[f"{module}.{letters}.{leaf}"] = np.concatenate(parts)


def _split(tensors):
    """Split stacked projections of an attention pool, and packed SwiGLUs, in place."""
    for leaf in ("weight", "bias"):
        stacked = tensors.pop(f"attn_pool.qkv.{leaf}", None)
        if stacked is not None:
            third = len(stacked) // 3
            tensors[f"attn_pool.q.{leaf}"] = stacked[:third]
            tensors[f"attn_pool.kv.{leaf}"] = stacked[third:]
    for name in [name for name in tensors if name.endswith(".mlp.fc1.weight")]:
        module = name.removesuffix(".fc1.weight")
        last = tensors.get(f"{module}.fc2.weight")
        if last is None or last.ndim != 2 or len(tensors[name]) != 2 * last.shape[1]:
            continue
        for leaf in ("weight", "bias"):
            packed = tensors.pop(f"{module}.fc1.{leaf}", None)
            if packed is not None:  # the gate is first (DINOv2, SwiGLUFFN)
                halves = np.split(packed, 2)
                tensors[f"{module}.fc1_g.{leaf}"] = halves[0]
                tensors[f"{module}.fc1_x.{leaf}"] = halves[1]


def _add_positions(tensors):
    """Move the class token's position into it where registers have none, in place.

    DINOv2 puts registers between the class token and the patches after positions are
    added; timm, and we, have positions of the patches alone then.
    """
    registers = tensors.pop("register_tokens", None)
    positions, first = tensors.get("pos_embed"), tensors.get("cls_token")
    if registers is None or positions is None or first is None:
        return
    row = positions[:, :1].astype(np.float32)
    tensors["reg_token"] = registers
    tensors["cls_token"] = first.astype(np.float32) + row
    tensors["pos_embed"] = positions[:, 1:]


def _name_head(tensors):
    """Name a projection, or the head of a mean of patches, as the head, in place."""
    projection = tensors.pop("projection.weight", None)
    if projection is not None:
        zeros = np.zeros(len(projection), projection.dtype)
        tensors["head.weight"] = projection
        tensors["head.bias"] = tensors.pop("projection.bias", zeros)
    if "mean_head.weight" in tensors:
        if "cls_token" in tensors:
            raise InputError(
                "its classifier reads the mean of the patches before the last norm "
                "(CLIPForImageClassification), which no model here does; allowed are "
                "CLIP's projection or no head"
            )
        for name in [name for name in tensors if name.startswith("attn_pool.")]:
            del tensors[name]  # SiglipForImageClassification does not use it
        for leaf in ("weight", "bias"):
            tensors[f"head.{leaf}"] = tensors.pop(f"mean_head.{leaf}")
    head, norm = tensors.get("head.weight"), tensors.get("norm.weight")
    if head is None or norm is None or head.ndim != 2 or len(norm) == head.shape[1]:
        return
    raise InputError(
        f"tensor head.weight reads {head.shape[1]} numbers an image, the tokens have "
        f"{len(norm)} (DINOv2's classifiers read the mean of the patches too); allowed "
        "are heads that read one vector of that width, or none"
    )
