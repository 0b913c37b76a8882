"""A vision transformer that compiles in a second; its random weights leave no tie."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.models import create, timm_tensors
from imagepiece_jax.models.attention import Attention
from imagepiece_jax.models.config import Execution
from imagepiece_jax.models.pretrained import Origin, Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.provenance import list_token_maps
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers.named_models import config

# These numbers, and the token counts below, are all different.
SIDE = 20
PATCH = 4
TOKENS = 25
WIDTH = 30
DEPTH = 3
HEADS = 3
CLASSES = 7

EVIT = "evit:keep_rate=0.6:blocks=(1,2)"  # 25, 15, 9
FUSED = f"{EVIT}:fuse_token=True"  # 25, 16, 11
# Fields that give a method steps in this model. `small` has the other methods.
SMALL = {
    "imagepiece": "merge_ratio=0.06:merge_blocks=(0,1):prune_blocks=(2,)",
    "imagepiece_dynamicvit": "merge_ratio=0.06:keep_rate=0.7:merge_blocks=(0,)"
    ":prune_blocks=(1,)",
    "spvit": "blocks=(1,2):keep_rates=(0.7,0.4)",
    "tome": "counts=(23,21,17)",
    "token_learner": "num_tokens=8:block=1",
    "diffrate": "prune=(26,22,17):merge=(26,19,14)",
    "pitome": "keep_rate=0.95",
    "tofu": "keep_rate=0.92",
    "mctf": "r=7",
    "dtem": "counts=(22,18,18)",
    "grid_pooling": "grid_size=4:block=1",
}
SMALL["imagepiece_tome"] = SMALL["imagepiece"]
IMAGEPIECE = f"imagepiece:{SMALL['imagepiece']}"  # 25 image tokens, 23, 21, 17

# Compiling takes most of a test's time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def compiled(fn, **options):
    """Compile `fn` and fetch its outputs as NumPy arrays, except random keys.

    Reading a JAX array would compile a program for every shape.
    """
    run = jit(fn, **options)
    return lambda *args, **named: jax.tree.map(_fetch, run(*args, **named))


@functools.cache
def logits(model):
    """A compiled function of variables and images that returns a model's logits.

    The other outputs are not compiled.
    """
    return compiled(lambda variables, images: model.apply(variables, images).logits)


def traced_blocks(model, variables, images):
    """Outputs, and the tokens after every block (from Flax's intermediates)."""
    capture = {"capture_intermediates": True, "mutable": ["intermediates"]}
    outputs, captured = model.apply(variables, images, **capture)
    calls = [captured["intermediates"][f"blocks_{i}"] for i in range(model.depth)]
    return outputs, [call["__call__"][0][0].x for call in calls]


def _fetch(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)


def final_slots(outputs, patches=None):
    """The final slot of every patch, [B, patches]."""
    batch = outputs.state.x.shape[0]
    return list_token_maps(outputs.results, batch, patches or TOKENS)[-1]


def small_reduction(name):
    """A method's reduction with steps in a model of three blocks."""
    if name in SMALL:
        return f"{name}:{SMALL[name]}"
    return f"{name}:blocks=(1,2)" if hasattr(METHODS[name], "blocks") else name


def with_fields(reduction, **fields):
    reduction = Reduction.read(reduction)
    prop_attn = fields.pop("prop_attn", reduction.prop_attn)
    method = dataclasses.replace(reduction.method, **fields)
    return str(Reduction(method, prop_attn))


def imagenet_vit(plan, embed_dim, num_heads, **fields):
    """A ViT with a plan, for images of ImageNet's size, mean and deviation."""
    depth = max(1, len(plan))
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "depth": depth}
    return ViT(config(None, **{"patch_size": 16} | sizes | fields), plan)


def attention(width, heads, prop_attn=False, **execution):
    sizes = {"embed_dim": width, "num_heads": heads, "depth": 1, "patch_size": 16}
    return Attention(config(None, **sizes), Execution(**execution), prop_attn)


def model(reduction=None, masked=False, drop_path_rate=0.0, **options):
    """The tiny ViT; options: fields of `named_models.config`, dtype and attention."""
    size = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    size |= {"image_size": SIDE, "num_classes": CLASSES}
    size |= options
    names = {"dtype", "attention"} & {*size}
    execution = {name: size.pop(name) for name in names}
    model_config = config("vit_mini", **size)
    execution = create.make_execution(model_config, **execution)
    execution = dataclasses.replace(execution, drop_path_rate=drop_path_rate)
    return create.build_model(model_config, reduction, execution, masked)


def shapes(module, side=SIDE):
    """Variables of a model or stem as ShapeDtypeStructs; nothing is computed.

    side: of a stem's images
    """
    if isinstance(module, ViT):
        return variable_shapes(module)  # test_variables draws and compares
    images = jax.ShapeDtypeStruct((1, *image_sides(side), 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)


def fill(shapes, seed=0):
    """Random NumPy values for all variables, also statistics; scales near 1."""
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(shapes)
    for path, leaf in sorted(leaves.items()):
        if path[-1] in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(0, 0.3, leaf.shape)
        leaves[path] = value.astype(leaf.dtype)
    return traverse_util.unflatten_dict(leaves)


def variables(vit, seed=0):
    return fill(shapes(vit), seed)


def pretrained(reduction=None, **options):
    """The tiny ViT with its variables; options: as for `model`."""
    vit = model(reduction, **options)
    return Pretrained(vit, variables(vit))


def loaded_model(path, reduction=None, variables=None, seed=0, **fields):
    """A Pretrained like `load`'s from `path`, where no file need be.

    variables: None: shapes alone
    fields: as for `named_models.config`
    """
    path = pathlib.Path(path)
    vit = create.build_model(config(**fields), reduction)
    read_from = {"path": path, "name": path.name, "run": {"seed": seed}}
    origin = Origin(image_size=vit.config.image_size, **read_from)
    return Pretrained(vit, variables or shapes(vit), origin=origin)


def with_problem_type(vit, problem_type):
    """A Pretrained whose logits have another meaning."""
    config = dataclasses.replace(vit.config, problem_type=problem_type)
    return dataclasses.replace(vit, model=vit.model.clone(config=config))


def write(path, variables):
    """Write variables by timm's names to an .npz file, and return its path."""
    np.savez(path, **timm_tensors.to_timm(variables))
    return path


def pair(vit):
    return vit.model, vit.variables


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(batch=3, seed=0, side=SIDE):
    """Normalized images of noise, [batch, H, W, 3] float32, of `side` (or both)."""
    noise = np.random.default_rng(seed).normal(size=(batch, *image_sides(side), 3))
    return jnp.asarray(noise, jnp.float32)
