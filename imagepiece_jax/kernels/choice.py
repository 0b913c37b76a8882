"""Which form of an operation is traced."""

import contextlib
import contextvars

# Up to this many array elements (55 images of DeiT-S, 14 of So400m), fewer kernels are
# worth more bytes; an estimate.
FEW_NUMBERS = 2**22
REFERENCE = "reference"
EXACT = "exact"
FAST = "fast"
_forms = contextvars.ContextVar("forms", default=EXACT)


@contextlib.contextmanager
def _tracing(forms):
    """Trace operations in these forms; inside `reference`, in their definitions."""
    if _forms.get() == REFERENCE:
        forms = REFERENCE
    token = _forms.set(forms)
    try:
        yield
    finally:
        _forms.reset(token)


def reference():
    """A context in which every operation is traced as its plain definition.

    Its gradients are JAX's own. Enter it inside `jax.jit`, which knows no context.
    """
    return _tracing(REFERENCE)


def fast(enabled=True):
    """A context that traces reductions with fewer, cheaper GPU kernels, if wanted.

    The same tokens leave, except at near ties: summation order may differ.
    """
    # Products take two-byte operands where these are exact, and sum in float32.
    return _tracing(FAST if enabled else EXACT)


def is_reference():
    """Whether `reference` is entered."""
    return _forms.get() == REFERENCE


def is_fast(x):
    """Whether `fast` is entered and tokens x have a two-byte dtype."""
    return _forms.get() == FAST and x.dtype.itemsize == 2


def is_short(x):
    """Whether `is_fast` and starting GPU kernels takes longer than moving x."""
    return is_fast(x) and x.size <= FEW_NUMBERS
