"""Strict conversion between this model's variables and timm's state dicts.

Names follow one rule: `blocks_3/attn/proj/kernel` is `blocks.3.attn.proj.weight` in
timm. PyTorch kernels have outputs before inputs (linear [out, in], convolution OIHW).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagepiece_jax.errors import titled_errors
from imagepiece_jax.models import variables as model_variables
from imagepiece_jax.models.variables import StateDictMismatch, has_part, is_in_parts
from imagepiece_jax.models.vit import ViT

Arrays = Mapping[str, np.ndarray]  # {timm's name: array}
_TIMM_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# {module: projections, in timm's order, in one tensor}, such as `attn.qkv.weight`.
# Without key biases, timm has `attn.q_bias` and `attn.v_bias`, not a stacked bias.
_STACKED_LETTERS = {"attn": "qkv", "attn_pool": "kv"}
# PyTorch's kernel axes by rank: linear layers and convolutions.
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
SELECTOR = "reducer"  # prefix of a learned reducer's parameter names
# Parts that may differ (another task, stem or method) while the rest still fits.
_REPLACEABLE = ("head", "head_dist", "patch_embed", "pos_embed", SELECTOR)


class _TimmPlace(NamedTuple):
    """Where a timm state dict holds one parameter."""

    part_path: str  # our name, without the collection: blocks_3/attn/q/kernel
    name: str  # timm's name: blocks.3.attn.qkv.weight
    stack_index: int | None  # 0, 1, 2 in a stacked tensor; None: not stacked
    stack_size: int  # how many parameters the stacked tensor holds; 0: not stacked
    shape: tuple[int, ...]  # shape of timm's whole tensor


def make_variables(
    model: ViT,
    tensors: Arrays,
    title: str,
    fresh_parts: Iterable[str] = (),
    seed: int = 0,
    known_variables: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Make a model's variables from tensors, given variables and random values.

    title: the tensors' origin for messages, such as "run runs/a"
    fresh_parts: parts to draw even if there are tensors, named as for `from_timm`
    known_variables: variables to use instead of tensors
    Returns (variables, names of drawn parts); values from tensors are NumPy arrays.
    """
    known_variables = known_variables or {}
    # `from_timm` passes fresh parts through: shapes, or given variables.
    like = {
        collection: {**parts, **known_variables.get(collection, {})}
        for collection, parts in model_variables.variable_shapes(model).items()
    }
    known_parts = known_variables.get("params", {})
    with titled_errors(title):
        variables = from_timm(tensors, like, (*fresh_parts, *known_parts))
    # Parts with neither tensors nor given variables are still shapes: draw them.
    array_leaves = {}
    missing_parts = set()
    for path, leaf in traverse_util.flatten_dict(variables).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            missing_parts.add(path[1])  # path[0] is the collection
        else:
            array_leaves[path] = leaf
    if missing_parts:
        part_names = sorted(missing_parts)
        drawn_variables = model_variables.draw_variables(model, seed, part_names)
        drawn_leaves = traverse_util.flatten_dict(drawn_variables)
        variables = traverse_util.unflatten_dict(drawn_leaves | array_leaves)
    return variables, sorted(missing_parts)


def make_own_variables(
    model: ViT,
    tensors: Arrays,
    title: str,
    fresh_parts: Iterable[str] = (),
    seed: int = 0,
    known_variables: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """`make_variables` without the tensors of foreign selectors.

    A saved folder has selectors of several reductions; in another file they are errors.
    Raises StateDictMismatch for a missing selector that is not in `fresh_parts`.
    """
    for selector in list_missing_selectors(model, tensors):
        if not is_in_parts(selector, fresh_parts):
            lack = f"{selector}, the selector that training with it learns"
            raise StateDictMismatch(f"{title} has no {lack}", (SELECTOR,))
    model_tensors, selector_tensors = split_selectors(tensors)
    for selector in selector_params(model_variables.variable_shapes(model)):
        model_tensors |= tensors_of_selector(selector, selector_tensors)
    return make_variables(
        model, model_tensors, title, fresh_parts, seed, known_variables
    )


def list_missing_selectors(model: ViT, tensors: Arrays) -> tuple[str, ...]:
    """Names of a model's selectors whose tensors are missing or of other shapes."""
    missing_selectors = []
    selectors = selector_params(model_variables.variable_shapes(model))
    for selector, param_shapes in selectors.items():
        of_selector = tensors_of_selector(selector, tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in of_selector.items()}
        if shapes != timm_shapes({"params": {selector: param_shapes}}):
            missing_selectors.append(selector)
    return tuple(missing_selectors)


def tensors_of_selector(selector: str, tensors: Arrays) -> dict[str, np.ndarray]:
    """Select the tensors of a learned reducer: reducer_3 has reducer.3.norm.bias."""
    name_start = f"{selector.replace('_', '.')}."
    names = [name for name in tensors if name.startswith(name_start)]
    return {name: tensors[name] for name in names}


def split_selectors(tensors: Mapping[str, Any]) -> tuple[dict, dict]:
    """Split tensors into (dense model, selectors)."""
    dense_tensors = {}
    selector_tensors = {}
    for name, tensor in tensors.items():
        group = selector_tensors if name.startswith(f"{SELECTOR}.") else dense_tensors
        group[name] = tensor
    return dense_tensors, selector_tensors


def selector_params(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{name: parameters} of the learned reducers."""
    parts = variables["params"].items()
    return {part: params for part, params in parts if part.startswith(SELECTOR)}


def from_timm(
    state_dict: Arrays, like: Mapping[str, Any], fresh_parts: Iterable[str] = ()
) -> dict[str, Any]:
    """Convert a timm state dict to variables with the shapes and dtypes of `like`.

    like: the model's variables, arrays or ShapeDtypeStructs
    fresh_parts: parts to copy from `like`, such as "head" or "blocks_3/mlp"; a name
        without block number, such as "reducer", means every block
    Returns NumPy arrays, except for `fresh_parts`.
    Raises StateDictMismatch for a tensor that is missing, extra, of wrong shape or
        type, or not finite.
    """
    leaves: dict[str, Any] = traverse_util.flatten_dict(like, sep="/")
    for path, place in match_tensors(state_dict, like, fresh_parts).items():
        leaves[path] = _read_param(state_dict, place, leaves[path].dtype)
    return traverse_util.unflatten_dict(leaves, sep="/")


def match_tensors(
    state_dict: Mapping, like: Mapping, fresh_parts: Iterable[str] = ()
) -> dict[str, _TimmPlace]:
    """Check names, shapes and types: {path: place} of the parts not in `fresh_parts`.

    Raises StateDictMismatch for a tensor left over, missing or of wrong form.
    """
    leaves = traverse_util.flatten_dict(like, sep="/")
    places = dict(sorted(_find_places(leaves).items()))
    model_names = {place.name for place in places.values()}
    needed_places = {}
    problems = []  # (path of a part, sentence)
    for name, tensor in state_dict.items():
        part_path = re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")
        if name not in model_names and not is_in_parts(part_path, fresh_parts):
            lack = "is left over, this model has no such part"
            sentence = f"tensor {name} of shape {tensor.shape} {lack}"
            problems.append((part_path, sentence))
    for path, place in places.items():
        part_path, name, *_, shape = place
        if is_in_parts(part_path, fresh_parts):
            continue
        needed_places[path] = place
        tensor = state_dict.get(name)
        if tensor is None:
            fault = f"is missing, {part_path} needs it in shape {shape}"
        elif tensor.shape != shape:
            fault = f"has shape {tensor.shape}, {part_path} needs {shape}"
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            fault = f"is of type {tensor.dtype}, {part_path} needs floats"
        else:
            continue
        problems.append((part_path, f"tensor {name} {fault}"))
    if not problems:
        return needed_places
    # Would the rest fit if some parts were drawn? Then the error names these parts.
    unfit_paths = [part_path for part_path, _ in problems]
    model_paths = [place.part_path for place in places.values()]
    parts_to_draw = [*fresh_parts]
    for part in _REPLACEABLE:
        if has_part(unfit_paths, part) and has_part(model_paths, part):
            parts_to_draw.append(part)
    would_fit = all(is_in_parts(part_path, parts_to_draw) for part_path in unfit_paths)
    raise StateDictMismatch(problems[0][1], tuple(parts_to_draw) if would_fit else ())


def values_from_timm(tensors: Arrays, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert a subset of a model's parameters to {path: value}.

    like: as for `from_timm`; the position count may differ
    Raises StateDictMismatch if a given tensor does not fit.
    """
    leaves = traverse_util.flatten_dict({"params": like["params"]}, sep="/")
    places = _find_places(leaves).items()
    subset = {path: leaves[path] for path, place in places if place.name in tensors}
    if "pos_embed" in tensors:  # of the variant's image size, not of `like`'s
        shape = tensors["pos_embed"].shape
        subset["params/pos_embed"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = from_timm(tensors, traverse_util.unflatten_dict(subset, sep="/"))
    params = variables.get("params", {})
    value_of_path: Any = traverse_util.flatten_dict(params, sep="/")
    return value_of_path


def to_timm(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a timm state dict of NumPy arrays, with qkv stacked."""
    stacks = {}  # {name: {index in the stack: array}}
    leaves = traverse_util.flatten_dict(variables, sep="/")
    for path, place in _find_places(leaves).items():
        array = np.asarray(leaves[path])
        if place.name.endswith(".weight"):
            array = array.transpose(_torch_axes(array.ndim))
        stack_index = place.stack_index or 0  # None: the tensor's only array
        stacks.setdefault(place.name, {})[stack_index] = array
    tensors = {}
    for name, array_by_index in stacks.items():
        arrays = [array_by_index[index] for index in sorted(array_by_index)]
        tensor = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        tensors[name] = np.array(tensor, order="C")  # file formats store C order
    return tensors


def timm_shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{timm's name: shape}, as from `to_timm`, without computing the tensors."""
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return {place.name: place.shape for place in _find_places(leaves).values()}


def _find_places(leaves):
    """{path with collection: _TimmPlace} for all leaves of a variables tree."""
    return {
        path: _find_place(path, leaf.shape, leaves) for path, leaf in leaves.items()
    }


def _find_place(path, shape, leaves):
    """The _TimmPlace of one leaf; path: params/blocks_3/mlp/fc1/bias, for example."""
    part_path = path.partition("/")[2]
    *modules, leaf_name = part_path.split("/")
    # blocks_3/attn/q/kernel is the first third of blocks.3.attn.qkv.weight.
    stack_index = None
    letters = ""  # the stacked projections', "qkv" or "kv"
    if len(modules) > 1:
        letters = _STACKED_LETTERS.get(modules[-2], "")
    if modules and modules[-1] in tuple(letters):
        projection = modules.pop()
        key_bias_path = f"{path.rsplit('/', 2)[0]}/k/bias"
        # BEiT has no key bias, so its other biases are tensors of their own: q_bias.
        if leaf_name == "bias" and key_bias_path not in leaves:
            leaf_name = f"{projection}_bias"
        else:
            stack_index = letters.index(projection)
            modules.append(letters)
    timm_modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    name = ".".join([*timm_modules, _TIMM_LEAF_NAMES.get(leaf_name, leaf_name)])
    timm_shape = shape
    if name.endswith(".weight"):
        timm_shape = [shape[axis] for axis in _torch_axes(len(shape))]
    if stack_index is not None:
        timm_shape = (len(letters) * timm_shape[0], *timm_shape[1:])
    return _TimmPlace(part_path, name, stack_index, len(letters), tuple(timm_shape))


def _torch_axes(ndim):
    # Vectors and prefix tokens have the same axes in both.
    return _KERNEL_AXES.get(ndim, range(ndim))


def _read_param(state_dict, place, dtype):
    """Read the parameter at a _TimmPlace, with the axes of Flax."""
    tensor = state_dict[place.name]
    if place.stack_index is not None:
        tensor = np.split(tensor, place.stack_size)[place.stack_index]
    if place.name.endswith(".weight"):
        inverse_axes = np.argsort(_torch_axes(tensor.ndim))
        tensor = tensor.transpose(inverse_axes)
    with np.errstate(over="ignore"):  # an overflow is infinite and refused below
        param = np.array(tensor, dtype, order="C")
    if not np.isfinite(param).all():
        fault = f"has a value that is not finite in {param.dtype}"
        raise StateDictMismatch(f"tensor {place.name} {fault}")
    return param
