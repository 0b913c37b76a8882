"""int8 graphs on CPUs: by onnxruntime, and by NNCF for OpenVINO.

Graphs for OpenVINO have a fixed batch: 2026.4 fails to compile NNCF's int8 graph of the
dense DeiT-Ti with an open one.
"""

# (runtime, weights): the file that is read or written.
FILES = {
    ("onnxruntime", "float32"): "model.onnx",
    ("onnxruntime", "int8"): "model_int8.onnx",
    ("OpenVINO", "float32"): "model.onnx",
    ("OpenVINO", "int8"): "model_int8.xml",
}
FLOAT, *_ = FILES


def quantize_onnx(folder, batches):
    """The int8 graph of onnxruntime.

    batches: [batches, batch, H, W, 3] float32, normalized, which calibrate it
    """
    from onnxruntime import quantization

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches = iter(batches)

        def get_next(self):
            images = next(self.batches, None)
            return None if images is None else {"images": images}

    quantization.quantize_static(
        folder / FILES[FLOAT],
        folder / FILES["onnxruntime", "int8"],
        Calibration(),
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=bool([*folder.glob("*.data")]),
        extra_options={"MatMulConstBOnly": True},  # products of tokens stay float32
    )


def quantize_openvino(folder, batches):
    """The int8 graph of NNCF for OpenVINO, calibrated by the same batches."""
    import nncf
    import openvino

    calibration = nncf.Dataset(list(batches))
    model = openvino.Core().read_model(folder / FILES[FLOAT])
    kind = nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize(
        model, calibration, model_type=kind, subset_size=len(batches)
    )
    path = folder / FILES["OpenVINO", "int8"]
    openvino.save_model(quantized, path, compress_to_fp16=False)


def onnxruntime_of(path, threads: int = 1):
    """A function of images, float32, that returns the outputs of a file's graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})


def openvino_of(path, threads: int = 1):
    """As `onnxruntime_of`, of an ONNX file or one of OpenVINO."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    return lambda images: [*compiled([images]).to_tuple()]


QUANTIZERS = {"onnxruntime": quantize_onnx, "OpenVINO": quantize_openvino}
RUNTIMES = {"onnxruntime": onnxruntime_of, "OpenVINO": openvino_of}
