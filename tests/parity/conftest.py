"""Parity tests need the other libraries."""

import importlib.util

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "open_clip")
if not all(map(importlib.util.find_spec, LIBRARIES)):
    collect_ignore_glob = ["test_*.py"]
