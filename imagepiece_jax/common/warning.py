"""Warnings that point at the caller's line."""

import sys
import types
import warnings

PACKAGE_NAME = __name__.partition(".")[0]


def warn_caller(message: str) -> None:
    """Warn at the innermost line outside this package."""
    # Python shows a warning once for each line and text, so the line must be the
    # caller's.
    frame = sys._getframe(1)
    stack_level = 2  # the line that calls `warn_caller`
    while frame.f_back is not None and _is_own_frame(frame):
        frame = frame.f_back
        stack_level += 1
    warnings.warn(message, stacklevel=stack_level)


def _is_own_frame(frame: types.FrameType) -> bool:
    """Whether a frame belongs to this package or to `dataclasses` (`replace`)."""
    module = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in (PACKAGE_NAME, "dataclasses")
