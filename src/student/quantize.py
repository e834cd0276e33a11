"""An exported student in int8: weights per output channel, activations by ranges seen on real images.

Writes ONNX with quantise-dequantise pairs, which ONNX Runtime and OpenVINO both turn into integer arithmetic. Knows
nothing about whether the result is good enough: see `choose`.

Ranges are the usual weak point. The least and the greatest value over all images is what one odd picture makes of it: a
student here met one in 300 with activations 10,000 times those of the others, and the usual ranges (ONNX Runtime's,
from least to greatest, or a percentile of the 2,048 bins between them) brought its accuracy from 0.83 to 0.19, chance;
NNCF 3.4 reached 0.81. So each image has its own least and greatest value, and the range covers those of all but one in
a hundred images at either end: 0.82 to 0.83, at the same speed.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from src.errors import DataError
from src.student import telemetry
from src.student.onnx_file import INPUT, Description, describe, read_description
from src.student.protocol import Pixels
from src.student.runtimes import cores

# What takes nearly all of the time; sums, gates and activation functions between them stay in fp32 where the runtime
# does not fuse them, which was worth half a point.
OPERATORS = ("Conv", "Gemm", "MatMul")
PERCENTILE = 99.0
LEAST = 50  # images: with fewer, leaving out one in a hundred leaves out none
BATCH = 16


def quantize(path: Path, out: Path, images: Pixels) -> None:
    """Write the student in `path` to `out` in int8, with ranges from `images` (N×3×S×S bytes, real ones, of training).

    Raises DataError for fewer images than LEAST, and for a student that cannot be quantised.
    """
    if len(images) < LEAST:
        raise DataError(f"{len(images)} images are too few to find the ranges for int8: give {LEAST} or more of those "
                        "that it learned from, or take another dtype.")
    description = read_description(path)
    telemetry.onnxruntime()  # before the next line imports it
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData

    model = onnx.load(path)
    try:
        ranges = TensorsData(CalibrationMethod.MinMax, _ranges(model, np.asarray(images)))
        quantizer = QDQQuantizer(
            model, per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8, tensors_range=ranges, nodes_to_quantize=[], nodes_to_exclude=[],
            op_types_to_quantize=list(OPERATORS), extra_options={},
        )
        quantizer.quantize_model()
    except Exception as error:  # the quantiser's own, protobuf's, the runtime's
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(f"{path} cannot be quantised to int8: {reason}. Take another dtype.") from error
    made: onnx.ModelProto = quantizer.model.model
    describe(made, Description(**{**vars(description), "dtype": "int8"}))
    onnx.save(made, out)


def _ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, tuple[np.float32, np.float32]]:
    """Least and greatest value of each tensor that goes into or comes out of what is quantised, odd images aside."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in OPERATORS]
    names = list(dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name not in fixed))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    given = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    library = telemetry.onnxruntime()
    options = library.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    session = library.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    least, greatest = [], []
    for start in range(0, len(images), BATCH):
        found = session.run(names, {INPUT: images[start : start + BATCH]})
        least.append([values.reshape(len(values), -1).min(axis=1) for values in found])
        greatest.append([values.reshape(len(values), -1).max(axis=1) for values in found])
    low = np.percentile(np.concatenate(least, axis=1), 100 - PERCENTILE, axis=1).astype(np.float32)
    high = np.percentile(np.concatenate(greatest, axis=1), PERCENTILE, axis=1).astype(np.float32)
    return dict(zip(names, zip(low, high, strict=True), strict=True))
