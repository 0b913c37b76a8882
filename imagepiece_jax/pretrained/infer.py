"""Fields of the model that a state dict belongs to, from its tensors and a name.

Shapes tell sizes and parts. The number of heads, the kind of GELU, the epsilon of norms
and the normalization of the images are in no tensor: they come from what the caller
knows, or from the public models of these sizes and parts, where all of them agree.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import public, registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.pretrained.hub_configs import is_eva

SIZES = ("patch_size", "embed_dim", "depth", "mlp_ratio")  # that shapes tell
# Of an Architecture, which no shape tells; the pool is told where it has parameters.
UNTOLD = ("norm_eps", "gelu", "resize", "rotary", "pool", "pool_include_prefix")
ALWAYS = ("norm_eps", "gelu", "resize")  # those of them that every model has to have
IMAGES = ("mean", "std")
# Fields of create_model that can be given beside a name, or instead.
GIVEN = ("num_heads", *ALWAYS, "image_size", *IMAGES)
MOST = 5  # names in a sentence


def infer_config(
    state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fields with which `registry.create_model` makes the model of a timm state dict.

    given: fields that are known already, such as name or arch, num_heads, gelu,
    norm_eps, resize, mean, std and image_size; None is not known. Returns name,
    image_size, num_classes, stem, patch_size, embed_dim, depth, num_heads, mlp_ratio,
    mean and std, and those of registry.ONE_BY_ONE that are given: the name says the
    rest. The name is None, and arch is returned, where no name was needed. InputError
    where these are no tensors of a vision transformer that can be made here, where they
    contradict the name, and where they could be those of several models.
    """
    given = {k: v for k, v in (given or {}).items() if v is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    sizes = _sizes(shapes, given)
    parts = _parts(shapes, sizes)
    told = ["num_heads", *IMAGES]
    always = [*told, *ALWAYS, *_open_parts(parts)]
    if "name" in given or given.get("arch"):
        known = {given.get("name"): _checked(given, shapes, sizes, parts)}
    elif all(field in given for field in always):
        known = {None: {"arch": parts}}
    else:
        known = _public(sizes, parts)
    if sizes["image_size"] is None:
        del sizes["image_size"]
        told.append("image_size")
    fields = (*told, *UNTOLD)
    asked = fields if known else always
    values = {field: _values(field, known, given) for field in (*fields, *asked)}
    unknown = [field for field in asked if len(values[field]) != 1]
    if unknown:
        raise InputError(_several(known, unknown, sizes, parts))
    found = {field: next(iter(values[field])) for field in told}
    changes = {k: given[k] for k in registry.ONE_BY_ONE if k in given}
    name, facts = next(iter(known.items()))
    if "name" not in given and name not in registry.MODELS:
        name = None  # a guess, which must not bring what a tag alone says
    if name is None or given.get("arch"):
        arch = registry.architecture({**facts, **changes})
        changes = {"arch": arch.changed}
    return {"name": name, **sizes, **found, **changes}


def _sizes(shapes, given):
    """image_size, num_classes, stem and SIZES, told by shapes.

    image_size is as given, or as the name has it, where that makes this grid: it need
    be no square, and no multiple of the patch size. None: there are no positions.
    """
    if "pos_embed" in shapes:
        width = _shape(shapes, "pos_embed", 3)[2]
    else:
        width = _shape(shapes, "blocks.0.norm1.weight", 1)[0]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    first = "fc1_g" if "blocks.0.mlp.fc1_g.weight" in shapes else "fc1"
    hidden = _shape(shapes, f"blocks.0.mlp.{first}.weight", 2)[0]
    stem, patch_size = _stem(shapes)
    image_size = None
    if "pos_embed" in shapes:
        rows = shapes["pos_embed"][1]
        image_size = _image_size(rows, _prefix(shapes), patch_size, given)
    classes = _shape(shapes, "head.weight", 2)[0] if "head.weight" in shapes else 0
    return {
        "image_size": image_size,
        "num_classes": classes,
        "stem": stem,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "mlp_ratio": hidden / width,
    }


def _image_size(rows, prefix, patch_size, given):
    """Of `rows` positions, those of the prefix among them or not."""
    named = registry.facts(given.get("name")).get("image_size")
    for size in filter(None, (given.get("image_size"), named)):
        if _patches(size, patch_size) in (rows - prefix, rows):
            return size
    side = _side(rows, prefix)
    if side is None:
        raise InputError(
            f"tensor pos_embed has {rows} rows; allowed are a square number, and one "
            "for each token in front of the patches or none; of images that are no "
            "squares the size is to be given, image_size=(height, width)"
        )
    return side * patch_size


def _patches(image_size, patch_size):
    """Their number in an image; what is left at its sides is cut."""
    return math.prod(registry.grid(image_size, patch_size, cut=True))


def _parts(shapes, sizes):
    """The Architecture that these tensors are of, but for what is UNTOLD."""
    prefix, positions, patches = _prefix(shapes), "pos_embed" in shapes, 0
    if positions:
        patches = _patches(sizes["image_size"], sizes["patch_size"])
    classes = "cls_token" in shapes
    fc_norm = "fc_norm.weight" in shapes
    pool = "token" if classes and not fc_norm else "mean"
    first, keyless = "blocks.0", "blocks.0.attn.q_bias" in shapes
    return Architecture(
        class_token=classes,
        dist_token="dist_token" in shapes,
        registers=_shape(shapes, "reg_token", 3)[1] if "reg_token" in shapes else 0,
        positions=positions,
        prefix_positions=not (prefix and positions)
        or patches != shapes["pos_embed"][1],
        patch_bias="patch_embed.proj.bias" in shapes,
        qkv_bias=keyless or f"{first}.attn.qkv.bias" in shapes,
        key_bias=not keyless,
        pre_norm="norm_pre.weight" in shapes,
        attn_norm=f"{first}.attn.norm.weight" in shapes,
        mlp_norm=f"{first}.mlp.norm.weight" in shapes,
        layer_scale=f"{first}.ls1.gamma" in shapes,
        mlp="swiglu" if f"{first}.mlp.fc1_g.weight" in shapes else "gelu",
        pool="map" if "attn_pool.latent" in shapes else pool,
        final_norm="norm.weight" in shapes,
        fc_norm=fc_norm,
    )


def _prefix(shapes):
    """Tokens in front of the patches."""
    names = ("cls_token", "dist_token", "reg_token")
    return sum(_shape(shapes, name, 3)[1] for name in names if name in shapes)


def _side(rows, prefix):
    """Side of the square grid of `rows` positions, those of a prefix among them or not.

    A number that can be read both ways is that of a 3x3 grid and five tokens at most:
    it is read with the prefix.
    """
    for count in (rows - prefix, rows):
        side = math.isqrt(max(0, count))
        if side and side * side == count:
            return side
    return None


def _shape(shapes, name, rank):
    found = shapes.get(name)
    if found is None or len(found) != rank:
        raise InputError(
            f"tensor {name} is {'missing' if found is None else f'of {found}'}; "
            f"a vision transformer has it with {rank} axes"
        )
    return found


def _stem(shapes):
    """(name, patch size): each convolution of the conv stem halves the sides."""
    convolutions = sum(
        name.startswith("patch_embed.conv.") and len(found) == 4
        for name, found in shapes.items()
    )
    if convolutions:
        return "conv", 2**convolutions
    return "patch", _shape(shapes, "patch_embed.proj.weight", 4)[2]


def _told(arch):
    """An Architecture as far as shapes tell it, the default in all else."""
    plain = {field: getattr(DEIT, field) for field in UNTOLD}
    if not arch.class_token or arch.pool == "map":
        del plain["pool"]
    return dataclasses.replace(arch, **plain)


def _checked(given, shapes, sizes, parts):
    """Facts of the model that is named; InputError where tensors contradict them."""
    facts, arch = registry.facts(given.get("name")), registry.architecture(given)
    if arch.positions:
        _shape(shapes, "pos_embed", 3)
    whose = "it is given with" if given.get("arch") else f"{given['name']!r} has"
    for field in (f.name for f in dataclasses.fields(Architecture)):
        ours, theirs = getattr(_told(arch), field), getattr(_told(parts), field)
        if ours != theirs:
            raise InputError(
                f"these are tensors of a model with {field}={theirs!r}, but {whose} "
                f"{field}={ours!r}; allowed is the name of a model that has what they "
                "have"
            )
    same = facts.get("embed_dim") == sizes["embed_dim"]
    facts = facts if same else {k: v for k, v in facts.items() if k != "num_heads"}
    return facts | {"arch": arch}


def _public(sizes, parts):
    """{name: facts} of the known models of these sizes and parts."""
    known = {
        name: registry.facts(name) for name in (*registry.MODELS, *public.tagged())
    }
    told = {field: sizes[field] for field in SIZES}
    return {
        name: facts
        for name, facts in known.items()
        if all(registry.size_of(facts)[field] == told[field] for field in told)
        and _told(facts.get("arch", DEIT)) == _told(parts)
    }


def _open_parts(parts):
    """Fields of an Architecture that cannot be given alone, nor are the usual ones."""
    archs = [registry.facts(name).get("arch", DEIT) for name in public.table()]
    alike = [arch for arch in archs if _told(arch) == _told(parts)]
    turns = is_eva(parts) or any(arch.rotary for arch in alike)
    reads = parts.pool == "map" and parts.prefix
    found = ["rotary"] * turns + ["pool_include_prefix"] * bool(reads)
    # Of parts that no known model has together, what else differs is not known either:
    # vit_base_patch16_rpn_224 has its norms behind the branches.
    return found if found or alike else ["arch"]


def _values(field, known, given):
    """What a field can be: by what is given, else by each of the `known` models."""
    if field in given:
        value = given[field]
        several = field in IMAGES or isinstance(value, list)
        return {tuple(value) if several else value}
    if field in UNTOLD:
        return {getattr(m.get("arch", DEIT), field) for m in known.values()}
    return {
        tuple(m[field]) if field in IMAGES else m[field]
        for m in known.values()
        if field in m
    }


def _several(known, unknown, sizes, parts):
    """One sentence on what cannot be known, and how to say it."""
    listed = ", ".join(unknown)
    fields = " ".join(f"{field}=.." for field in unknown)
    if not known:
        return _unheard_of(unknown, sizes, parts)
    if len(known) == 1:
        ((name, facts),) = known.items()
        name, width = (
            name or "what is given",
            facts.get("embed_dim", sizes["embed_dim"]),
        )
        if width != sizes["embed_dim"]:
            found = sizes["embed_dim"]
            alike = [*_public(sizes, parts)][:MOST]
            listed = f" ({', '.join(alike)}, as FILE.py:{alike[0]})" if alike else ""
            return (
                f"{name!r} is {width} wide and these tensors are {found}: name a model "
                f"of that width, in commands a config of it{listed}, or give {fields}"
            )
        return (
            f"{name!r} does not say, and no tensor does, its {listed}: "
            f"give {fields}, in commands --config.model.{unknown[0]}=.."
        )
    remedy = "name one, name=.., in commands --config.model.name=.."
    if set(unknown) <= set(GIVEN):
        remedy += f", or give {fields}"
    rest = len(known) - MOST
    names = ", ".join([*known][:MOST]) + f" and {rest} others" * (rest > 0)
    return f"these tensors could be of {names}, which differ in {listed}: {remedy}"


def _unheard_of(unknown, sizes, parts):
    """The sentence on tensors of sizes that no public model has."""
    if is_eva(parts) and parts.positions:
        return (
            "these are EVA's tensors, of no known size, which do not tell whether a "
            "norm is in front of a branch or behind it, nor whether positions are "
            "rotary: give a name, name=.., in commands --config.model.name=.., or a "
            "folder with its config.json"
        )
    size = ", ".join(f"{field} {sizes[field]:g}" for field in SIZES)
    alike = [
        name
        for name in (*registry.MODELS, *public.table())
        if _told(registry.facts(name).get("arch", DEIT)) == _told(parts)
    ]
    remedies = []
    if set(unknown) <= set(GIVEN):
        fields = " ".join(f"{field}=.." for field in unknown)
        remedies.append(f"give {fields}, in commands --config.model.{unknown[0]}=..")
    if alike:
        heads = ", num_heads=.." if "num_heads" in unknown else ""
        remedies.append(
            f"name a model that is alike in all else, such as name={alike[0]!r}{heads}"
            f", in commands --config.model.name={alike[0]}"
        )
    if not remedies:
        remedies.append("give its arch=.. and name=None, as create_model takes them")
    kind = "model" if parts.positions else "model without pos_embed"
    return (
        f"no known {kind} has {size}, and no tensor says its {', '.join(unknown)}: "
        f"{', or '.join(remedies)}"
    )
