"""Reductions as one fused kernel: which reducers have one, and where it runs.

The model asks `find` for each step, and whoever makes a model `resolve_kernels`. To add
one: a line in `KERNELS`. They are off by default on GPUs: they decide like plain JAX
there, but gain 5 % at most, and need nvcc.
"""

import jax

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.kernels import fused
from imagepiece_jax.reduction.kernels.fused import Kernel
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.reducers import SCORES, Bipartite, TopK

CHOICES = ("plain", "fused", "auto")


def kernels_of(model):
    """What does the reductions of a model, "fused" or "plain", as in CHOICES."""
    return "fused" if model.kernels else "plain"


def _of_top_k(reducer, prop_attn):
    if SCORES[reducer.score] == "cls_attn" and not reducer.fuse:
        return Kernel("prune", prop_attn=prop_attn)


def _of_retokenize(reducer, prop_attn):
    if SCORES[reducer.score] == "cls_attn" and reducer.metric == "key":
        return Kernel(
            "retokenize",
            ascending=reducer.order == "ascending",
            parity=reducer.parity,
            by_size=reducer.size_weighting,
            prop_attn=prop_attn,
        )


def _of_bipartite(reducer, prop_attn):
    if reducer.metric == "key":
        return Kernel("bipartite")


# The kernel that decides as a reducer of exactly this type, None for some settings.
KERNELS = {TopK: _of_top_k, Retokenize: _of_retokenize, Bipartite: _of_bipartite}


def find(step, model, device):
    """The Kernel that does a step of a model; None: plain JAX does it.

    Kernels reduce tokens between attention and MLP, by the keys of that attention.

    step: a `layer_plan.Step`
    device: what `resolve_kernels` returned, which the model holds as `kernels`
    """
    kernel_of = KERNELS.get(type(step.reducer))
    if device is None or kernel_of is None or step.site != "mid":
        return None
    return kernel_of(step.reducer, model.prop_attn)


def resolve_kernels(requested, model, device=None):
    """The device whose kernels do the reductions of a model, which is its `kernels`.

    requested: in CHOICES; "auto" is "fused" where they run, else "plain"
    device: a jax.Device; None: the first
    Returns "cpu", a GPU's compute capability such as "9.0", or None: plain JAX.
    Raises InputError for "fused" where kernels do not run.
    """
    if requested == "plain":
        return None
    device = device or jax.local_devices()[0]
    found = []  # pairs of a step's counts and its kernel
    for layer in model.plan:
        kernel = None
        if layer.counts:
            kernel = find(layer.step, model, device)
        if kernel:
            found.append((layer.counts, kernel))
    if not found:
        return None
    capability = getattr(device, "compute_capability", None)
    reason = fused.unsupported_reason(device.platform, capability)
    for counts, kernel in found:
        reason = reason or kernel.unsupported_reason(model, counts, capability)
    if reason is None:
        return "cpu" if device.platform == "cpu" else str(capability)
    if requested == "auto":
        return None
    raise InputError(
        f"is 'fused', which needs {reason}",
        field="kernels",
        value=requested,
        allowed="'plain' and 'auto'",
    )
