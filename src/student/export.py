"""A trained student as `model.onnx`: the whole way from bytes to probabilities, checked against the original.

Knows nothing about what will run the file.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from src.errors import DataError
from src.student.checkpoint import Trained
from src.student.onnx_file import INPUT, OUTPUT, Description, describe
from src.student.protocol import Pixels, Student
from src.student.runtimes import load

OPSET = 20
TOLERANCE = 1e-4  # of a probability; the runtimes here stay below 1e-6 in fp32


def export(trained: Trained, path: Path, images: Pixels) -> float:
    """Write `path` and return by how much its probabilities differ from the student's at most, on real `images`
    (N×3×S×S bytes, N > 0). Raises DataError, and leaves no file, for a network that cannot be exported and for one that
    answers otherwise once it is."""
    model = _as_onnx(trained)
    describe(model, Description(trained.name, trained.classes, trained.input_size, trained.sharpen, trained.task,
                                trained.task_version))
    partial = path.with_suffix(".partial")
    onnx.save(model, partial)
    try:
        largest = check_parity(trained.on("cpu").predict(images), load(partial, "onnxruntime"), images)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return largest


def check_parity(expected: NDArray[np.float64], student: Student, images: Pixels) -> float:
    """The largest difference between `expected` and the student's N×C probabilities. Raises DataError beyond
    TOLERANCE, and without images, which would show nothing."""
    if not len(expected):
        raise DataError("Whether an exported student answers as the original does can only be seen on images: give one "
                        "at least.")
    largest = float(np.abs(student.predict(images) - expected).max())
    if not largest <= TOLERANCE:
        raise DataError(f"{student.name} as exported answers otherwise than before: its probabilities on "
                        f"{student.runtime} differ by up to {largest:.2g}, more than {TOLERANCE:g}. Serve it with "
                        "runtime=torch.")
    return largest


class _Whole(nn.Module):
    """Everything that happens to bytes on their way to probabilities."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.trained = trained.on("cpu")
        self.network = self.trained.network.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.trained.probabilities(images)


def _as_onnx(trained: Trained) -> onnx.ModelProto:
    size = trained.input_size
    example = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Whole(trained).eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            )
    except Exception as error:  # the exporter's own, TorchDynamo's, onnxscript's
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(f"{trained.name} cannot be exported to ONNX: {reason}. Serve it with runtime=torch.") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                 *model.graph.initializer):
        part.ClearField("metadata_props")  # where in which file each line was traced: paths of this machine
        part.ClearField("doc_string")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on stdout, warns of its own parts and logs the rest."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
