"""ONNX files, towers for photo programs, and programs that run such files."""
