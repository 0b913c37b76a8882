"""Which form of an operation is traced."""

import contextlib
import contextvars

# Up to this many array elements (55 images of DeiT-S, 14 of So400m), fewer kernels are
# worth more bytes; an estimate.
LATENCY_BOUND_SIZE = 2**22
REFERENCE = "reference"
EXACT = "exact"
FAST = "fast"
_forms = contextvars.ContextVar("forms", default=EXACT)


@contextlib.contextmanager
def _trace_forms(forms):
    """Trace operations in these forms, or in definitions inside `reference_forms`."""
    if _forms.get() == REFERENCE:
        forms = REFERENCE
    token = _forms.set(forms)
    try:
        yield
    finally:
        _forms.reset(token)


def reference_forms():
    """A context in which every operation is traced as its plain definition.

    Its gradients are JAX's own. Enter it inside `jax.jit`, which knows no context.
    """
    return _trace_forms(REFERENCE)


def fast_forms(enabled=True):
    """A context that traces reductions with fewer, cheaper GPU kernels, if wanted.

    The same tokens leave, except at near ties: summation order may differ.
    """
    # Products take two-byte operands where these are exact, and sum in float32.
    return _trace_forms(FAST if enabled else EXACT)


def is_reference():
    """Whether `reference_forms` is entered."""
    return _forms.get() == REFERENCE


def is_fast(x):
    """Whether `fast_forms` is entered and tokens x have a two-byte dtype."""
    return _forms.get() == FAST and x.dtype.itemsize == 2


def is_latency_bound(x):
    """Whether `is_fast` and starting GPU kernels takes longer than moving x."""
    return is_fast(x) and x.size <= LATENCY_BOUND_SIZE
