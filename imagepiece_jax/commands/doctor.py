"""Versions and devices for a bug report."""

import importlib.metadata
import platform

from imagepiece_jax import __version__
from imagepiece_jax.common.version import KEY_LIBRARIES


def main() -> None:
    """Print the versions and devices for a bug report.

    Example: imagepiece doctor
    """
    print(f"imagepiece_jax {__version__}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    for name in KEY_LIBRARIES:
        try:
            print(f"{name} {importlib.metadata.version(name)}", flush=True)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed")
    import jax  # last: its devices may fail

    devices = jax.devices()
    device_kinds = ", ".join(sorted({device.device_kind for device in devices}))
    print(f"devices: {len(devices)} x {devices[0].platform} ({device_kinds})")
