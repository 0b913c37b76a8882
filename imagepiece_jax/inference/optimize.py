"""Compilation of a trained model into the fastest program for a device.

`optimize` changes what a program costs, never the function: weights are cast once, the
stem's norms are folded into its convolutions, attention is the device's fastest, and
the compiler gets the options under which it fuses best. Only `gelu="tanh"` is another
function, and only where it is asked for.

Left out, because it gains nothing: folding layer norms' scale and bias into the next
product (compiled for an H200 it is the same program: a norm is one kernel either way),
scaling queries (cuDNN's attention does) and joining class token and positions in
advance (one kernel adds both). Images cannot be donated: no output has their size, so
XLA refuses their memory.
"""

import contextlib
import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import SingleDeviceSharding

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.common.progress import working
from imagepiece_jax.data.normalize import as_normalized, normalize, warn_of_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, stems, summary
from imagepiece_jax.models.architecture import GELUS
from imagepiece_jax.models.attention import resolve_backend
from imagepiece_jax.pretrained.trained_model import Pretrained, takes_pretrained
from imagepiece_jax.reduction.kernels import resolve_kernels

# Parts that compute in float32 whatever the dtype: casting would only lose digits.
STAYS_FLOAT32 = ("norm", "head", "reducer")
SETTINGS = threading.Lock()  # JAX's own, which all threads share
_normalized = jax.jit(normalize, static_argnames=("mean", "std"))


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A compiled model: `program(images)` gives logits.

    model, variables: what was compiled, folded and cast; compiled: JAX's executable,
    for (variables, images); images: shape and dtype that it takes; device: where it
    runs; options: of the compiler; gmacs: of one image; compile_seconds.
    """

    model: nn.Module
    variables: Mapping
    compiled: jax.stages.Compiled
    images: jax.ShapeDtypeStruct
    device: jax.Device
    options: Mapping
    gmacs: float
    compile_seconds: float

    @property
    def batch_size(self) -> int:
        return self.images.shape[0]

    @property
    def memory(self):
        """XLA's count in bytes, such as `memory.temp_size_in_bytes`."""
        return self.compiled.memory_analysis()

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Logits [b, num_classes] float32 of normalized images [b, H, W, 3].

        Any array of floats, on the host or on a device, or of uint8, which is
        normalized first; of uint8 alone, where the program was made for pixels. 1 <= b
        <= batch_size: fewer images are padded with zeros to a whole batch, at the cost
        of one. The images are left as they are. InputError for other shapes and types.
        """
        self._check(images)
        missing = self.batch_size - images.shape[0]
        if missing:
            pad = np.pad if isinstance(images, np.ndarray) else jnp.pad
            images = pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        images = jax.device_put(images, self.device)
        if self.images.dtype != jnp.uint8 and images.dtype == jnp.uint8:
            images = _normalized(images, self.model.mean, self.model.std)
        if images.dtype != self.images.dtype:
            images = images.astype(self.images.dtype)
        logits = self.compiled(self.variables, images)
        return logits[:-missing] if missing else logits

    def _check(self, images):
        takes, shape = self.images, getattr(images, "shape", None)
        if shape is None or len(shape) != 4 or shape[1:] != takes.shape[1:]:
            found = type(images).__name__ if shape is None else f"of shape {shape}"
            _, *rest = takes.shape
            raise InputError(
                f"images is {found}; allowed is an array of shape "
                f"[1 .. {self.batch_size}, {', '.join(map(str, rest))}]"
            )
        if not 1 <= shape[0] <= self.batch_size:
            raise InputError(
                f"images has {shape[0]} images; allowed are 1 to {self.batch_size}, "
                "the batch_size of optimize()"
            )
        if takes.dtype == jnp.uint8 and images.dtype != jnp.uint8:
            raise InputError(
                f"images is of type {images.dtype}; allowed is uint8, because the "
                "program was made with pixels=True"
            )
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if not floats and images.dtype != jnp.uint8:
            raise InputError(
                f"images is of type {images.dtype}; allowed are floats, normalized, or "
                "uint8"
            )
        if floats:
            warn_of_range(images, self.model.mean, self.model.std)

    def __repr__(self):
        return f"<Program: {self.describe()}>"

    def describe(self) -> str:
        """Model, cost and compilation in a few lines."""
        (batch, *size, _), kind = self.images.shape, self.images.dtype
        model, memory, mega = self.model, self.memory, 1e6
        options = [f"{name}={value}" for name, value in self.options.items()]
        if kind == jnp.uint8:
            kind = f"{kind} (less {model.mean}, over {model.std})"
        return (
            f"{batch} images of {described(size)}, {kind}, on {self.device}\n"
            f"{model.plan[0].attn_tokens} to {model.plan[-1].mlp_tokens} tokens, "
            f"{self.gmacs:.3f} GMACs an image\n"
            f"{model.dtype.name}, {model.arch.gelu} GELU, {model.backend} attention, "
            f"{'fused' if model.kernels else 'plain'} reductions, {model.stem} stem, "
            "folded\n"
            f"compiled in {self.compile_seconds:.1f} s; "
            f"{memory.argument_size_in_bytes / mega:.0f} MB of weights and images, "
            f"{memory.temp_size_in_bytes / mega:.0f} MB to work in\n"
            f"compiler options: {', '.join(options) or 'none'}"
        )


@takes_pretrained
def optimize(
    vit: Pretrained,
    *,
    batch_size: int,
    image_size: int | tuple[int, int] | None = None,
    dtype: str | None = None,
    gelu: str | None = None,
    attention: str = "auto",
    kernels: str | None = None,
    pixels: bool = False,
    device: jax.Device | str | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Program:
    """A trained model, compiled for one device: a `Program`.

    dtype: of weights and layers; norms, scores, softmax and logits stay float32. None:
    bfloat16, and float32 on CPUs, where bfloat16 is slow.
    gelu: None, as the model was made; "tanh" is the faster form on GPUs, whose products
    end in it. It is another function: DeiT-Ti, trained with the exact one, changes by
    -0.1 +- 0.2 points of acc1 (float32, 1,000 photographs, 95 %, paired).
    attention: "auto", "xla" or "cudnn", as config.model.attention.
    kernels: of the reductions, "plain", "fused" or "auto", as config.model.kernels;
    None: on CPUs "auto" (they compile in a third of the time and run faster), elsewhere
    as the model was made.
    pixels: the program takes uint8 images and normalizes them itself, which saves three
    quarters of the copy to the device.
    device: one of jax.devices(), or a platform such as "cpu" or "cuda" for its first,
    "cuda:1" for its second; None is the first of all.
    compiler_options: XLA's, over those of common.xla_options.
    cache_dir: a folder that keeps compiled programs for later processes (JAX's
    persistent compilation cache, for this program alone; for all of them set
    JAX_COMPILATION_CACHE_DIR instead).
    image_size: None is the size that the model was made for, any other is refused.
    InputError for anything that does not fit.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; allowed are 1, 2, 3, ..")
    own = sides(vit.image_size)
    if image_size is not None and sides(image_size) != own:
        raise InputError(
            f"image_size is {image_size}, but the model is for {described(own)}; load "
            "the weights for another size to have the position embeddings resized"
        )
    return compiler(
        vit,
        dtype=dtype,
        gelu=gelu,
        attention=attention,
        kernels=kernels,
        pixels=pixels,
        device=device,
        compiler_options=compiler_options,
        cache_dir=cache_dir,
    )(batch_size)


def compiler(
    vit,
    *,
    dtype=None,
    gelu=None,
    attention="auto",
    kernels=None,
    pixels=False,
    device=None,
    compiler_options=None,
    cache_dir=None,
):
    """What `optimize` does before it compiles: batch size -> Program, for any number.

    All Programs share the weights, which are on the device already. InputError for
    options that do not fit.
    """
    own = sides(vit.image_size)
    summary.check_variables(vit.model, vit.variables, own)
    device = _device(device)
    dtype = registry.dtype_name(dtype or xla_options.fast_dtype(device))
    xla_options.check_dtype(device.platform, dtype)
    options = xla_options.options(device.platform) | dict(compiler_options or {})
    _check_options(options, device)
    _make(cache_dir)
    fast, weights = prepare(vit.model, vit.variables, dtype=dtype, gelu=gelu)
    fast = placed(fast, device, attention, kernels)
    weights = jax.device_put(weights, device)
    gmacs = summary.model_macs(fast, own) / 1e9

    def compiled(batch_size):
        images = jax.ShapeDtypeStruct(
            (batch_size, *own, 3),
            jnp.dtype("uint8" if pixels else dtype),
            sharding=SingleDeviceSharding(device),
        )
        began = time.perf_counter()
        work = working(f"compiling the model for {batch_size} images at a time")
        with _kept_in(cache_dir), work:
            lowered = jax.jit(forward(fast)).lower(weights, images)
            executable = lowered.compile(compiler_options=options)
        return Program(
            model=fast,
            variables=weights,
            compiled=executable,
            images=images,
            device=device,
            options=options,
            gmacs=gmacs,
            compile_seconds=time.perf_counter() - began,
        )

    return compiled


def _device(asked):
    """The jax.Device that `optimize` is asked for."""
    if asked is None or isinstance(asked, jax.Device):
        return asked or jax.local_devices()[0]
    platform, _, number = str(asked).partition(":")
    with contextlib.suppress(RuntimeError, IndexError, ValueError):
        return jax.local_devices(backend=platform)[int(number or 0)]
    here = {each.platform for each in (*jax.local_devices(), *jax.devices("cpu"))}
    raise InputError(
        f"device is {asked!r}; allowed are a jax.Device, and the platforms of this "
        f"process: {', '.join(sorted(here))}"
    )


def placed(model, device, attention="auto", kernels=None):
    """`model` with the attention and the kernels of `device`. See `optimize`."""
    head_dim = model.embed_dim // model.num_heads
    kernels = kernels or default_kernels(model, device)
    return model.clone(
        backend=resolve_backend(attention, model.dtype, head_dim, device),
        kernels=resolve_kernels(kernels, model, device),
    )


def default_kernels(model, device):
    """ "auto" on CPUs, where fused reductions are faster; elsewhere as made."""
    if device.platform == "cpu":
        return "auto"
    return "fused" if model.kernels else "plain"


def prepare(model, variables, *, dtype="bfloat16", gelu=None):
    """(model, variables) in the form that `optimize` compiles.

    The stem is folded; weights are arrays of `dtype`, except those of STAYS_FLOAT32.
    It can be traced, so `jax.eval_shape` gives the shapes without weights. InputError
    for an unknown dtype or gelu.
    """
    gelu = model.arch.gelu if gelu is None else gelu
    for name, value, allowed in (
        ("dtype", dtype, registry.DTYPES),
        ("gelu", gelu, GELUS),
    ):
        if value not in allowed:
            listed = ", ".join(allowed)
            raise InputError(f"{name} is {value!r}; allowed are {listed}")
    params = dict(variables["params"])
    if not model.folded:
        stats = variables.get("batch_stats", {}).get("patch_embed", {})
        params["patch_embed"] = stems.fold(model.stem, params["patch_embed"], stats)

    def cast(path, value):
        stays = any(key.key.startswith(STAYS_FLOAT32) for key in path)
        return jnp.asarray(value, jnp.float32 if stays else dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    arch = dataclasses.replace(model.arch, gelu=gelu)
    fast = model.clone(folded=True, arch=arch, dtype=jnp.dtype(dtype))
    return fast, {"params": params}


def forward(model):
    """(variables, images) -> logits; images that are uint8 are normalized first."""

    def logits(variables, images):
        images = as_normalized(images, model.mean, model.std)
        return model.apply(variables, images).logits

    return logits


def exported_images(vit, batch_size=None, pixels=False):
    """The images that an exported program takes, as a jax.ShapeDtypeStruct.

    batch_size: None leaves it open; pixels: they are uint8, else float32. InputError
    where it is open and the model draws, which JAX cannot for an open number.
    """
    if batch_size is None:
        if draws(vit.model):
            raise InputError(
                f"config.reduction is {vit.label}, which draws random "
                "numbers; allowed is a batch size, --batch"
            )
        (batch_size,) = jax.export.symbolic_shape("batch")
    shape = batch_size, *sides(vit.image_size), 3
    return jax.ShapeDtypeStruct(shape, jnp.dtype("uint8" if pixels else "float32"))


def draws(model):
    """Whether a step of the reduction draws random numbers, out of training too."""
    return any(
        layer.counts and layer.step.reducer.draws(layer.counts, train=False)
        for layer in model.plan
    )


def _check_options(options, device):
    """InputError for an option unknown to XLA, which compiles next to nothing."""
    try:
        with jax.default_device(device):
            jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        raise InputError(
            f"compiler_options is {options}: {str(error).partition(': ')[2]}; allowed "
            "are options of XLA"
        ) from error


def _make(folder):
    try:
        if folder is not None:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache_dir {folder} cannot be made ({error.strerror}); allowed is a folder"
        ) from error


@contextlib.contextmanager
def _kept_in(folder):
    """Keep JAX's persistent cache in `folder` while entered; None changes nothing."""
    if folder is None:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    with SETTINGS:
        before = {name: getattr(jax.config, name) for name in settings}
        _configure(settings)
        try:
            yield
        finally:
            _configure(before)


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # else JAX continues with the folder that it has
