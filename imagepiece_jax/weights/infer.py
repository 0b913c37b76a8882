"""Which model weights belong to, from shapes, names, layouts, configs and the caller.

Shapes show sizes and parts. The number of heads, the kind of GELU, the epsilon of
norms, the pool, rotary positions, where norms stand and the normalization of the images
are in no tensor, and never guessed. Where several sources say a field, `ORDER` has the
one that decides; docs/models.md prints `table`.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, PARTS, Architecture
from imagepiece_jax.models.pretrained import WeightsSource
from imagepiece_jax.models.spec import ModelSpec, normalization
from imagepiece_jax.weights.file_names import CONFIG, PREPROCESSOR
from imagepiece_jax.weights.layouts import Contents, transformers_parts

# Fields of an Architecture that no shape shows. A map has parameters of its own.
IN_NO_TENSOR = ("norm_eps", "gelu", "resize", "rotary", "post_norm")
IN_NO_TENSOR += ("pool", "pool_include_prefix", "pool_heads")
# Fields that the name of a public model decides; a caller who wants another value
# contradicts it.
SETTLED_BY_NAME = ("norm_eps", "resize", "rotary", "post_norm")
NO_FIELDS = ModelSpec()
NO_PARTS = types.MappingProxyType({})
SHOWN_NAMES = 5  # in a sentence

# What says a field of a model, in the words of `table`.
RUN = "the run's config"
CONFIG_FILES = "its config files"
CALLER = "your arguments"
PUBLIC_NAME = "that name"
LAYOUT = "the layout"
FILE_NAME = "the file's name"
TRAINING = "in training, its config"

# Of these the first that says a field decides it.
ORDER = {
    "a run": (RUN,),
    "a folder": (CONFIG_FILES, CALLER, LAYOUT, TRAINING),
    "a file": (CALLER, LAYOUT, FILE_NAME, TRAINING),
    "a file, and `name=..` of a public model": (
        CALLER,
        PUBLIC_NAME,
        LAYOUT,
        TRAINING,
    ),
}


class Unnamed(InputError):
    """Weights of an unknown model, which a config file beside them would name.

    lacking: names of the fields that nothing says
    """

    def __init__(self, sentence, lacking):
        super().__init__(sentence)
        self.lacking = lacking


def completed(
    source: WeightsSource,
    contents: Contents | None,
    requested: ModelSpec,
    otherwise: ModelSpec = NO_FIELDS,
) -> WeightsSource:
    """A WeightsSource with all fields of the model that weights were trained as.

    Where several sources say a field, the first in `ORDER` decides. It also has the
    crop and the class names of weights that have none of their own and a public name.

    contents: of the path; None for a run, whose config says all
    requested: fields that the caller adds or changes
    otherwise: fields that hold where nothing else says them
    """
    if source.run is not None:
        return source
    place = source.place
    try:
        spec = _trained_spec(source, contents, requested, otherwise)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    names = source.class_names
    normalized = True
    if source.is_folder:
        place += f", {source.config_file.name}"
    else:
        named = spec
        if requested.name in registry.MODELS:  # which says nothing of the images
            named = partial_spec(source, contents)
            normalized = (requested.mean or named.mean) is not None
        name = name_of_images(source, requested)
        names = registry.published_class_names(name, spec.num_classes)
    for field, value in source.sizes.items():
        theirs = getattr(spec, field)
        if value != theirs:
            raise InputError(
                f"{place}: {field} is {value!r}, but its tensors have {theirs!r}"
            )
    return dataclasses.replace(
        with_crop(source, requested),
        spec=dataclasses.replace(spec, dtype=source.spec.dtype),
        class_names=names,
        normalized=normalized,
    )


def with_crop(source: WeightsSource, requested: ModelSpec) -> WeightsSource:
    """A WeightsSource with the crop of the images that its weights were trained for.

    Their run or their folder says it, or it is published for their name.

    requested: fields that the caller adds or changes
    """
    if source.says_crop:
        return source
    name = name_of_images(source, requested)
    crop = registry.published_crop(name)
    tag = registry.chosen_tag(name)
    return dataclasses.replace(source, crop=crop, chosen_tag=tag)


def name_of_images(source: WeightsSource, requested: ModelSpec) -> str | None:
    """The name that says for which images weights are: the caller's, or their own.

    A folder's own counts first. So does a file's where the caller's is one of ours,
    which stands for sizes.

    requested: fields that the caller adds or changes
    """
    names = [requested.name, source.spec.name]
    if source.is_folder or requested.name in registry.MODELS:
        names.reverse()
    return names[0] or names[1]


def _trained_spec(source, contents, requested, otherwise):
    """The config that the weights in a folder or a file were trained with.

    Arguments are those of `completed`.
    """
    path = source.path
    common_parts = contents.common_parts
    if source.is_folder:
        given = _given_for_folder(source, contents, requested)
        tensors = with_fc_norm(contents, given)
        # A config.json without a name is of transformers, whatever the tensors' names.
        common_parts = {**transformers_parts((), tensors), **common_parts}
        way_out = f"place its {PREPROCESSOR} beside it"  # which has mean and std
    else:
        given = _given_for_file(source, contents, requested)
        tensors = with_fc_norm(contents, given)
        way_out = f"place its {CONFIG} beside it"
        if (path.parent / CONFIG).is_file():
            way_out = f"name its folder, {path.parent}, which has a {CONFIG}"
    try:
        spec = infer(tensors, given, common_parts, otherwise)
    except Unnamed as error:
        raise InputError(f"{error}, or {way_out}") from error
    shown_heads = contents.spec.num_heads  # by shapes of some layouts
    if shown_heads not in (None, spec.num_heads):
        heads = spec.num_heads
        raise InputError(
            f"num_heads is {heads!r}, but its tensors are those of {shown_heads} heads"
        )
    return spec


def merged(row: str, by_source: Mapping[str, ModelSpec]) -> ModelSpec:
    """The ModelSpec of which each field is from the first source that says it.

    row: a row of ORDER, which has the sources in their order
    by_source: {source: the fields that it says}
    """
    configs = [by_source[source] for source in ORDER[row] if source in by_source]
    return ModelSpec().completed_by(*configs)


def table() -> str:
    """The table ORDER in Markdown, for docs/models.md."""
    length = max(map(len, ORDER.values()))
    numbers = [str(number) for number in range(1, length + 1)]
    lines = [["", *numbers], ["---"] * (length + 1)]
    for row, sources in ORDER.items():
        lines.append([row, *sources, *[""] * (length - len(sources))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def partial_spec(source: WeightsSource, contents: Contents) -> ModelSpec:
    """The config by name, layout and config.json, without the sizes of tensors."""
    if source.is_folder:
        return source.spec
    spec = merged("a file", _specs_of_file(source, contents))
    return _with_images_of(source.spec.name, spec)


def _specs_of_file(source, contents):
    """{source: the fields that it says}, for the sources of a file but the caller."""
    return {
        LAYOUT: contents.spec,
        FILE_NAME: source.spec,
    }


def _with_images_of(name, spec):
    """A config with mean and std of a public model, where it says neither."""
    if spec.mean is not None or spec.std is not None:
        return spec
    published = registry.public_fields(name or "") or {}
    images = {k: published[k] for k in ("mean", "std") if k in published}
    return dataclasses.replace(spec, **images)


def _given_for_folder(source, contents, requested):
    """The config that files, caller and layout of a folder make together.

    What the caller must not change is left out: `ModelSpec.with_requested` compares
    it later.
    """
    spec = source.spec
    # image_size is the trained size here.
    not_from_caller = ["image_size"]
    if spec.name or _is_full(spec.arch):
        not_from_caller += ["name", "num_heads", *PARTS]
    if not source.saved and "mlp" in not_from_caller:
        not_from_caller.remove("mlp")  # no config.json of timm has its mlp_layer
    by_source = {
        CONFIG_FILES: spec,
        CALLER: _without(requested, not_from_caller),
        LAYOUT: contents.spec,
    }
    return merged("a folder", by_source)


def _given_for_file(source, contents, requested):
    """The config that caller, layout and name of a file make together.

    Fields that the name of a public model decides are that model's, whatever the caller
    says: `ModelSpec.with_requested` compares the two later.
    """
    name = requested.name or source.spec.name
    published = {}
    if name not in registry.MODELS:
        published = registry.fields_of(name)
    row = "a file"
    by_source = _specs_of_file(source, contents)
    if published and requested.name:
        row = "a file, and `name=..` of a public model"
        # The other fields of the layout describe another function than the name does.
        by_source[LAYOUT] = ModelSpec(num_heads=contents.spec.num_heads)
    # image_size is the trained size here. The caller's may be another of as many
    # patches.
    trained_size = requested.image_size
    published_size = published.get("image_size")
    if trained_size and published_size:
        patch_size = published["patch_size"]
        patches = _patches(trained_size, patch_size)
        if patches == _patches(published_size, patch_size):
            trained_size = published_size
    given = dataclasses.replace(requested, image_size=trained_size)
    name_decides = published and not _is_full(requested.arch)
    if name_decides:
        given = _without(given, SETTLED_BY_NAME)
    by_source[CALLER] = given
    images_of = name_of_images(source, requested)
    spec = _with_images_of(images_of, merged(row, by_source))
    norm = contents.tensors.get("blocks.0.norm1.weight")
    if name_decides and np.shape(norm) == (published["embed_dim"],):
        spec = _without(spec, ["num_heads"])
    return spec


def _is_full(arch):
    """Whether a ModelSpec's parts are those of a whole Architecture."""
    return len(arch) == len(PARTS)


def _without(spec, fields):
    """A ModelSpec without some of its fields and parts."""
    empty = dict.fromkeys(field for field in fields if field not in PARTS)
    arch = {part: value for part, value in spec.arch.items() if part not in fields}
    return dataclasses.replace(spec, **empty, arch=arch)


def with_fc_norm(contents: Contents, spec: ModelSpec) -> Mapping[str, np.ndarray]:
    """A checkpoint's tensors, whose last norm is "fc_norm" where it is behind the pool.

    Layouts of other libraries have one name for the last norm in both places. timm
    calls it "norm" in front of the pool.

    spec: of the model; its `fc_norm` says where the norm is
    """
    tensors = contents.tensors
    if "fc_norm" in contents.common_parts or not spec.arch.get("fc_norm"):
        return tensors
    return {re.sub(r"^norm\.", "fc_norm.", name): tensors[name] for name in tensors}


def infer(
    tensors: Mapping[str, np.ndarray],
    partial: ModelSpec,
    common_parts: Mapping[str, Any] = NO_PARTS,
    otherwise: ModelSpec = NO_FIELDS,
) -> ModelSpec:
    """The config of the model that tensors belong to.

    tensors: by timm's names
    partial: fields that its name, its layout, a config.json or the caller says
    common_parts: fields of an Architecture that all models of the tensors' layout have
    otherwise: fields that hold where nothing else says them
    Returns name, all sizes, the full Architecture, mean and std.
    """
    normalization(partial.mean, partial.std)  # refuses one without the other
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = _sizes(shapes, partial, common_parts)
    parts = _parts(shapes, sizes)
    named = registry.fields_of(partial.name)
    taken = ["image_size", "mean", "std"]
    if named.get("embed_dim") == sizes["embed_dim"]:
        taken.append("num_heads")
    of_name = {field: named[field] for field in taken if field in named}
    fields = otherwise.fields | of_name | partial.fields
    sizes["image_size"] = sizes["image_size"] or fields.get("image_size")
    lacking = [f for f in ("num_heads", "mean", "std") if f not in fields]
    if sizes["image_size"] is None:
        lacking.append("image_size")
    if named:
        arch = partial.architecture
    else:
        known = {**common_parts, **partial.arch}  # by other sources than shapes
        # Twice, as a pool that becomes known may leave other fields open.
        for _ in range(2):
            for field in _invisible(parts, known):
                if field in otherwise.arch:
                    known.setdefault(field, otherwise.arch[field])
        invisible = _invisible(parts, known)
        if _has_two_grids(shapes, sizes, partial):
            invisible.append("prefix_positions")
        lacking += [field for field in invisible if field not in known]
        arch = dataclasses.replace(parts, **known)
    _check_parts(partial, arch, parts, shapes)
    if lacking:
        raise _unknown(lacking, partial, sizes, parts)
    mean, std = normalization(fields["mean"], fields["std"])
    heads = fields["num_heads"]
    return ModelSpec(
        name=partial.name, arch=arch, num_heads=heads, mean=mean, std=std, **sizes
    )


def _sizes(shapes, partial, common_parts):
    """image_size, num_classes, stem and sizes that shapes show.

    image_size is that of `partial` or of the name, where it makes this grid: it need be
    no square, and no multiple of the patch size. None: there are no positions.
    """
    stem, patch_size = _stem(shapes)
    if "pos_embed" in shapes:
        _, rows, width = _shape(shapes, "pos_embed", 3)
        grids = _grids(rows, _prefix(shapes), partial, common_parts)
        image_size = _image_size(rows, grids, patch_size, partial)
    else:
        width = _shape(shapes, "blocks.0.norm1.weight", 1)[0]
        image_size = None
    blocks = set()
    for name in shapes:
        if name.startswith("blocks."):
            _, number, *_ = name.split(".")
            blocks.add(number)
    first = "blocks.0.mlp.fc1.weight"
    if "blocks.0.mlp.fc1_g.weight" in shapes:  # a gate beside fc1_x
        first = "blocks.0.mlp.fc1_g.weight"
    hidden, _ = _shape(shapes, first, 2)
    classes = 0
    if "head.weight" in shapes:
        classes, _ = _shape(shapes, "head.weight", 2)
    return {
        "image_size": image_size,
        "num_classes": classes,
        "stem": stem,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": len(blocks),
        "mlp_ratio": hidden / width,
    }


def _grids(rows, prefix, partial, common_parts):
    """Numbers of patches that `rows` positions can have, the likelier first."""
    without_prefix = rows - prefix
    if partial.name or _is_full(partial.arch):  # which `_check_parts` compares later
        if partial.architecture.prefix_positions:
            return [without_prefix, rows]
        return [rows, without_prefix]
    known = {**common_parts, **partial.arch}
    if "prefix_positions" not in known:
        return [without_prefix, rows]
    if known["prefix_positions"]:
        return [without_prefix]
    return [rows]


def _image_size(rows, grids, patch_size, partial):
    """The size of the images that a model with `rows` positions was trained on.

    That is the size which the caller or the name gives, if it makes one of `grids`.
    Else images are taken to be square.

    grids: numbers of patches that they may have, the likelier first
    """
    named = registry.fields_of(partial.name).get("image_size")
    for count in grids:
        for size in (partial.image_size, named):
            if size and _patches(size, patch_size) == count:
                return size
        if _is_square(count):
            return math.isqrt(count) * patch_size
    raise InputError(
        f"tensor pos_embed has {rows} rows, which are no square; give "
        "image_size=(height, width)"
    )


def _is_square(count):
    return count > 0 and math.isqrt(count) ** 2 == count


def _patches(image_size, patch_size):
    """Number of whole patches in an image."""
    return math.prod(patch_grid(image_size, patch_size, cut=True))


def _parts(shapes, sizes):
    """The Architecture that these tensors show, the default in IN_NO_TENSOR fields."""
    positions = "pos_embed" in shapes
    prefix_positions = True
    if positions and _prefix(shapes):
        patches = _patches(sizes["image_size"], sizes["patch_size"])
        prefix_positions = patches != shapes["pos_embed"][1]
    class_token = "cls_token" in shapes
    fc_norm = "fc_norm.weight" in shapes
    pool = "mean"
    if "attn_pool.latent" in shapes:
        pool = "map"
    elif class_token and not fc_norm:
        pool = "token"
    registers = 0
    if "reg_token" in shapes:
        _, registers, _ = _shape(shapes, "reg_token", 3)
    mlp = "gelu"
    if "blocks.0.mlp.fc1_g.weight" in shapes:
        mlp = "swiglu"
    keyless = "blocks.0.attn.q_bias" in shapes
    return Architecture(
        class_token=class_token,
        dist_token="dist_token" in shapes,
        registers=registers,
        positions=positions,
        prefix_positions=prefix_positions,
        patch_bias="patch_embed.proj.bias" in shapes,
        qkv_bias=keyless or "blocks.0.attn.qkv.bias" in shapes,
        key_bias=not keyless,
        pre_norm="norm_pre.weight" in shapes,
        attn_norm="blocks.0.attn.norm.weight" in shapes,
        mlp_norm="blocks.0.mlp.norm.weight" in shapes,
        layer_scale="blocks.0.ls1.gamma" in shapes,
        mlp=mlp,
        pool=pool,
        final_norm="norm.weight" in shapes,
        fc_norm=fc_norm,
    )


def _prefix(shapes):
    """Number of tokens in front of the patches."""
    count = 0
    for name in ("cls_token", "dist_token", "reg_token"):
        if name in shapes:
            count += _shape(shapes, name, 3)[1]
    return count


def _shape(shapes, name, rank):
    """The shape of a tensor, which must be there and of this rank."""
    shape = shapes.get(name)
    if shape is not None and len(shape) == rank:
        return shape
    found = "is missing" if shape is None else f"is of {shape}"
    raise InputError(
        f"tensor {name} {found}; in a plain vision transformer its rank is {rank}"
    )


def _stem(shapes):
    """(name, patch size): each convolution of the conv stem halves the sides."""
    convolutions = 0
    for name, shape in shapes.items():
        if name.startswith("patch_embed.conv.") and len(shape) == 4:
            convolutions += 1
    if convolutions:
        return "conv", 2**convolutions
    return "patch", _shape(shapes, "patch_embed.proj.weight", 4)[2]


def _visible(arch):
    """An Architecture for comparison: IN_NO_TENSOR fields have their defaults."""
    defaults = {field: getattr(DEIT, field) for field in IN_NO_TENSOR}
    if arch.pool == "map":
        del defaults["pool"]
    return dataclasses.replace(arch, **defaults)


def _check_parts(partial, arch, parts, shapes):
    """Refuse tensors that contradict an Architecture."""
    if arch.positions:
        _shape(shapes, "pos_embed", 3)
    wanted = vars(_visible(arch))
    shown = vars(_visible(parts))
    for field, ours in wanted.items():
        theirs = shown[field]
        if ours != theirs:
            whose = "as given"
            if partial.name and field not in partial.arch:
                whose = f"in {partial.name!r}"
            raise InputError(
                f"{field} is {ours!r} {whose}, but {theirs!r} in these tensors"
            )


def _invisible(parts, known):
    """The fields of an Architecture that no tensor of such a model shows.

    parts: the Architecture as far as tensors show it
    known: values by name of those fields that something else has said
    """
    gated = parts.mlp == "swiglu"
    pool = known.get("pool", parts.pool)
    fields = ["norm_eps"]
    if gated:
        # The gate may be a GELU's, or the second half of a packed layer: only who knows
        # the model can say that it is SwiGLU.
        fields.append("mlp")
    else:
        fields.append("gelu")
    if parts.positions:
        fields.append("resize")
    fields.append("rotary")
    if not parts.layer_scale:  # models with norms behind the branches have none
        fields.append("post_norm")
    if parts.pool == "map":
        fields.append("pool_heads")
        if gated:
            fields.append("gelu")
    elif not parts.dist_token:
        fields.append("pool")
    if pool == "map" or (pool == "mean" and "pool" in known):
        if parts.prefix:
            fields.append("pool_include_prefix")
        if parts.final_norm:
            fields.append("fc_norm")
    return fields


def _has_two_grids(shapes, sizes, partial):
    """Whether positions fit a square grid both with and without those of the prefix."""
    prefix = _prefix(shapes)
    if "pos_embed" not in shapes or not prefix:
        return False
    given = None
    if partial.image_size:  # which may be another than that of the positions
        given = _patches(partial.image_size, sizes["patch_size"])
    rows = shapes["pos_embed"][1]
    for patches in (rows, rows - prefix):
        if patches != given and not _is_square(patches):
            return False
    return True


def _unknown(lacking, partial, sizes, parts):
    """The error for lacking fields, with ways to say them."""
    name = partial.name
    width = sizes["embed_dim"]
    first, *rest = lacking
    arguments = []
    for field in lacking:
        argument = f"{field}=.."
        if field == "rotary":  # of which None is no answer
            argument += " (False: none)"
        arguments.append(argument)
    give = f"give {' '.join(arguments)}"
    candidates = _candidates(sizes, parts, "mean" in lacking)
    named_width = registry.fields_of(name).get("embed_dim", width)
    if named_width != width:
        return InputError(
            f"name is {name!r}, whose width is {named_width}, but these tensors have "
            f"width {width}{candidates}"
        )
    problem = "cannot be read from the tensors"
    if rest:
        problem += f" (nor can {', '.join(rest)})"
    if name:
        tags = [tag for tag in _names_with_normalization(name) if tag != name]
        if tags:
            give = f"name it with its tag ({', '.join(tags)}), or {give}"
        return InputError(f"{first} {problem}, and {name!r} does not set it; {give}")
    if candidates:
        give = f"say which model it is, name=..{candidates}, or {give}"
    return Unnamed(f"{first} {problem}; {give}", lacking)


def _candidates(sizes, parts, normalized):
    """Known models of these sizes and parts, in brackets; "" for none.

    normalized: only names that say mean and std
    """
    compared = ("patch_size", "embed_dim", "depth", "mlp_ratio")
    wanted = [sizes[field] for field in compared]
    alike = []
    for name in (*registry.MODELS, *registry.public_models()):
        known = registry.fields_of(name)
        if [known[field] for field in compared] != wanted:
            continue
        if _visible(known.get("arch", DEIT)) != _visible(parts):
            continue
        if normalized:
            alike += _names_with_normalization(name)
        else:
            alike.append(name)
    if not alike:
        return ""
    listed = ", ".join(alike[:SHOWN_NAMES])
    if len(alike) > SHOWN_NAMES:
        listed += f" and {len(alike) - SHOWN_NAMES} others"
    return f" ({listed})"


def _names_with_normalization(name):
    """Names that say mean and std: `name`, or with a tag where its tags differ."""
    if name in registry.MODELS or "mean" in registry.fields_of(name):
        return [name]
    by_values = {}
    for tag, images in registry.public_models()[name]["weights"].items():
        values = str((images.get("mean"), images.get("std")))
        by_values.setdefault(values, f"{name}.{tag}")
    return [*by_values.values()]
