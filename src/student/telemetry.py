"""ONNX Runtime and OpenVINO with what they would send home switched off: the only place that imports them.

Both report their use by default, OpenVINO from Python as soon as it is imported (openvino-telemetry 2025.2), ONNX
Runtime from C++ when it is initialised (1.29 and later, see the Privacy.md that comes with it), and both leave an
identifier of the user in their home folder. Nothing about a user's runs leaves their machine, so each is told before it
is imported, in the way that it provides for.
"""

import importlib
import os
import sys
from typing import Any


def onnxruntime() -> Any:
    """The module; its switch creates neither uploader nor identifier, where disable_telemetry_events comes too late."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module("onnxruntime")


def openvino() -> Any:
    """The module; without the package that sends, OpenVINO (and NNCF) fall back to a stand-in that does nothing."""
    # None makes an import fail as if the package were not installed; one that somebody else has loaded stays.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")
