"""Models by name, and the checks of their fields."""

import dataclasses
import math
import numbers
from collections.abc import Mapping

import jax.numpy as jnp

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.models import public
from imagepiece_jax.models.architecture import (
    Architecture,
    check_fields,
    check_parts,
    of_fields,
)
from imagepiece_jax.models.attention import resolve_backend
from imagepiece_jax.models.stems import STEMS, conv_stem_widths
from imagepiece_jax.models.vit import MEAN, STD, ViT
from imagepiece_jax.reduction import contract, layer_plan, methods, settings
from imagepiece_jax.reduction.kernels import resolve_kernels
from imagepiece_jax.reduction.methods.method import ModelFacts

DEIT = dict(patch_size=16, depth=12, mean=MEAN, std=STD)
MODELS = {
    "deit_ti": DEIT | dict(embed_dim=192, num_heads=3),
    "deit_s": DEIT | dict(embed_dim=384, num_heads=6),
    "deit_b": DEIT | dict(embed_dim=768, num_heads=12),
    "vit_mini": DEIT | dict(patch_size=2, embed_dim=64, depth=6, num_heads=4),
}
DTYPES = ("float32", "bfloat16", "float16")
# Fields of an Architecture that can be given without it.
ONE_BY_ONE = ("gelu", "norm_eps", "resize", "class_token")
MLP_RATIO = 4.0  # of models whose facts name none
SIZES = ("mlp_ratio", "patch_size", "embed_dim", "depth", "num_heads")


def create_model(
    name,
    *,
    image_size=None,
    num_classes=None,
    reduction=None,
    arch=None,
    stem="patch",
    gelu=None,
    norm_eps=None,
    resize=None,
    class_token=None,
    mean=None,
    std=None,
    masked=False,
    dtype="float32",
    attention="auto",
    kernels=None,
    drop_path_rate=0.0,
    prop_attn=None,
    trace_source=False,
    axis_name=None,
    **fields,
):
    """A ViT by name, with a reduction such as {"name": "evit", "keep_rate": 0.7}.

    name: of MODELS, or timm's of a public model with or without its tag, such as
    "vit_small_patch14_reg4_dinov2.lvd142m", or None where `arch` and the size are
    given. Whatever is None is as the name has it: image_size (pixels a side, or
    (height, width)), num_classes (0: no head), `arch` (an architecture.Architecture or
    its fields), `mean` and `std` (of the images that it is for, of pixels in [0, 1]),
    and the size: patch_size, embed_dim, depth, num_heads, mlp_ratio. `gelu`,
    `norm_eps`, `resize` and `class_token` change these of `arch` alone; without class
    token the head reads the mean over patches. `prop_attn` None: as the reduction is
    meant (ToMe: with proportional attention, the others: without), but that weights of
    MAE are used without; it may stand in `reduction`, too. `masked` gives the
    model that training uses: methods that train with a mask keep all tokens there; for
    the others it is the same. InputError for anything that does not fit.
    """
    own = facts(name)
    size = _size(name, own, fields)
    changes = {"gelu": gelu, "norm_eps": norm_eps, "resize": resize}
    changes |= {"arch": arch, "class_token": class_token}
    arch = architecture({"name": name, **changes})
    check_parts("config.model.arch", arch)
    image_size = own.get("image_size", 224) if image_size is None else image_size
    num_classes = own.get("num_classes", 1000) if num_classes is None else num_classes
    if mean is None and std is None:
        mean, std = own.get("mean"), own.get("std")
    if isinstance(image_size, list):
        image_size = tuple(image_size)
    depth = size.pop("depth")
    dtype = dtype_name(dtype)
    mean, std = normalization(mean, std)
    cut = name is None or image_size == own.get("image_size")
    patches = grid(image_size, size["patch_size"], cut)
    _check(size, num_classes, stem, dtype, drop_path_rate)
    _check_parts(size, stem, arch)
    _check_switch("trace_source", trace_source)
    dense = ViT(
        plan=layer_plan.build(depth, math.prod(patches), (), arch.prefix),
        num_classes=num_classes,
        stem=stem,
        arch=arch,
        mean=mean,
        std=std,
        dtype=jnp.dtype(dtype),
        backend=resolve_backend(
            attention, dtype, size["embed_dim"] // size["num_heads"]
        ),
        drop_path_rate=drop_path_rate,
        trace_source=trace_source,
        axis_name=axis_name,
        **size,
    )
    model = reduced(dense, reduction, patches, name, prop_attn, masked)
    return model.clone(kernels=resolve_kernels(kernels or "plain", model))


def reduced(dense, reduction, grid, name=None, prop_attn=None, masked=False):
    """A dense ViT with a reduction, for images of a `grid` (height, width) of patches.

    name, prop_attn, masked: as for `create_model`.
    """
    reduction, prop_attn = split_reduction(reduction, prop_attn)
    told = {"patches": math.prod(grid), "embed_dim": dense.embed_dim}
    told |= {"class_token": dense.arch.class_token, "pool": dense.arch.pool}
    told |= {"depth": dense.depth, "name": name}
    method = methods.create(**reduction).resolved(ModelFacts(**told))
    if prop_attn is None:
        usual = method.model_fields.get("prop_attn", False)
        prop_attn = facts(name).get("prop_attn", usual)
    _check_switch("prop_attn", prop_attn)
    steps, prefix = method.steps(dense.depth), dense.arch.prefix
    plan = layer_plan.build(dense.depth, math.prod(grid), steps, prefix, masked)
    contract.check_plan(plan, dense.arch, grid)
    return dense.clone(plan=plan, prop_attn=prop_attn)


def split_reduction(reduction, prop_attn=None):
    """(fields of the method, prop_attn) of a reduction that may name both."""
    if not isinstance(reduction or {}, Mapping):
        raise InputError(
            f"reduction is {reduction!r}; allowed is a dict with a name and fields, "
            'such as {"name": "evit", "keep_rate": 0.7}'
        )
    if reduction and "name" not in reduction:
        raise InputError(
            f"reduction is {dict(reduction)!r}, which has no name; the names are "
            f"{', '.join(sorted(methods.METHODS))}"
        )
    reduction, inside = settings.split(reduction or settings.DENSE)
    if prop_attn is None:
        prop_attn = inside.get("prop_attn")
    if inside.get("prop_attn", prop_attn) != prop_attn:
        raise InputError(
            f"config.model.prop_attn is {prop_attn!r}, in config.reduction "
            f"{inside['prop_attn']!r}; allowed is one of them"
        )
    return reduction, prop_attn


def facts(name):
    """What `name` stands for, as fields of `create_model`; InputError if unknown.

    Nothing for None.
    """
    if name is None:
        return {}
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    found = public.model(name) if isinstance(name, str) else None
    if found is None:
        listed = f"the models are {', '.join(MODELS)} and timm's"
        hint = suggestion(str(name), [*MODELS, *public.names()], listed)
        if meant := public.similar(str(name)):
            hint = f"did you mean {meant}?"
        raise InputError(f"config.model.name is {name!r}; {hint}")
    return found


def size_of(own):
    """The SIZES in facts of a model."""
    return {"mlp_ratio": MLP_RATIO} | {k: own[k] for k in SIZES if k in own}


def architecture(fields):
    """The Architecture by the fields name, arch, and those of ONE_BY_ONE."""
    arch = fields.get("arch") or facts(fields.get("name")).get("arch", Architecture())
    if isinstance(arch, Architecture):
        check_fields("config.model.arch", dataclasses.asdict(arch))
    else:
        arch = of_fields("config.model.arch", arch)
    given = {k: fields[k] for k in ONE_BY_ONE if fields.get(k) is not None}
    check_fields("config.model", given)
    if given.get("class_token", arch.class_token) != arch.class_token:
        given["pool"] = "token" if given["class_token"] else "mean"
    return dataclasses.replace(arch, **given)


def _check_switch(field, value):
    if not isinstance(value, bool):
        raise InputError(f"config.model.{field} is {value!r}; allowed are True, False")


def dtype_name(dtype):
    """The name of a type such as jnp.bfloat16; anything else unchanged."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    try:
        return jnp.dtype(dtype).name
    except (TypeError, ValueError):
        return dtype


def _size(name, own, changes):
    """The size in the facts `own`, with those of `changes` that are not None."""
    size = size_of(own)
    for field, value in changes.items():
        if field not in SIZES:
            raise InputError(
                f"config.model.{field} is not a field; a size has {', '.join(SIZES)}"
            )
        if value is None:
            continue
        kind, whole = numbers.Integral, "whole "
        if field == "mlp_ratio":
            kind, whole = numbers.Real, ""
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or not 0 < value < 1e9:
            raise InputError(
                f"config.model.{field} is {value!r}; allowed are positive {whole}"
                "numbers"
            )
        size[field] = value
    if lacking := [field for field in SIZES if field not in size]:
        raise InputError(
            f"config.model.name is {name!r} and config.model.{lacking[0]} is empty; "
            f"allowed are a name, or all of arch, {', '.join(SIZES)}"
        )
    return size


def normalization(mean, std):
    """Mean and standard deviation of the images, ImageNet's where neither is given."""
    if (mean is None) != (std is None):
        given, lacking = ("mean", "std") if std is None else ("std", "mean")
        raise InputError(
            f"config.model.{given} is given, config.model.{lacking} is not; allowed "
            "are both or neither"
        )
    mean = channels("config.model.mean", MEAN if mean is None else mean)
    return mean, channels("config.model.std", STD if std is None else std, True)


def grid(image_size, patch_size, cut=False):
    """(height, width) in patches of images of `image_size`.

    cut: what is left at the sides is, as where a model was published at such a size;
    else that must be a multiple of the patch size.
    """
    both = sides(image_size)
    whole = all(isinstance(side, numbers.Integral) for side in both)
    right = len(both) == 2 and whole and min(both) >= patch_size
    if right and not cut:
        right = not any(side % patch_size for side in both)
    if not right:
        raise InputError(
            f"config.image_size is {image_size!r}; allowed are multiples of "
            f"config.model.patch_size, {patch_size}"
        )
    return both[0] // patch_size, both[1] // patch_size


def _check(size, num_classes, stem, dtype, drop_path_rate):
    if size["embed_dim"] % size["num_heads"]:
        raise InputError(
            f"config.model.num_heads is {size['num_heads']}; allowed are divisors of "
            f"config.model.embed_dim, {size['embed_dim']}"
        )
    if size["embed_dim"] * size["mlp_ratio"] < 1:
        raise InputError(
            f"config.model.mlp_ratio is {size['mlp_ratio']}; allowed are those that "
            f"leave an MLP of {size['embed_dim']}-wide tokens a width of 1 or more"
        )
    if not isinstance(num_classes, numbers.Integral) or num_classes < 0:
        raise InputError(
            f"config.num_classes is {num_classes!r}; allowed are 0 (no head) or more"
        )
    if stem not in STEMS:
        raise InputError(
            f"config.model.stem is {stem!r}; the stems are {', '.join(STEMS)}"
        )
    if stem == "conv":
        conv_stem_widths(size["embed_dim"], size["patch_size"])
    if dtype not in DTYPES:
        raise InputError(
            f"config.model.dtype is {dtype!r}; allowed are {', '.join(DTYPES)}"
        )
    if not isinstance(drop_path_rate, numbers.Real) or not 0 <= drop_path_rate < 1:
        raise InputError(
            f"config.model.drop_path_rate is {drop_path_rate!r}; allowed are numbers "
            "from 0 to below 1"
        )


def _check_parts(size, stem, arch):
    if stem == "conv" and not arch.patch_bias:
        raise InputError(
            "config.model.stem is 'conv', whose projection has a bias, which "
            "config.model.arch.patch_bias is False for; allowed is 'patch'"
        )
    width = size["embed_dim"] // size["num_heads"]
    if arch.rotary is not None and width % 4:
        raise InputError(
            f"config.model.num_heads is {size['num_heads']}, which makes heads of a "
            f"width of {width}; allowed with rotary positions are multiples of 4"
        )
