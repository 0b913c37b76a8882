"""ONNX export, towers for photo programs, and exported files in onnxruntime."""
