"""Models by name, and the checks of their fields."""

import numbers
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.attention import resolve_backend
from imagepiece_jax.models.block import GELUS, kernel_of
from imagepiece_jax.models.stems import STEMS, conv_stem_widths
from imagepiece_jax.models.vit import MEAN, STD, ViT
from imagepiece_jax.reduction import layer_plan, methods
from imagepiece_jax.reduction.kernels import fused

MODELS = {
    "deit_ti": dict(patch_size=16, embed_dim=192, depth=12, num_heads=3),
    "deit_s": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "deit_b": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "vit_mini": dict(patch_size=2, embed_dim=64, depth=6, num_heads=4),
}
KERNELS = ("plain", "fused", "auto")  # of reductions
DTYPES = ("float32", "bfloat16", "float16")
MLP_RATIO = 4.0  # of all models by name


def create_model(
    name,
    *,
    image_size=224,
    num_classes=1000,
    reduction=None,
    stem="patch",
    gelu="exact",
    class_token=True,
    mean=None,
    std=None,
    masked=False,
    dtype="float32",
    attention="auto",
    kernels="plain",
    drop_path_rate=0.0,
    prop_attn=None,
    trace_source=False,
    axis_name=None,
    class_names=None,
    **fields,
):
    """A ViT by name, with a reduction such as {"name": "evit", "keep_rate": 0.7}.

    `fields` override the size that the name stands for: patch_size, embed_dim, depth,
    num_heads, mlp_ratio; None leaves it. `prop_attn` None: as the reduction is meant
    (ToMe: with proportional attention, the others: without). Without `class_token` the
    head reads the mean over patches. `mean` and `std`: how the images that it is for
    are normalized, of pixels in [0, 1]; None: as ImageNet's. `masked` gives the model
    that training uses: methods that train with a mask keep all tokens there; for the
    others it is the same. `class_names`: a name for each class, which the model keeps
    for its predictions. InputError for anything that does not fit.
    """
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
    size = _size(name, fields)
    depth = size.pop("depth")
    dtype = dtype_name(dtype)
    mean, std = _normalization(mean, std)
    _check(size, image_size, num_classes, stem, gelu, dtype, drop_path_rate)
    if class_names is not None and len(class_names) != num_classes:
        raise InputError(
            f"class_names has {len(class_names)} names; the model has {num_classes} "
            "classes"
        )
    method = methods.create(**(reduction or {}))
    if prop_attn is None:
        prop_attn = method.model_fields.get("prop_attn", False)
    switches = {"class_token": class_token, "prop_attn": prop_attn}
    for field, value in (switches | {"trace_source": trace_source}).items():
        if not isinstance(value, bool):
            raise InputError(
                f"config.model.{field} is {value!r}; allowed are True, False"
            )
    side = image_size // size["patch_size"]
    steps = method.steps(depth)
    plan = layer_plan.build(depth, side * side, steps, int(class_token), masked)
    _check_plan(plan, class_token, side)
    model = ViT(
        plan=plan,
        num_classes=num_classes,
        stem=stem,
        gelu=gelu,
        class_token=class_token,
        mean=mean,
        std=std,
        dtype=jnp.dtype(dtype),
        backend=resolve_backend(
            attention, dtype, size["embed_dim"] // size["num_heads"]
        ),
        drop_path_rate=drop_path_rate,
        prop_attn=prop_attn,
        trace_source=trace_source,
        axis_name=axis_name,
        class_names=None if class_names is None else tuple(class_names),
        **size,
    )
    return model.clone(kernels=resolve_kernels(kernels, model))


def dtype_name(dtype):
    """The name of a type such as jnp.bfloat16; anything else unchanged."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    try:
        return jnp.dtype(dtype).name
    except (TypeError, ValueError):
        return dtype


def resolve_kernels(requested, model, device=None):
    """The device whose fused kernels do the reductions of `model`; None: plain JAX.

    "plain", "fused" (InputError where they do not run) or "auto" (an NVIDIA GPU's where
    they run, else none). `device` None is the first. Reductions that have no fused
    kernel stay plain.
    """
    if requested not in KERNELS:
        listed = ", ".join(repr(k) for k in KERNELS)
        raise InputError(f"config.model.kernels is {requested!r}; allowed are {listed}")
    fusing = [layer for layer in model.plan if layer.counts and kernel_of(layer)]
    if requested == "plain" or not fusing:
        return None
    device = jax.local_devices()[0] if device is None else device
    if requested == "auto" and device.platform == "cpu":
        return None
    capability = getattr(device, "compute_capability", None)
    obstacle = fused.obstacle(device.platform, capability)
    dim, heads, prefix = model.embed_dim, model.num_heads, int(model.class_token)
    for layer in fusing if obstacle is None else ():
        tokens = layer.counts.n_in + prefix
        obstacle = obstacle or fused.misfit(
            kernel_of(layer),
            jax.ShapeDtypeStruct((1, tokens, heads, dim // heads), model.dtype),
            jax.ShapeDtypeStruct((1, tokens, dim), model.dtype),
            candidates=layer.counts.candidates or 0,
            num_prefix=prefix,
            platform=device.platform,
            compute_capability=capability,
        )
    if obstacle is None:
        return "cpu" if device.platform == "cpu" else str(capability)
    if requested == "auto":
        return None
    raise InputError(
        f"config.model.kernels is 'fused', which needs {obstacle}; allowed here are "
        "'plain' and 'auto'"
    )


def _size(name, changes):
    """The size that `name` stands for, with those of `changes` that are not None."""
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise InputError(f"config.model.name is {name!r}; the models are {known}")
    size = {"mlp_ratio": MLP_RATIO} | MODELS[name]
    for field, value in changes.items():
        if field not in size:
            raise InputError(
                f"config.model.{field} is not a field; a size has {', '.join(size)}"
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
    return size


def _normalization(mean, std):
    """Mean and standard deviation of the images, ImageNet's where neither is given."""
    if (mean is None) != (std is None):
        given, lacking = ("mean", "std") if std is None else ("std", "mean")
        raise InputError(
            f"config.model.{given} is given, config.model.{lacking} is not; allowed "
            "are both or neither"
        )
    mean = channels("config.model.mean", MEAN if mean is None else mean)
    return mean, channels("config.model.std", STD if std is None else std, True)


def _check(size, image_size, num_classes, stem, gelu, dtype, drop_path_rate):
    whole = isinstance(image_size, numbers.Integral)
    if not whole or image_size < 1 or image_size % size["patch_size"]:
        raise InputError(
            f"config.image_size is {image_size!r}; allowed are multiples of "
            f"config.model.patch_size, {size['patch_size']}"
        )
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
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise InputError(
            f"config.num_classes is {num_classes!r}; allowed are 1 or more"
        )
    if stem not in STEMS:
        raise InputError(
            f"config.model.stem is {stem!r}; the stems are {', '.join(STEMS)}"
        )
    if stem == "conv":
        conv_stem_widths(size["embed_dim"], size["patch_size"])
    if gelu not in GELUS:
        raise InputError(
            f"config.model.gelu is {gelu!r}; allowed are {', '.join(GELUS)}"
        )
    if dtype not in DTYPES:
        raise InputError(
            f"config.model.dtype is {dtype!r}; allowed are {', '.join(DTYPES)}"
        )
    if not isinstance(drop_path_rate, numbers.Real) or not 0 <= drop_path_rate < 1:
        raise InputError(
            f"config.model.drop_path_rate is {drop_path_rate!r}; allowed are numbers "
            "from 0 to below 1"
        )


def channels(field, values, positive=False):
    """`values`, of pixels in [0, 1], as a tuple of a float for red, green and blue.

    InputError, which names `field`, for anything but three numbers from 0 to 1, above 0
    where they must be `positive`: those of pixels in [0, 255] are refused.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    found = tuple(values) if listed else ()
    right = all(isinstance(v, numbers.Real) and 0 <= v <= 1 for v in found)
    if len(found) != 3 or not right or (positive and min(found) == 0):
        bounds = "above 0 and up to 1" if positive else "from 0 to 1"
        raise InputError(
            f"{field} is {values!r}; allowed are three numbers {bounds}, of pixels in "
            "[0, 1], such as (0.5, 0.5, 0.5)"
        )
    return tuple(map(float, found))


def _check_plan(plan, class_token, side):
    """InputError for a step that needs what the model, or the grid, does not have."""
    grid = (side, side)
    for block, layer in enumerate(plan):
        if layer.step is None:
            continue
        needs = layer.step.reducer.needs
        if "cls_attn" in needs and not class_token:
            raise InputError(
                "config.model.class_token is False, but the reduction at block "
                f"{block} chooses tokens by the attention of the class token"
            )
        seen = needs & {"cls_attn", "attn_columns", "metric"}
        if block == 0 and layer.step.site == "pre" and seen:
            raise InputError(
                "config.reduction has a step before block 0 that reads the attention "
                "of the block before it; allowed are blocks from 1"
            )
        if layer.counts:
            layer.step.reducer.check_grid(grid)
            grid = None
