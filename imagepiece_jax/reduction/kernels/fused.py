"""Whole reductions in one kernel: keys and x are read once, decided on, and moved.

Each function does what class attention, a reducer of `reducers` and `merging.apply` do
together, with the same decisions from the same scores, ties included. Where it runs
(`obstacle`, `misfit`) it replaces a chain of small kernels; gradients are the plain
version's. The code is the same for CPU and GPU: reduce.h. Programs find the kernels of
a platform once `obstacle` has been called for it.
"""

import ctypes
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.reduction import merging
from imagepiece_jax.reduction.kernels import build
from imagepiece_jax.reduction.tokens import Assignment, TokenState

TARGET = "imagepiece_reduce"
RULES = {"prune": 0, "retokenize": 1, "bipartite": 2}  # as in problem.h
DTYPES = ("float32", "bfloat16")
# Shared memory that one thread block may have, in KiB, by compute capability (CUDA C++
# Programming Guide, technical specifications); other cards from 8.0 on have 99.
SHARED_KIB = {"8.0": 163, "8.7": 163, "9.0": 227, "10.0": 227, "10.3": 227}


def obstacle(platform, compute_capability=None):
    """What the fused reductions lack on a platform, in words; None where they run.

    platform: "cpu", "gpu" or "cuda" (NVIDIA), "tpu" ..; compute_capability: of the GPU
    that programs are compiled for, as "9.0"; None: this machine's first one. The first
    call builds the library, which takes some seconds.
    """
    if platform == "cpu":
        return _register("cpu", None)
    if platform not in ("gpu", "cuda"):
        return f"a CPU or an NVIDIA GPU, not {platform!r}"
    if compute_capability is None:
        compute_capability = _capability_here()
    try:
        capable = float(compute_capability) >= 8.0
    except ValueError:  # AMD's capabilities are names
        capable = False
    if not capable:
        return (
            "an NVIDIA GPU of compute capability 8.0 or more, not "
            f"{compute_capability!r}"
        )
    return _register("cuda", str(compute_capability))


def misfit(
    rule,
    key,
    x,
    *,
    candidates=0,
    num_prefix=1,
    platform="cpu",
    compute_capability=None,
):
    """Why arrays of these shapes and types cannot be reduced so; None if they can.

    rule: "prune", "retokenize" or "bipartite"; key [B, N, H, d] and x [B, N, D], arrays
    or what has their `shape` and `dtype`. To be called where `obstacle` returns None.
    """
    dtypes = sorted({jnp.dtype(key.dtype).name, jnp.dtype(x.dtype).name})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        return f"keys and x both in float32 or both in bfloat16, not {dtypes}"
    (_, length, heads, width), dim = key.shape, x.shape[-1]
    if width % 8 or width > 128:
        return f"heads of a width of 8, 16, .. 128, not {width}"
    if dim % 8:
        return f"tokens of a width that is a multiple of 8, not {dim}"
    if num_prefix == 0 and rule != "bipartite":
        return f"a class token, which {rule!r} ranks by"
    if platform == "cpu":
        return None
    if compute_capability is None:
        compute_capability = _capability_here()
    count = build.library("cuda", str(compute_capability)).imagepiece_shared_bytes
    count.restype = ctypes.c_int64
    split, parity = _split(rule, length, num_prefix, candidates)
    numbers = (RULES[rule], length, num_prefix, heads, width, split, parity)
    bytes_needed = count(*map(ctypes.c_int64, numbers))
    limit = 1024 * SHARED_KIB.get(str(compute_capability), 99)
    if bytes_needed > limit:
        return f"at most {limit} bytes of shared memory an image, not {bytes_needed}"
    return None


def prune(query, key, x, size, *, n_out, num_prefix=1, prop_attn=False):
    """Keep the `n_out` image tokens that the class token attends to most (TopK).

    query, key [B, N, H, d], x [B, N, D], size [B, N] float32, N = num_prefix + n ->
    x [B, num_prefix + n_out, D], size [B, num_prefix + n_out], dest [B, n] int32: image
    slots or DROPPED. Of the query only row 0 is read; `prop_attn` adds log(size) to the
    logits.
    """
    call = _Call("prune", n_out, num_prefix, prop_attn=prop_attn)
    return _call(call, query, key, x, size)


def retokenize(
    query,
    key,
    x,
    size,
    *,
    candidates,
    n_out,
    order="descending",
    parity=0,
    size_weighting=True,
    num_prefix=1,
    prop_attn=False,
):
    """Merge the least attended tokens with their most similar partners (Retokenize).

    Arrays as for `prune`; the options are those of the reducer. Partners are compared
    by the mean key over heads.
    """
    call = _Call(
        "retokenize",
        n_out,
        num_prefix,
        candidates=candidates,
        parity=parity,
        ascending=order == "ascending",
        by_size=size_weighting,
        prop_attn=prop_attn,
    )
    return _call(call, query, key, x, size)


def bipartite(key, x, size, *, n_out, num_prefix=1):
    """Merge the most similar pairs between every other token and the rest (Bipartite).

    Arrays as for `prune`; partners are compared by the mean key over heads.
    """
    split, parity = _split("bipartite", key.shape[1], num_prefix)
    call = _Call("bipartite", n_out, num_prefix, candidates=split, parity=parity)
    return _call(call, key, key, x, size)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What stays the same from image to image; the handlers' attributes."""

    rule: str
    n_out: int
    num_prefix: int
    candidates: int = 0
    parity: int = 0
    ascending: bool = False
    by_size: bool = True
    prop_attn: bool = False


def _split(rule, length, num_prefix, candidates=0):
    """(tokens that are split into two sides, which of the first two leaves)."""
    if rule == "bipartite":  # all; of all positions the even ones leave
        return length - num_prefix, num_prefix % 2
    return candidates, 0


def _call(call, query, key, x, size):
    """Decisions carry no gradient: that of query and key is none."""
    query, key = jax.lax.stop_gradient((query, key))
    return _reduce(call, query, key, x, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(call, query, key, x, size):
    batch, length, width = x.shape
    total = call.num_prefix + call.n_out
    run = jax.ffi.ffi_call(
        TARGET,
        (
            jax.ShapeDtypeStruct((batch, total, width), x.dtype),
            jax.ShapeDtypeStruct((batch, total), jnp.float32),
            jax.ShapeDtypeStruct((batch, length - call.num_prefix), jnp.int32),
        ),
        vmap_method="sequential",
    )
    return run(
        query,
        key,
        x,
        size,
        rule=np.int64(RULES[call.rule]),
        num_prefix=np.int64(call.num_prefix),
        candidates=np.int64(call.candidates),
        parity=np.int64(call.parity),
        ascending=call.ascending,
        by_size=call.by_size,
        prop_attn=call.prop_attn,
    )


def _forward(call, query, key, x, size):
    out = _reduce(call, query, key, x, size)
    return out, (x, size, out[2])


def _backward(call, saved, gradients):
    """The plain version's rule: `dest` is known, each token reads its slot's row."""
    x, size, dest = saved

    def plain(x, size):
        prefix = call.num_prefix
        state = TokenState(x=x, size=size, num_prefix=prefix)
        groups = 0 if call.rule == "prune" else dest.shape[1] - call.n_out
        result = Assignment(
            dest=dest,
            weight=None if call.by_size else jnp.ones_like(size[:, prefix:]),
            index=merging.slot_index(dest, call.n_out, groups),
            n_out=call.n_out,
        )
        state = merging.apply(state, result)
        return state.x, state.size

    _, pull = jax.vjp(plain, x, size)
    return None, None, *pull(gradients[:2])


_reduce.defvjp(_forward, _backward)


def _capability_here():
    """Compute capability of this machine's first GPU."""
    try:
        return jax.local_devices(backend="gpu")[0].compute_capability
    except (RuntimeError, AttributeError):
        return "none"


@functools.cache
def _register(device, capability):
    """Makes the library known to XLA, once; what is missing, in words, or None.

    Its kernels are loaded on every GPU of this process, so that no step has to.
    """
    library = build.library(device, capability)
    if isinstance(library, str):
        return library
    if device == "cuda" and jax.default_backend() == "gpu":  # else: compiled for one
        library.imagepiece_load.restype = ctypes.c_char_p
        for gpu in jax.local_devices():
            if answer := library.imagepiece_load(gpu.local_hardware_id):
                return f"a driver that runs it on {gpu}: {answer.decode()}"
    handler = jax.ffi.pycapsule(library.ImagepieceReduce)
    platform = {"cpu": "cpu", "cuda": "CUDA"}[device]
    jax.ffi.register_ffi_target(TARGET, handler, platform=platform)
    return None
