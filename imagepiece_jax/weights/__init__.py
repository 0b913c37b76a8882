"""From a path or a hub id to a model, and back to a folder.

The layouts and configs of other libraries are read here; ONNX is written in `export`.
"""
