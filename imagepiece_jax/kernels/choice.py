"""Which form of an operation is traced."""

import contextlib
import contextvars

# Up to this many array elements (55 images of DeiT-S, 14 of So400m), fewer kernels are
# worth more bytes; an estimate.
FEW_NUMBERS = 2**22
_fast = contextvars.ContextVar("fast", default=False)


@contextlib.contextmanager
def fast(enabled=True):
    """Trace reductions with fewer, cheaper GPU kernels in this context, if wanted.

    The same tokens leave, except at near ties: summation order may differ.
    """
    # Products take two-byte operands where these are exact, and sum in float32.
    token = _fast.set(enabled)
    try:
        yield
    finally:
        _fast.reset(token)


def is_fast(x):
    """Whether `fast` is entered and tokens x have a two-byte dtype."""
    return _fast.get() and x.dtype.itemsize == 2


def is_short(x):
    """Whether `is_fast` and starting GPU kernels takes longer than moving x."""
    return is_fast(x) and x.size <= FEW_NUMBERS
