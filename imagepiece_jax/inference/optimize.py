"""Compile a trained model into the fastest program for a device.

`make_program_compiler` prepares the weights once and compiles a Program per batch size.
Results change only by rounding, except for three defaults on GPUs: tanh GELU
(`default_gelu`), sizes in key directions (`uses_size_direction`) and fast reductions
(`default_reductions`).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.image_size import image_sides, size_text
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.data import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import size_direction
from imagepiece_jax.kernels import folded_stem, forms
from imagepiece_jax.kernels.attention import ATTENTION_BACKENDS, resolve_backend
from imagepiece_jax.kernels.size_direction import SIZE_ENCODINGS
from imagepiece_jax.models import layers
from imagepiece_jax.models.architecture import GELU_KINDS
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

# These parts compute in float32 for any dtype, so casting their weights loses digits.
FLOAT32_PREFIXES = ("norm", "fc_norm", "head", "reducer", "mean_key_bias")
# QuickGELU is never exchanged: it differs from the other variants by up to 0.02.
QUICK_GELU = "quick"
REDUCTION_MODES = ("exact", "fast")
# On GPUs, a stem's first convolution reads up to 16 pixels at once. On an H200, DeiT-S
# with the stem then runs 1.06 times as fast and ImagePiece 1.09 times; with 8 pixels
# 1.06 and 1.08 times (docs/results/h200/forms.jsonl). Wider patches were not timed.
MAX_JOINED_PIXELS = 16
# Up to SMALL_BATCH images, weights of at most SMALL_WEIGHT bytes are compiled into
# the program, because every argument costs about a microsecond a call. Larger arrays
# stay arguments: inside, every program would hold its own copy and compile four to
# eleven times as long (PERFORMANCE.md).
SMALL_BATCH = 8
SMALL_WEIGHT = 2**16


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A compiled model: `program(images)` returns logits."""

    model: ViT  # the compiled model, with a folded stem
    variables: Mapping  # on the device
    arguments: tuple[jax.Array, ...]  # the variables that `compiled` takes as arguments
    compiled: jax.stages.Compiled  # (arguments, images) -> logits
    input_spec: jax.ShapeDtypeStruct  # shape and dtype of a full batch of images
    device: jax.Device
    reductions: str  # one of REDUCTION_MODES
    compile_seconds: float
    # Whether the range of float images was checked. Later calls skip the check, which
    # takes longer than starting the program.
    is_range_checked: bool = dataclasses.field(default=False, init=False)

    @property
    def batch_size(self) -> int:
        return self.input_spec.shape[0]

    @property
    def gmacs(self) -> float:
        """Per image."""
        return model_macs(self.model) / 1e9

    @parallel.without_mesh
    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Compute the logits of at most `batch_size` images, [b, num_classes] float32.

        images: [b, H, W, 3] normalized floats, or uint8, which is normalized first; a
            program with `pixels` takes only uint8. Fewer images are padded and take as
            long as a full batch
        Raises InputError for other shapes and dtypes.
        """
        spec = self.input_spec
        if images.shape != spec.shape or images.dtype != spec.dtype:
            sides = spec.shape[1:3]  # height, width
            takes_floats = spec.dtype != jnp.uint8
            normalize.check_images(images, sides, takes_floats, takes_pixels=True)
        num_images = images.shape[0]
        check_range("number of images", num_images, most=self.batch_size)
        if not self.is_range_checked and images.dtype != np.uint8:
            stats = self.model.config.mean, self.model.config.std
            # 3: `without_mesh` stands between this call and the user's.
            was_judged = normalize.warn_if_unnormalized(images, *stats, stacklevel=3)
            object.__setattr__(self, "is_range_checked", was_judged)  # frozen
        num_missing = self.batch_size - num_images
        # NumPy pads without compiling a program for every image count.
        if num_missing and isinstance(images, np.ndarray):
            images = np.pad(images, ((0, num_missing), (0, 0), (0, 0), (0, 0)))
        fits_spec = images.shape == spec.shape and images.dtype == spec.dtype
        this_device = {self.device}
        is_on_device = isinstance(images, jax.Array) and images.devices() == this_device
        # The executable copies NumPy images itself, in a fifth of device_put's time.
        if not (fits_spec and (is_on_device or isinstance(images, np.ndarray))):
            images = jax.device_put(images, self.device)
            images = _fit_images(images, self.batch_size, spec.dtype, self.model.config)
        logits = self.compiled(self.arguments, images)
        if num_missing:
            logits = jax.lax.slice_in_dim(logits, 0, num_images)
        return logits

    def __repr__(self) -> str:
        config = self.model.config
        execution = self.model.execution
        image_count = counted_noun(self.batch_size, "image")
        return (
            f"<Program: {image_count} of {size_text(config.image_size)}, "
            f"{self.input_spec.dtype}, on {self.device}; {self.gmacs:.3f} GMACs each, "
            f"{execution.dtype.name}, {config.arch.gelu} GELU, "
            f"{execution.attention_impl} attention, sizes by a "
            f"{execution.size_encoding}, {self.reductions} reductions>"
        )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _fit_images(images, batch_size, dtype, config):
    """Pad images, [b, H, W, 3], cast and, for a program of floats, normalize them."""
    num_missing = batch_size - images.shape[0]
    images = jnp.pad(images, ((0, num_missing), (0, 0), (0, 0), (0, 0)))
    if dtype != jnp.uint8:
        images = config.as_normalized(images)
    return images.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """How a model is compiled.

    dtype: of weights and layers; norms, scores, softmax and logits stay float32. None:
        bfloat16, or float32 on CPUs, where bfloat16 is slow
    gelu: "exact" or "tanh" for a model with either; "quick" for a QuickGELU model.
        None: the model's own, with "tanh" for "exact" in 16-bit dtypes on GPUs
    attention: "xla", "cudnn" or "auto"
    sizes: how proportional attention adds log(size) to logits: by an exact "bias", or
        in a "direction" of the keys (`size_direction`), which saves cuDNN's attention
        the bias matrix. None: "direction" where cuDNN's attention runs
    reductions: "exact", or "fast" in 16-bit dtypes: fewer GPU kernels (`fast`) and
        equal decisions except near ties. None: "fast" in 16-bit dtypes on GPUs
    pixels: take uint8 images and normalize them on the device, which copies a quarter
        of the bytes
    device: a jax.Device, or a platform such as "cpu" or "cuda", of which it is the
        first device; None: the process's first device
    compiler_options: XLA options that override common.xla_options
    """

    dtype: str | None = None
    gelu: str | None = None
    attention: str = "auto"
    sizes: str | None = None
    reductions: str | None = None
    pixels: bool = False
    device: jax.Device | str | None = None
    compiler_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTION_BACKENDS)
        check_choice("sizes", self.sizes, (None, *SIZE_ENCODINGS))
        check_choice("reductions", self.reductions, (None, *REDUCTION_MODES))


def optimize(vit: Pretrained, batch_size: int, **options: Any) -> Program:
    """Compile a trained model for one device and images of the model's size.

    batch_size: images per call
    options: fields of ProgramOptions
    """
    check_range("batch_size", batch_size, 1, whole=True)
    return make_program_compiler(vit, ProgramOptions(**options))(batch_size)


def make_program_compiler(
    pretrained: Pretrained, options: ProgramOptions
) -> Callable[[int], Program]:
    """Return a function: batch size -> Program.

    All Programs share the weights, which are copied to the device once.
    """
    check_gelu(pretrained.model, options.gelu)
    if isinstance(options.device, jax.Device):
        device = options.device
    else:
        device, *_ = jax.local_devices(backend=options.device)  # a platform; None: any
    dtype = xla_options.fast_dtype(device)
    if options.dtype is not None:
        dtype = xla_options.checked_dtype(options.dtype)
    xla_options.check_dtype(dtype, device.platform)
    if options.reductions == "fast" and jnp.dtype(dtype).itemsize > 2:  # bytes
        raise InputError(f"reductions is 'fast', but dtype is {dtype}")
    pretrained.warn_of_untrained()
    model = pretrained.model.with_execution(dtype=jnp.dtype(dtype))
    variables = pretrained.variables
    model = with_device_attention(model, device, options.attention)
    if uses_size_direction(model, options.sizes):
        directions = size_direction.find_directions(pretrained)
        model, variables = size_direction.fold_sizes(model, variables, directions)
    gelu = options.gelu or default_gelu(model, device)
    model = model.clone(config=model.config.with_arch(gelu=gelu))
    with jax.default_device(device):
        model, weights = fold_and_cast(model, variables, device)
    weights = jax.device_put(weights, device)
    reductions = options.reductions or default_reductions(model, device)
    compute_logits = make_logits_function(model, reductions)
    leaves, treedef = jax.tree.flatten(weights)
    compiler_options = xla_options.compiler_options(device.platform)
    compiler_options |= options.compiler_options or {}

    @parallel.without_mesh
    def compile_batch(batch_size):
        input_spec = jax.ShapeDtypeStruct(
            (batch_size, *image_sides(pretrained.image_size), 3),
            jnp.dtype("uint8" if options.pixels else dtype),
            sharding=SingleDeviceSharding(device),
        )
        start_time = time.perf_counter()
        max_bytes = SMALL_WEIGHT if batch_size <= SMALL_BATCH else 0  # of inner weights
        large_leaves = tuple(leaf for leaf in leaves if leaf.nbytes > max_bytes)

        def logits(arguments, images):
            argument_iterator = iter(arguments)
            traced_leaves = []
            for leaf in leaves:
                is_argument = leaf.nbytes > max_bytes
                traced_leaves.append(next(argument_iterator) if is_argument else leaf)
            return compute_logits(jax.tree.unflatten(treedef, traced_leaves), images)

        image_count = counted_noun(batch_size, "image")
        with announced_work(f"compiling the model for {image_count} at a time"):
            lowered_program = jax.jit(logits).lower(large_leaves, input_spec)
            # pyrefly: ignore[bad-argument-type]  # the stub has no numbers
            executable = lowered_program.compile(compiler_options=compiler_options)
        return Program(
            model=model,
            variables=weights,
            arguments=large_leaves,
            compiled=executable,
            input_spec=input_spec,
            device=device,
            reductions=reductions,
            compile_seconds=time.perf_counter() - start_time,
        )

    return compile_batch


def with_device_attention(model: ViT, device: jax.Device, attention: str) -> ViT:
    """Give a model the device's attention; `attention` is optimize's option."""
    head_dim = model.config.head_dim
    backend = resolve_backend(attention, model.execution.dtype, head_dim, device)
    return model.with_execution(attention_impl=backend)


def uses_size_direction(model: ViT, sizes: str | None = None) -> bool:
    """Whether token sizes go into key directions; `sizes` is optimize's option.

    model: as `with_device_attention` returns it
    Raises InputError if a direction is asked for and cannot be.
    """
    if sizes == "bias" or not size_direction.has_sizes(model):
        return False
    # A direction changes the dense model less than bfloat16 (docs/results/tried.md).
    refusal = size_direction.refusal_reason(model)
    if sizes == "direction" and refusal:
        raise InputError(f"sizes is 'direction', but the model {refusal}")
    is_wanted = sizes == "direction" or model.execution.attention_impl == "cudnn"
    return is_wanted and not refusal


def check_gelu(model: ViT, gelu: str | None) -> None:
    is_quick = model.config.arch.gelu == QUICK_GELU  # stands for no other GELU
    kinds = [kind for kind in GELU_KINDS if (kind == QUICK_GELU) == is_quick]
    check_choice("gelu", gelu, (None, *kinds))


def is_16_bit_on_gpu(model: ViT, device: jax.Device) -> bool:
    """Whether the model runs in a 16-bit dtype on a GPU, where faster variants pay."""
    return device.platform == "gpu" and model.execution.dtype.itemsize == 2


def default_gelu(model: ViT, device: jax.Device) -> str:
    """Choose the default GELU: the model's own, or "tanh" for "exact" on GPUs."""
    # GPUs compute "tanh" in the kernel of the product before it. "exact" is a kernel of
    # its own, which takes a fifth of a dense model's time. In 16-bit dtypes "tanh"
    # changes the dense model less than bfloat16 does (docs/results/tried.md); float32
    # stays exact.
    gelu = model.config.arch.gelu
    is_exact = gelu == "exact" and model.config.arch.has_gelu
    return "tanh" if is_exact and is_16_bit_on_gpu(model, device) else gelu


def default_reductions(model: ViT, device: jax.Device) -> str:
    """Choose the default reductions: "fast" in 16-bit dtypes on GPUs."""
    # Fast reductions take half as many kernels (PERFORMANCE.md, "Few kernels"). Except
    # near ties they change a model less than bfloat16 does (docs/results/tried.md).
    return "fast" if is_16_bit_on_gpu(model, device) else "exact"


def fold_and_cast(
    model: ViT, variables: Mapping[str, Any], device: jax.Device | None = None
) -> tuple[ViT, dict[str, Any]]:
    """Return (model, variables) for compilation: stem folded, weights in its dtype.

    The parts in FLOAT32_PREFIXES and `Execution.float32_parts` stay float32.

    device: decides how many pixels the stem reads at once; None: 1
    """
    # Traceable: tools/compile_only.py takes the shapes with `jax.eval_shape`.
    params = dict(variables["params"])
    if not model.execution.folded:
        num_joined_pixels = 1
        if device and model.config.stem == "conv" and is_16_bit_on_gpu(model, device):
            num_joined_pixels = min(MAX_JOINED_PIXELS, model.config.patch_size)
        # Only a conv stem has batch statistics.
        batch_stats = variables.get("batch_stats", {}).get("patch_embed", {})
        params["patch_embed"] = folded_stem.fold_stem(
            params["patch_embed"], batch_stats, layers.NORM_EPSILON, num_joined_pixels
        )
        model = model.with_execution(folded=num_joined_pixels)

    def cast_param(path, param):
        # Parameters of the model itself, such as pos_embed, are cast like the stem.
        part = path[0].key if len(path) > 1 else "patch_embed"
        stays_float32 = part in model.execution.float32_parts
        stays_float32 |= any(entry.key.startswith(FLOAT32_PREFIXES) for entry in path)
        param_dtype = jnp.float32 if stays_float32 else model.execution.dtype
        # JAX's transfer guard refuses the implicit copy that asarray would make.
        return jnp.asarray(jax.device_put(param), param_dtype)

    params = jax.tree_util.tree_map_with_path(cast_param, params)
    return model, {"params": params}


def make_logits_function(
    model: ViT, reductions: str = "exact"
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """Return a function: (variables, images) -> logits. uint8 images are normalized.

    The last block computes only the tokens the head reads (`ViT.head_only`).
    """
    model = model.with_execution(head_only=True)

    def logits(variables, images):
        images = model.config.as_normalized(images)
        with forms.fast_forms(reductions == "fast"):
            return model.apply(variables, images).logits

    return logits
