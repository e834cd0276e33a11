"""`model.onnx`: a graph from N×3×S×S bytes to N×C probabilities, and, in its metadata, all that its answers depend on.

Any ONNX runtime can answer from the file alone. Knows nothing about runtimes, and imports no torch.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from src.errors import DataError

FORMAT = 1
KEY = "flywheel"
INPUT, OUTPUT = "images", "probabilities"


@dataclass(frozen=True)
class Description:
    """The fields of a `protocol.Student`. Normalisation and the average with the mirror image are part of the graph;
    `dtype` is what its weights are stored in, fp32 or int8."""

    name: str
    classes: list[str]
    input_size: int
    sharpen: bool
    task: str
    task_version: int
    dtype: str = "fp32"


def describe(model: onnx.ModelProto, description: Description) -> None:
    """Write the description into the model, in place of any that it has."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, kept | {KEY: json.dumps({"format": FORMAT, **asdict(description)})})


def read_description(path: Path) -> Description:
    """Raises DataError for a file that is not there, not ONNX, or not a student of ours."""
    try:
        model = onnx.load(path)
        found = {entry.key: entry.value for entry in model.metadata_props}
        if KEY not in found:
            raise DataError(f"{path} is an ONNX model, but not a student's: its metadata names no classes. Export one "
                            "with src.student.export.")
        fields = json.loads(found[KEY])
        if fields.pop("format") != FORMAT:
            raise DataError(f"{path} has another format than the {FORMAT} that this Flywheel reads.")
        description = Description(**fields)
        taken, given = _shape(model.graph.input), _shape(model.graph.output)
    except DataError:
        raise
    except Exception as error:  # no file, no protobuf, no JSON, other fields
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path} is not a student's ONNX file: {reason}") from error
    size, classes = description.input_size, len(description.classes)
    if taken != (INPUT, onnx.TensorProto.UINT8, [3, size, size]) or given[2] != [classes]:
        raise DataError(f"{path} takes {taken} and gives {given}, which does not fit its own description: bytes of "
                        f"N×3×{size}×{size} and N×{classes} probabilities. Export it again.")
    return description


def _shape(values: Iterable[onnx.ValueInfoProto]) -> tuple[str, int, list[int]]:
    """Name, element type and sizes but the first of the one value there is."""
    (value,) = values
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [axis.dim_value for axis in kind.shape.dim[1:]]
