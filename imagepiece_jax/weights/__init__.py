"""Load a model from a path or a hub id, and save a model to a folder.

This room reads the tensor names and configs of other libraries; `export` writes ONNX.
"""
