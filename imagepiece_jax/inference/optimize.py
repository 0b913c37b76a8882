"""Compilation of a trained model into the fastest program for a device.

`optimize` makes a program faster. Weights are cast once, batch norms of the stem are
folded into its convolutions, the last block computes only the tokens that the head
reads (`ViT.head_only`), attention is the fastest that the device has, and the compiler
gets the options with which it fuses best. None of that changes what is computed, beyond
rounding. Two choices do. In types of two bytes, GPUs compute exact GELU by tanh
(`default_gelu`), unless `gelu="exact"` is given. Where cuDNN's attention runs, sizes of
tokens are in a direction of the keys (`size_direction`), unless `sizes="bias"` is. Both
change the dense model less than bfloat16 does (docs/tables/forms).
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import SingleDeviceSharding

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.common.progress import working
from imagepiece_jax.common.tables import amount
from imagepiece_jax.data.normalize import (
    as_normalized,
    check_images,
    native,
    warn_of_range,
)
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import size_direction
from imagepiece_jax.models import stems
from imagepiece_jax.models.architecture import GELUS
from imagepiece_jax.models.attention import BACKENDS, SIZES, resolve_backend
from imagepiece_jax.models.cost import dead_macs, model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.reduction import ops

# Parts that compute in float32 whatever the dtype, so that casting would lose digits.
STAYS_FLOAT32 = ("norm", "head", "reducer", "mean_key_bias")
QUICK = "quick"  # GELU's form that stands for no other: it is up to .02 away from them
REDUCTIONS = ("exact", "fast")  # how reductions are computed
# Pixels that the first convolution of a stem joins on GPUs. With 16 an H200 computes
# DeiT-S with the stem 1.06 times as fast, and ImagePiece 1.09; with 8 1.06 and 1.08
# (docs/tables/h200/forms.jsonl). Wider patches were not timed.
JOINED = 16
# Batches of programs that have arrays of weights up to SMALL bytes inside: each that is
# passed costs about a microsecond a call. Larger ones would take their memory again for
# every program, and long to compile (PERFORMANCE.md).
SMALL_BATCH = 8
SMALL = 2**16


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A compiled model: `program(images)` returns logits."""

    model: nn.Module  # the model that was compiled, with a folded stem
    variables: Mapping  # its variables on the device
    arguments: tuple[jax.Array, ...]  # those of them that are not inside of `compiled`
    compiled: jax.stages.Compiled  # JAX's executable, a function of (arguments, images)
    images: jax.ShapeDtypeStruct  # shape and dtype of the images that it takes
    device: jax.Device  # the device that it runs on
    options: Mapping  # options of XLA
    reductions: str  # how they are computed, one of REDUCTIONS
    gmacs: float  # GMACs for one image
    dead_gmacs: float  # the part of these that is not computed (`cost.dead_macs`)
    compile_seconds: float  # how long compilation took
    own_gelu: str  # the form that the model has without `optimize`
    # whether the range of images was looked at, which takes longer than to start
    judged: bool = dataclasses.field(default=False, init=False)

    @property
    def batch_size(self) -> int:
        return self.images.shape[0]

    @property
    def memory(self):
        """XLA's memory analysis, such as `memory.temp_size_in_bytes`."""
        return self.compiled.memory_analysis()

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Logits of images.

        images: [b, H, W, 3] normalized floats, or uint8, which is normalized first; a
            program with `pixels` takes only uint8. Fewer images than batch_size are
            padded, and take as long as a full batch
        Returns [b, num_classes] float32.
        Raises InputError for other shapes and types.
        """
        own = self.images
        images = native(images)
        if images.shape != own.shape or images.dtype != own.dtype:
            floats = own.dtype != jnp.uint8
            check_images(images, own.shape[1:3], floats, pixels=True)
        count = images.shape[0]
        if count > self.batch_size:
            raise InputError(
                f"images has {count} images, more than the program's batch_size, "
                f"{self.batch_size}"
            )
        if not self.judged and images.dtype != np.uint8:
            config = self.model.config
            judged = warn_of_range(images, config.mean, config.std)
            object.__setattr__(self, "judged", judged)
        missing = self.batch_size - count
        on_host = isinstance(images, np.ndarray)
        if missing and on_host:  # without a program for each count
            images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        is_own = images.shape == own.shape and images.dtype == own.dtype
        copies = contextlib.nullcontext()
        if is_own and on_host:
            # The executable copies them itself, in a fifth of device_put's time.
            copies = jax.transfer_guard_host_to_device("allow")
        elif not is_own or images.devices() != {self.device}:
            images = jax.device_put(images, self.device)
            images = _fitted(images, self.batch_size, own.dtype, self.model.config)
        with copies:
            results = self.compiled(self.arguments, images)
        if missing:
            results = jax.lax.slice_in_dim(results, 0, count)
        return results

    def __repr__(self):
        return f"<Program: {self.describe()}>"

    def describe(self) -> str:
        """The model, its cost and its compilation in a few lines of text."""
        batch, *size, _ = self.images.shape
        kind = self.images.dtype
        model = self.model
        if kind == jnp.uint8:
            kind = f"{kind} (less {model.config.mean}, over {model.config.std})"
        gelu = f"{model.config.arch.gelu} GELU"
        if not model.config.arch.has_gelu:
            gelu = "no GELU"
        elif model.config.arch.gelu != self.own_gelu:
            gelu = f"{gelu} in place of {self.own_gelu}"
        sizes = ""
        if size_direction.has_sizes(model):
            sizes = f", sizes by a {model.execution.size_encoding}"
        inputs = self.memory.argument_size_in_bytes / 1e6
        working_space = self.memory.temp_size_in_bytes / 1e6
        options = [f"{name}={value}" for name, value in self.options.items()]
        options = ", ".join(options) or "none"
        return (
            f"{amount(batch, 'image')} of {size_text(size)}, {kind}, on {self.device}\n"
            f"{model.plan[0].attn_tokens} to {model.plan[-1].mlp_tokens} tokens, "
            f"{self.gmacs:.3f} GMACs an image, {self.dead_gmacs:.3f} of them not "
            "computed\n"
            f"{model.execution.dtype.name}, {gelu}, "
            f"{model.execution.attention_impl} attention, {model.config.stem} stem, "
            f"folded{sizes}\n"
            f"compiled in {self.compile_seconds:.1f} s; "
            f"{inputs:.0f} MB of weights and images, "
            f"{working_space:.0f} MB to work in\n"
            f"{self.reductions} reductions, compiler options: {options}"
        )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _fitted(images, batch_size, dtype, config):
    """Images as a program takes them: padded, in its dtype, and floats normalized."""
    missing = batch_size - images.shape[0]
    images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    if dtype != jnp.uint8:
        images = as_normalized(images, config.mean, config.std)
    return images.astype(dtype)


def _device(value):
    """The jax.Device that a value names."""
    if isinstance(value, jax.Device):
        return value
    platform, _, number = str(value).lower().partition(":")
    with contextlib.suppress(RuntimeError, IndexError, ValueError):
        return jax.local_devices(backend=platform or "none")[int(number or 0)]
    devices = *jax.local_devices(), *jax.devices("cpu")
    here = sorted({device.platform for device in devices})
    raise InputError(
        f"device is {value!r}; it must be a jax.Device, or a platform of this process: "
        f"{', '.join(here)}"
    )


def optimize(
    vit: Pretrained,
    batch_size: int,
    *,
    dtype: str | None = None,
    gelu: str | None = None,
    attention: str = "auto",
    sizes: str | None = None,
    reductions: str | None = None,
    pixels: bool = False,
    device: jax.Device | str | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Program:
    """Compile a trained model for one device and images of the model's size.

    batch_size: number of images in a call
    dtype: of weights and layers; norms, scores, softmax and logits stay float32; None:
        bfloat16, but float32 on CPUs, where bfloat16 is slow
    gelu: "exact" or "tanh" for models that have one of them, "quick" for models that
        have it; None: the model's, but "tanh" for "exact" in types of two bytes on
        GPUs, which changes a model less than bfloat16 does (docs/tables/forms)
    attention: as config.model.attention
    sizes: how proportional attention adds log(size) to logits: by a "bias", which is
        exact, or in a "direction" of the keys (`size_direction`), for which cuDNN's
        attention needs no bias matrix; None: a direction where that attention runs
    reductions: "exact", or "fast" in types of two bytes, in fewer kernels of a GPU
        (`ops.fast`), which decide alike except near ties; None: "fast" on GPUs
    pixels: whether the program takes uint8 images and normalizes them, so that only a
        quarter of the bytes is copied to the device
    device: a device in jax.devices(), or a platform such as "cpu", "cuda" or "cuda:1";
        None: the first of all devices
    compiler_options: of XLA, which override common.xla_options
    Returns a `Program`.
    Raises InputError for anything that does not fit.
    """
    check_range("batch_size", batch_size, 1, whole=True)
    compile_for = compiler(
        vit,
        dtype=dtype,
        gelu=gelu,
        attention=attention,
        sizes=sizes,
        reductions=reductions,
        pixels=pixels,
        device=device,
        compiler_options=compiler_options,
    )
    return compile_for(batch_size)


def compiler(
    vit: Pretrained,
    *,
    dtype: str | None = None,
    gelu: str | None = None,
    attention: str = "auto",
    sizes: str | None = None,
    reductions: str | None = None,
    pixels: bool = False,
    device: jax.Device | str | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[int], Program]:
    """A function that compiles a Program for a batch size, by options of `optimize`.

    All its Programs share the weights, which are copied to the device once.
    """
    if dtype is not None:
        dtype = xla_options.checked_dtype(dtype)
    check_choice("attention", attention, BACKENDS)
    check_choice("sizes", sizes, (None, *SIZES))
    check_choice("reductions", reductions, (None, *REDUCTIONS))
    check_gelu(vit.model, gelu)
    device = jax.local_devices()[0] if device is None else _device(device)
    size = sides(vit.image_size)
    model = vit.model
    variables = vit.variables
    check_variables(model, variables)
    vit.warn_of_untrained()
    dtype = dtype or xla_options.fast_dtype(device)
    xla_options.check_dtype(dtype, device.platform)
    if reductions == "fast" and jnp.dtype(dtype).itemsize > 2:
        raise InputError(f"reductions is 'fast', but layers are {dtype}")
    options = {**xla_options.options(device.platform), **(compiler_options or {})}
    model = model.with_execution(dtype=jnp.dtype(dtype))
    model = for_device(model, device, attention)
    if takes_direction(model, sizes):
        found = size_direction.directions(vit)
        model, variables = size_direction.folded(model, variables, found)
    with jax.default_device(device):
        gelu = gelu or default_gelu(model, device)
        joined = joined_pixels(model, device)
        model, weights = prepare(
            model, variables, dtype=dtype, gelu=gelu, pixels=joined
        )
    weights = jax.device_put(weights, device)
    gmacs = model_macs(model) / 1e9
    dead_gmacs = dead_macs(model) / 1e9
    reductions = reductions or default_reductions(model, device)
    input_dtype = "uint8" if pixels else dtype
    run = forward_logits(model, reductions)
    leaves, tree = jax.tree.flatten(weights)

    def compiled(batch_size):
        images = jax.ShapeDtypeStruct(
            (batch_size, *size, 3),
            jnp.dtype(input_dtype),
            sharding=SingleDeviceSharding(device),
        )
        began = time.perf_counter()
        count = amount(batch_size, "image")
        work = working(f"compiling the model for {count} at a time")
        inside = SMALL if batch_size <= SMALL_BATCH else 0
        arguments = tuple(leaf for leaf in leaves if leaf.nbytes > inside)

        def logits(arguments, images):
            rest = iter(arguments)
            found = [leaf if leaf.nbytes <= inside else next(rest) for leaf in leaves]
            return run(jax.tree.unflatten(tree, found), images)

        with work:
            lowered = jax.jit(logits).lower(arguments, images)
            executable = lowered.compile(compiler_options=options)
        return Program(
            model=model,
            variables=weights,
            arguments=arguments,
            compiled=executable,
            images=images,
            device=device,
            options=options,
            reductions=reductions,
            gmacs=gmacs,
            dead_gmacs=dead_gmacs,
            compile_seconds=time.perf_counter() - began,
            own_gelu=vit.model.config.arch.gelu,
        )

    return compiled


def for_device(model, device, attention="auto"):
    """The model with the attention that a device has.

    attention: as `optimize` takes it
    """
    width = model.config.head_dim
    backend = resolve_backend(attention, model.execution.dtype, width, device)
    return model.with_execution(attention_impl=backend)


def takes_direction(model, sizes=None):
    """Whether a model gets its sizes in a direction of the keys.

    model: for a device (`for_device`)
    sizes: as `optimize` takes it
    """
    if sizes == "bias" or not size_direction.has_sizes(model):
        return False
    reason = size_direction.reason_against(model)
    if sizes == "direction" and reason:
        raise InputError(f"sizes is 'direction', but the model {reason}")
    if sizes is None and model.execution.attention_impl != "cudnn":
        return False
    return not reason


def check_gelu(model, gelu):
    """Refuse a form of GELU that is none, or too far from the model's own.

    gelu: as `optimize` takes it
    """
    check_choice("gelu", gelu, (None, *GELUS))
    own = model.config.arch.gelu
    if gelu not in (None, own) and QUICK in (gelu, own):
        raise InputError(f"gelu is {gelu!r}, but the model's GELU is {own!r}")


def in_two_bytes_on_gpu(model, device):
    """Whether layers are of two bytes on a GPU, where programs take faster forms."""
    return device.platform == "gpu" and model.execution.dtype.itemsize == 2


def default_gelu(model, device):
    """The form of GELU where none is requested: the model's, or "tanh" for "exact".

    GPUs compute "tanh" in the kernel of the product before it, and "exact" in one of
    its own, a fifth of a dense model's time. They get "tanh" where layers have two
    bytes: it changes less than bfloat16 does. float32 stays exact.
    """
    form = model.config.arch.gelu
    is_exact = form == "exact" and model.config.arch.has_gelu
    return "tanh" if is_exact and in_two_bytes_on_gpu(model, device) else form


def default_reductions(model, device):
    """How reductions compute where nothing is requested: "fast" in two bytes on GPUs.

    There they take half as many kernels (PERFORMANCE.md, "Few kernels"), and change a
    model less than bfloat16 does (docs/tables/forms).
    """
    return "fast" if in_two_bytes_on_gpu(model, device) else "exact"


def joined_pixels(model, device):
    """Pixels that the first convolution of a stem joins (`stems.fold`): 1 is none.

    In two bytes on GPUs it is as many as a patch is wide, up to JOINED.
    """
    if model.config.stem == "conv" and in_two_bytes_on_gpu(model, device):
        return min(JOINED, model.config.patch_size)
    return 1


def prepare(model, variables, *, dtype="bfloat16", gelu=None, pixels=1):
    """(model, variables) in the form that is compiled: stem folded, weights cast.

    pixels: that the first convolution of a stem joins, as `stems.fold` has it
    The parts STAYS_FLOAT32 stay float32. The function can be traced, so that
    `jax.eval_shape` gives the shapes.
    """
    params = dict(variables["params"])
    if not model.execution.folded:
        stats = variables.get("batch_stats", {}).get("patch_embed", {})
        params["patch_embed"] = stems.fold(
            model.config.stem, params["patch_embed"], stats, pixels
        )
        model = model.with_execution(folded=pixels)

    def cast(path, value):
        stays = any(key.key.startswith(STAYS_FLOAT32) for key in path)
        own_dtype = jnp.float32 if stays else dtype
        return jnp.asarray(jax.device_put(value), own_dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    config = model.config.with_arch(gelu=gelu or model.config.arch.gelu)
    fast = model.clone(config=config).with_execution(dtype=dtype)
    return fast, {"params": params}


def forward_logits(model, reductions="exact"):
    """A function (variables, images) -> logits, which normalizes uint8 images.

    The last block computes only the tokens that the head reads (`ViT.head_only`).

    reductions: as `optimize` takes it
    """
    model = model.with_execution(head_only=True)

    def logits(variables, images):
        images = as_normalized(images, model.config.mean, model.config.std)
        with ops.fast(reductions == "fast"):
            return model.apply(variables, images).logits

    return logits
