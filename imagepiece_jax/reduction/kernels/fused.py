"""Whole reductions in one kernel: keys and x are read once, decided on, and moved.

The decisions are the reducer's, ties included; gradients are the plain version's. The
code is the same for CPU and GPU: reduce.h.
"""

import ctypes
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.reduction import tokens
from imagepiece_jax.reduction.kernels import build
from imagepiece_jax.reduction.tokens import Assignment, TokenState

TARGET = "imagepiece_reduce"
RULES = {"prune": 0, "retokenize": 1, "bipartite": 2}  # as in problem.h
DTYPES = ("float32", "bfloat16")
# Shared memory that one thread block may have, in KiB, by compute capability (CUDA C++
# Programming Guide, technical specifications); other cards from 8.0 on have 99.
SHARED_KIB = {"8.0": 163, "8.7": 163, "9.0": 227, "10.0": 227, "10.3": 227}


def unsupported_reason(platform, capability=None):
    """What kernels lack on a platform, in words; None where they run.

    The first call builds the library, which takes some seconds; programs find its
    kernels from then on.

    platform: as JAX names it: "cpu", "gpu" or "cuda" (NVIDIA), "tpu"
    capability: of the GPU, such as "9.0"; None: it is none
    """
    if platform == "cpu":
        return register_library("cpu", None)
    if platform not in ("gpu", "cuda"):
        return f"a CPU or an NVIDIA GPU, not {platform!r}"
    try:
        capable = float(capability) >= 8.0
    except (TypeError, ValueError):  # AMD's capabilities are names
        capable = False
    if not capable:
        return f"an NVIDIA GPU of compute capability 8.0 or more, not {capability!r}"
    return register_library("cuda", str(capability))


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One reduction as a kernel; partners are compared by the mean key over heads."""

    # "prune" keeps the tokens that the class token attends to most (TopK), "retokenize"
    # merges the least attended (Retokenize), "bipartite" the most similar (Bipartite)
    rule: str
    ascending: bool = False  # Retokenize's order, parity and size_weighting
    parity: int = 0
    by_size: bool = True
    prop_attn: bool = False  # log(size) is added to the logits

    @property
    def reads(self) -> str:
        """The name of the queries and keys that it reads, of `Attention.scores`."""
        return "projected" if self.rule == "bipartite" else "heads"

    def supports(self, state):
        """Whether it can reduce a state: one without a mask and attention sizes."""
        return state.mask is None and state.attn_size is None

    def unsupported_reason(self, model, counts, capability=None):
        """What it would need to do a step of a ViT, in words; None if it can.

        counts: the Counts of the step
        capability: of the GPU, such as "9.0"; None: for a CPU
        """
        heads = model.num_heads
        prefix = model.arch.prefix
        width = model.embed_dim // heads
        dtype = jnp.dtype(model.dtype).name
        if model.arch.rotary is not None and self.rule == "retokenize":
            return "positions that are not rotary: these turn the keys that it compares"
        if dtype not in DTYPES:
            known = " or ".join(map(repr, DTYPES))
            return f"dtype {known}, not {dtype!r}"
        if width % 8 or width > 128:
            return f"heads of a width of 8, 16, .. 128, not {width}"
        if prefix == 0 and self.rule != "bipartite":
            return f"a class token, which {self.rule!r} ranks by"
        if capability is None:
            return None
        count = build.library("cuda", str(capability)).imagepiece_shared_bytes
        count.restype = ctypes.c_int64
        candidates = counts.candidates or 0
        parity = 0
        if self.rule == "bipartite":
            candidates = counts.n_in
            parity = prefix % 2
        sizes = (counts.n_in + prefix, prefix, heads, width, candidates, parity)
        bytes_needed = count(*map(ctypes.c_int64, (RULES[self.rule], *sizes)))
        limit = 1024 * SHARED_KIB.get(str(capability), 99)
        if bytes_needed <= limit:
            return None
        return f"at most {limit} bytes of shared memory an image, not {bytes_needed}"

    def __call__(self, query, key, state, counts):
        """(TokenState, Assignment) after the step of `counts`.

        query, key: [B, N, H, d], of all tokens; of the query only row 0 is read
        """
        kernel = self
        prefix = state.num_prefix
        candidates = counts.candidates or 0
        if self.rule == "bipartite":
            candidates = counts.n_in  # all tokens
            kernel = dataclasses.replace(self, parity=prefix % 2)  # even ones leave
            query = key  # which it does not read
        # Decisions carry no gradient: that of query and key is none.
        query, key = jax.lax.stop_gradient((query, key))
        x, size, dest = _reduce(
            kernel, counts.n_out, prefix, candidates, query, key, state.x, state.size
        )
        weight = None
        if not self.by_size:
            weight = jnp.ones(dest.shape, jnp.float32)
        result = Assignment(dest, weight, n_out=counts.n_out)
        coordinates = tokens.mean_coordinates(state, result)
        state = TokenState(x, size, coordinates=coordinates, num_prefix=prefix)
        return state, result


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _reduce(kernel, n_out, num_prefix, candidates, query, key, x, size):
    """x [B, prefix + n_out, D], size [B, prefix + n_out], dest [B, n] int32."""
    batch, length, width = x.shape
    total = num_prefix + n_out
    run = jax.ffi.ffi_call(
        TARGET,
        (
            jax.ShapeDtypeStruct((batch, total, width), x.dtype),
            jax.ShapeDtypeStruct((batch, total), jnp.float32),
            jax.ShapeDtypeStruct((batch, length - num_prefix), jnp.int32),
        ),
        vmap_method="sequential",
    )
    return run(
        query,
        key,
        x,
        size,
        rule=np.int64(RULES[kernel.rule]),
        num_prefix=np.int64(num_prefix),
        candidates=np.int64(candidates),
        parity=np.int64(kernel.parity),
        ascending=kernel.ascending,
        by_size=kernel.by_size,
        prop_attn=kernel.prop_attn,
    )


def _forward(kernel, n_out, num_prefix, candidates, query, key, x, size):
    out = _reduce(kernel, n_out, num_prefix, candidates, query, key, x, size)
    _, _, dest = out
    return out, (x, size, dest)


def _backward(kernel, n_out, num_prefix, candidates, saved, gradients):
    """The plain version's rule: `dest` is known, each token reads its slot's row."""
    x, size, dest = saved

    def plain(x, size):
        state = TokenState(x, size, num_prefix=num_prefix)
        weight = None
        if not kernel.by_size:
            weight = jnp.ones_like(size[:, num_prefix:])
        groups = dest.shape[1] - n_out
        if kernel.rule == "prune":
            groups = 0
        index = tokens.slot_index(dest, n_out, groups)
        result = Assignment(dest, weight, index=index, n_out=n_out)
        state = tokens.apply(state, result)
        return state.x, state.size

    _, pull = jax.vjp(plain, x, size)
    return None, None, *pull(gradients[:2])


_reduce.defvjp(_forward, _backward)


@functools.cache
def register_library(device, capability):
    """Register a library's kernels with XLA, once. Returns what is missing, or None."""
    library = build.library(device, capability)
    if isinstance(library, str):
        return library
    # On a machine without a GPU programs are only compiled for one.
    if device == "cuda" and jax.default_backend() == "gpu":
        library.imagepiece_load.restype = ctypes.c_char_p
        for gpu in jax.local_devices():
            complaint = library.imagepiece_load(gpu.local_hardware_id)
            if complaint:
                return f"a driver that runs it on {gpu}: {complaint.decode()}"
    handler = jax.ffi.pycapsule(library.ImagepieceReduce)
    platform = {"cpu": "cpu", "cuda": "CUDA"}[device]
    jax.ffi.register_ffi_target(TARGET, handler, platform=platform)
    return None
