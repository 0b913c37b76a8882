"""Which form of an operation is traced."""

import contextlib
import contextvars
from typing import Literal

from jaxtyping import Array, Shaped

# Up to this many array elements (55 images of DeiT-S, 14 of So400m), starting a kernel
# costs more than moving the array (estimated).
LATENCY_BOUND_SIZE = 2**22
Forms = Literal["reference", "exact", "fast"]
_forms: contextvars.ContextVar[Forms] = contextvars.ContextVar("forms", default="exact")


@contextlib.contextmanager
def _trace_forms(forms):
    """Trace operations in these forms, or in definitions inside `reference_forms`."""
    if uses_reference_forms():
        forms = "reference"
    reset_token = _forms.set(forms)
    try:
        yield
    finally:
        _forms.reset(reset_token)


def reference_forms() -> contextlib.AbstractContextManager[None]:
    """A context in which every operation is traced as its plain definition.

    Its gradients are JAX's own. Enter it inside `jax.jit`, which knows no context.
    """
    return _trace_forms("reference")


def fast_forms(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context that traces reductions with fewer, cheaper GPU kernels, if wanted.

    The same tokens leave, except at near ties: summation order may differ.
    """
    # Products take two-byte operands where these are exact, and sum in float32.
    return _trace_forms("fast" if enabled else "exact")


def uses_reference_forms() -> bool:
    """Whether `reference_forms` is entered."""
    return _forms.get() == "reference"


def uses_fast_forms(x: Shaped[Array, "..."] | None = None) -> bool:
    """Whether `fast_forms` is entered and tokens x, if given, have a two-byte dtype."""
    return _forms.get() == "fast" and (x is None or x.dtype.itemsize == 2)


def is_latency_bound(x: Shaped[Array, "..."]) -> bool:
    """Whether `uses_fast_forms` and starting GPU kernels takes longer than moving x."""
    return uses_fast_forms(x) and x.size <= LATENCY_BOUND_SIZE
