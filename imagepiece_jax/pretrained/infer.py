"""Which model weights are of: who says what, and whose word counts.

Shapes show sizes and parts. The number of heads, the kind of GELU, the epsilon of norms
and the normalization of the images are in no tensor. Nothing is guessed: a name, a
layout, a config.json or the caller says them.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.config import (
    ONE_BY_ONE,
    ModelConfig,
    normalization,
    patch_grid,
)
from imagepiece_jax.pretrained.layouts import Contents
from imagepiece_jax.pretrained.records import CONFIG, PREPROCESSOR
from imagepiece_jax.pretrained.timm_config import is_eva

# Fields of an Architecture that no shape shows; a pool with parameters is shown.
UNTOLD = ("norm_eps", "gelu", "resize", "rotary", "pool", "pool_include_prefix")
ALWAYS = ("norm_eps", "gelu", "resize")  # those of them that every model has to have
# What can be given beside a name, or instead.
ALONE = ("num_heads", *ALWAYS, "image_size", "mean", "std")
PLACE = "place its config.json beside it"  # what a file alone does not say is there
MOST = 5  # names in a sentence


def infer_weights(
    contents: Contents,
    stated: ModelConfig,
    asked: ModelConfig,
    path: pathlib.Path,
    where: str,
) -> ModelConfig:
    """The config of the model that weights are of.

    contents: tensors, and what their layout says of the model
    stated: what a config.json says, or of a file its layout and its name
    asked: what the caller says of the model, or wants changed
    path: of a folder, whose config.json caller and layout only complete; or of a file,
        of which the caller is right, then the layout, then the name
    where: what has the weights, as a sentence calls it
    Raises InputError as `infer`, and where the tensors have another number of heads.
    """
    if path.is_dir():
        # `ModelConfig.changed` compares the rest of what is asked for.
        settled = ("image_size",)
        if stated.name or stated.arch:
            settled += ("name", "arch", "num_heads", *ONE_BY_ONE)
        known = stated.over(_without(asked, settled), contents.config)
    else:
        known = _known_of_file(contents, stated, asked)
    heads = contents.config.num_heads
    try:
        config = infer(contents.tensors, known)
        if heads not in (None, config.num_heads):
            raise InputError(
                f"num_heads is {config.num_heads!r}, but its tensors are those of "
                f"{heads} heads; allowed: {heads}"
            )
        return config
    except InputError as error:
        place, folder = PLACE, path.parent
        if path.is_dir():  # its config.json is there; mean and std are in another file
            place = f"place its {PREPROCESSOR} beside it"
        elif (folder / CONFIG).is_file():
            place = f"name its folder, {folder}, which has a config.json"
        raise InputError(f"{where}: {str(error).replace(PLACE, place)}") from error


def _known_of_file(contents, stated, asked):
    """What caller, layout and name say together of the model of a file."""
    name = asked.name or stated.name
    facts = {} if name in registry.MODELS else registry.facts(name)
    if facts and asked.name:  # the function of that model, whatever the layout
        heads = ModelConfig(num_heads=contents.config.num_heads)
        stated = contents.images.over(heads)
    size = _size_of_positions(asked.image_size, facts)
    known = dataclasses.replace(asked, image_size=size)
    if not facts or asked.arch:
        return known.over(stated, ModelConfig(name=name))
    known = _without(known, ("norm_eps", "resize")).over(stated, ModelConfig(name=name))
    norm = contents.tensors.get("blocks.0.norm1.weight")
    of_name = np.shape(norm) == (facts["embed_dim"],)
    return _without(known, ("num_heads",)) if of_name else known


def _without(config, fields):
    return dataclasses.replace(config, **dict.fromkeys(fields))


def _size_of_positions(asked, facts):
    """The size that shows how the positions of a file lie, where one is asked for.

    That of the name where it has as many patches: positions are resized from it.
    """
    usual = facts.get("image_size")
    if not asked or not usual:
        return asked
    patches = [_patches(size, facts["patch_size"]) for size in (asked, usual)]
    return usual if patches[0] == patches[1] else asked


def infer(tensors: Mapping[str, np.ndarray], known: ModelConfig) -> ModelConfig:
    """The config of the model that tensors are of.

    tensors: by timm's names
    known: what its name, its layout, a config.json or the caller says
    Returns all sizes, the whole Architecture, mean and std, and the name that is known.
    Raises InputError where these are no tensors of a vision transformer that can be
        made here, where they contradict what is known, and where that is not enough.
    """
    if (known.mean is None) != (known.std is None):
        normalization(known.mean, known.std)  # which says so
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = _sizes(shapes, known)
    parts, named = _parts(shapes, sizes), registry.facts(known.name)
    fields = known.fields
    if named.get("embed_dim") == sizes["embed_dim"]:
        fields = {"num_heads": named["num_heads"]} | fields
    if {"mean", "std"} <= {*named}:
        fields = {"mean": named["mean"], "std": named["std"]} | fields
    if sizes["image_size"] is None:
        fields = {k: v for k, v in named.items() if k == "image_size"} | fields
        sizes["image_size"] = fields.get("image_size")
    lacking = [f for f in ("num_heads", "mean", "std") if f not in fields]
    lacking += ["image_size"] if sizes["image_size"] is None else []
    if named or known.arch:
        arch = known.architecture
        _check_parts(known, arch, parts, shapes)
    else:
        lacking += [f for f in (*ALWAYS, *_open_parts(parts)) if f not in fields]
        values = {field: fields.get(field, getattr(DEIT, field)) for field in ALWAYS}
        arch = dataclasses.replace(parts, **values)
    if lacking:
        raise InputError(_question(lacking, known, sizes, parts))
    mean, std = normalization(fields["mean"], fields["std"])
    return ModelConfig(
        name=known.name,
        arch=arch,
        num_heads=fields["num_heads"],
        mean=mean,
        std=std,
        **sizes,
    )


def _sizes(shapes, known):
    """image_size, num_classes, stem and sizes that shapes show.

    image_size is as known, or as the name has it, where that makes this grid: it need
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
        image_size = _image_size(rows, _prefix(shapes), patch_size, known)
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


def _image_size(rows, prefix, patch_size, known):
    """Of `rows` positions, those of the prefix among them or not."""
    named = registry.facts(known.name).get("image_size")
    for size in filter(None, (known.image_size, named)):
        if _patches(size, patch_size) in (rows - prefix, rows):
            return size
    side = _side(rows, prefix)
    if side is None:
        raise InputError(
            f"tensor pos_embed has {rows} rows; allowed: a square number, and one "
            "for each token in front of the patches or none; of images that are no "
            "squares the size is to be given, image_size=(height, width)"
        )
    return side * patch_size


def _patches(image_size, patch_size):
    """Their number in an image; what is left at its sides is cut."""
    return math.prod(patch_grid(image_size, patch_size, cut=True))


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
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise InputError(
            f"tensor {name} is {'missing' if shape is None else f'of {shape}'}; "
            f"allowed: plain vision transformers, in which its rank is {rank}"
        )
    return shape


def _stem(shapes):
    """(name, patch size): each convolution of the conv stem halves the sides."""
    convolutions = sum(
        name.startswith("patch_embed.conv.") and len(shape) == 4
        for name, shape in shapes.items()
    )
    if convolutions:
        return "conv", 2**convolutions
    return "patch", _shape(shapes, "patch_embed.proj.weight", 4)[2]


def _told(arch):
    """An Architecture as far as shapes show it, the default in all else."""
    plain = {field: getattr(DEIT, field) for field in UNTOLD}
    if not arch.class_token or arch.pool == "map":
        del plain["pool"]
    return dataclasses.replace(arch, **plain)


def _check_parts(known, arch, parts, shapes):
    """InputError where tensors contradict the Architecture that is known."""
    if arch.positions:
        _shape(shapes, "pos_embed", 3)
    whose = "it is given with" if known.arch else f"{known.name!r} has"
    for field in (f.name for f in dataclasses.fields(Architecture)):
        ours, theirs = getattr(_told(arch), field), getattr(_told(parts), field)
        if ours != theirs:
            raise InputError(
                f"these are tensors of a model with {field}={theirs!r}, but {whose} "
                f"{field}={ours!r}; allowed: the name of a model that has what they "
                "have"
            )


def _open_parts(parts):
    """Fields of an Architecture that cannot be given alone, nor are the usual ones."""
    archs = [
        registry.facts(name).get("arch", DEIT) for name in registry.public_models()
    ]
    alike = [arch for arch in archs if _told(arch) == _told(parts)]
    turns = is_eva(parts) or any(arch.rotary for arch in alike)
    reads = parts.pool == "map" and parts.prefix
    fields = ["rotary"] * turns + ["pool_include_prefix"] * bool(reads)
    # Of parts that no known model has together, what else differs is not known either:
    # vit_base_patch16_rpn_224 has its norms behind the branches.
    return fields if fields or alike else ["arch"]


def _question(lacking, known, sizes, parts):
    """One sentence on what is not known, and how to say it."""
    listed, name = ", ".join(lacking), known.name
    fields = " ".join(f"{field}=.." for field in lacking)
    first = f"--config.model.{lacking[0]}=.. (a teacher's: --config.teacher)"
    give = f"give {fields}, in commands {first}"
    width = registry.facts(name).get("embed_dim", sizes["embed_dim"])
    candidates = _candidates(sizes, parts, "mean" in lacking)
    if width != sizes["embed_dim"]:
        return (
            f"{name!r} is {width} wide and these tensors are {sizes['embed_dim']}: "
            f"name a model of that width{candidates}, or {give}"
        )
    if name or known.arch:
        whose = repr(name) if name else "what is given"
        tags = [tag for tag in _settling(name) if tag != name] if name else []
        say = f"name it with its tag ({', '.join(tags)}), or " if tags else ""
        return f"{whose} does not say, and no tensor does, its {listed}: {say}{give}"
    ways = [PLACE, *[give] * ({*lacking} <= {*ALONE})]
    if candidates or ways[1:] == []:  # a name is enough, or all that can say it
        say = "say which model it is, name=.., in commands --config.model.name=.."
        ways.insert(0, say + candidates)
    return f"no tensor says its {listed}: {', or '.join(ways)}"


def _candidates(sizes, parts, normalized):
    """In brackets, known models of these sizes and parts; "" where there are none.

    normalized: only names that say mean and std
    """
    compared = ("patch_size", "embed_dim", "depth", "mlp_ratio")
    alike = [
        each
        for name in (*registry.MODELS, *registry.public_models())
        if all(registry.facts(name)[field] == sizes[field] for field in compared)
        and _told(registry.facts(name).get("arch", DEIT)) == _told(parts)
        for each in (_settling(name) if normalized else [name])
    ]
    rest = f" and {len(alike) - MOST} others" if len(alike) > MOST else ""
    return f" ({', '.join(alike[:MOST])}{rest})" if alike else ""


def _settling(name):
    """Names that say mean and std: `name`, or with a tag where its tags differ."""
    if name in registry.MODELS or "mean" in registry.facts(name):
        return [name]
    first = {}
    for tag, facts in registry.public_models()[name]["weights"].items():
        first.setdefault(str((facts.get("mean"), facts.get("std"))), f"{name}.{tag}")
    return [*first.values()]
