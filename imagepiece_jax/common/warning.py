"""Warnings at the caller's own line."""

import sys
import warnings

PACKAGE = __name__.partition(".")[0]


def warn(text: str):
    """Warn at the innermost line that is outside this package.

    Python shows a warning once for each line and text.
    """
    frame = sys._getframe(1)
    level = 2  # of the line that calls this function
    while frame.f_back is not None and _is_own(frame):
        frame = frame.f_back
        level += 1
    warnings.warn(text, stacklevel=level)


def _is_own(frame):
    """Whether a frame belongs to this package or to the constructor of a dataclass."""
    module = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in (PACKAGE, "dataclasses")
