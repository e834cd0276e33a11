"""Students that answer from a `model.onnx`, by ONNX Runtime or by OpenVINO, on the CPU.

What both want here is the same: few images at a time, so that a layer's results are still in the core's own cache when
the next layer asks for them, and every core at work on images of its own, which needs no waiting within a layer.
Imports no torch; knows nothing about training, export or how a runtime is chosen.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import ConfigError, DataError
from src.student import telemetry
from src.student.onnx_file import INPUT, Description, read_description
from src.student.protocol import DTYPES, RUNTIMES, Pixels

# What a core works on at a time, in pixels: eight images of 224. MobileNetV3-Small in bf16, two cores, images a second
# of processor time at 224 px: 1,300 two at a time, 1,630 eight, 1,620 thirty-two; at 96 px: 3,900, 5,500 and 7,100.
CHUNK_PIXELS = 8 * 224**2
CHUNK_MOST = 32
# One image of up to so many pixels is left to one thread: a second one makes it no faster (MobileNetV3-Small at 96 and
# 160 px, OpenVINO), and the waiting for each other takes as much processor time again. At 224 px it saves a fifth.
ALONE_PIXELS = 160**2
Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class FileStudent:
    """A `protocol.Student` that answers from `path`; several threads may ask it."""

    path: Path
    description: Description
    runtime: str
    dtype: str
    answer: Answer = field(repr=False)
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def classes(self) -> list[str]:
        return self.description.classes

    @property
    def input_size(self) -> int:
        return self.description.input_size

    @property
    def sharpen(self) -> bool:
        return self.description.sharpen

    @property
    def task(self) -> str:
        return self.description.task

    @property
    def task_version(self) -> int:
        return self.description.task_version

    def predict(self, images: Pixels) -> NDArray[np.float64]:
        """N×C probabilities of N×3×S×S bytes. Raises DataError where they are none: nan, or not summing to one."""
        pixels = np.ascontiguousarray(images)
        size = self.input_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, size, size):
            raise ValueError(f"images are {pixels.dtype} {pixels.shape}: must be N×3×{size}×{size} bytes")
        if not len(pixels):
            return np.zeros((0, len(self.classes)))
        found = self.answer(pixels).astype(np.float64)
        # nan fails every comparison, so this catches it too.
        if not (np.abs(found.sum(axis=1) - 1) < 1e-2).all() or found.min() < 0:
            raise DataError(f"{self.path} answers on {self.runtime} in {self.dtype} with what are no probabilities: "
                            f"{found[0].tolist()} for the first image. Export the student again, or use another dtype.")
        return found


def load(path: Path, runtime: str, dtype: str | None = None, *, threads: int | None = None) -> FileStudent:
    """Open a student's ONNX file on `threads` threads, by default one for each core that this process may use.

    `dtype` is by default that of the file; bf16 rounds an fp32 file while it runs. Raises ConfigError for a runtime or
    dtype that this machine does not support, DataError for a file that is no student's, or of another dtype.
    """
    description = read_description(path)
    wanted = dtype or description.dtype
    check(runtime, wanted, "cpu")
    if (wanted == "int8") != (description.dtype == "int8"):
        raise DataError(f"{path} holds {description.dtype} weights and cannot answer in {wanted}: make the file with "
                        "src.student.quantize, or take the other one.")
    opened = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime]
    try:
        answer = opened(path, description, wanted, threads or cores())
    except Exception as error:  # each runtime has its own, for operators it lacks and graphs that make no sense
        raise DataError(f"{path} cannot be opened by {runtime}: {str(error).strip().splitlines()[0][:200]}") from error
    return FileStudent(path, description, runtime, wanted, answer)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunk(count: int, side: int, threads: int) -> int:
    """How many of `count` images of side×side pixels each of `threads` threads is given at a time: a power of two, so
    that there are few sizes to prepare for."""
    most = min(-(-count // threads), CHUNK_PIXELS // side**2, CHUNK_MOST)
    return 1 << max(0, most.bit_length() - 1)


def check(runtime: str, dtype: str, device: str) -> None:
    """Raise ConfigError for what this device does not support, naming the key and what it does."""
    there = supported(device)
    if runtime not in RUNTIMES:
        raise ConfigError("runtime", runtime, f"one of {', '.join(RUNTIMES)}, auto")
    if dtype not in DTYPES:
        raise ConfigError("dtype", dtype, f"one of {', '.join(DTYPES)}")
    if runtime not in there:
        raise ConfigError("runtime", runtime, f"it answers on the CPU only, and this student on {device}: take "
                          f"runtime=torch, or accelerator=cpu")
    if dtype not in there[runtime]:
        elsewhere = [name for name, dtypes in there.items() if dtype in dtypes]
        way = f", or runtime={' or '.join(elsewhere)} with it" if elsewhere else "; no runtime has it on this device"
        raise ConfigError("dtype", dtype, f"{runtime} supports {', '.join(there[runtime])} on this {device}{way}")


def supported(device: str) -> dict[str, tuple[str, ...]]:
    """The dtypes that each runtime has on this device: cpu, cuda or mps."""
    if device != "cpu":
        return {"torch": ("fp32", "bf16") if device == "cuda" and _cuda_has_bf16() else ("fp32",)}
    # OpenVINO asks the processor itself, so nothing here has to know the names of instructions.
    able = frozenset(_capabilities())
    bf16 = ("bf16",) if "BF16" in able else ()
    int8 = ("int8",) if "INT8" in able else ()
    return {"torch": ("fp32", *bf16), "onnxruntime": ("fp32", "int8"), "openvino": ("fp32", *bf16, *int8)}


@cache
def _capabilities() -> tuple[str, ...]:
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@cache
def _core() -> Any:
    """One for the whole process, and never let go: OpenVINO 2026.4 gives the thread that makes its first a stack for
    signals, and frees it with the last one, wherever that is collected. The next signal, Ctrl-C say, crashed Python."""
    return telemetry.openvino().Core()


def _cuda_has_bf16() -> bool:
    import torch  # only where torch has found the device in the first place

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _onnxruntime(path: Path, description: Description, _: str, threads: int) -> Answer:
    library = telemetry.onnxruntime()

    def session(each: int) -> Any:
        options = library.SessionOptions()
        options.intra_op_num_threads = each
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from whatever else runs there.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    together, alone = session(threads), session(1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxruntime")

    def answer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(pixels) == 1 or threads == 1:
            return np.asarray(together.run(None, {INPUT: pixels})[0])
        size = chunk(len(pixels), description.input_size, threads)
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        return np.concatenate(list(pool.map(lambda part: alone.run(None, {INPUT: part})[0], parts)))

    return answer


def _openvino(path: Path, description: Description, dtype: str, threads: int) -> Answer:
    library = telemetry.openvino()
    properties, core = library.properties, _core()
    precision = library.Type.bf16 if dtype == "bf16" else library.Type.f32
    side, classes = description.input_size, len(description.classes)
    lock = threading.Lock()

    @cache
    def queue(size: int) -> Any:
        """Requests for batches of just this size, prepared when first asked for (0.2 s): a shape that stands is a fifth
        faster in bf16 than one that may change. One large image has all threads to itself."""
        model = core.read_model(path)
        model.reshape([size, 3, side, side])
        streams = 1 if size == 1 else threads
        compiled = core.compile_model(model, "CPU", {
            properties.hint.inference_precision: precision, properties.num_streams: streams,
            properties.inference_num_threads: 1 if size == 1 and side**2 <= ALONE_PIXELS else threads,
            properties.hint.enable_cpu_pinning: False,
        })
        return library.AsyncInferQueue(compiled, streams)

    def answer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(pixels)
        size = chunk(count, side, threads)
        whole = -(-count // size) * size
        if whole > count:
            pixels = np.concatenate([pixels, np.zeros((whole - count, *pixels.shape[1:]), np.uint8)])
        found = np.empty((whole, classes), np.float32)

        def store(request: Any, start: int) -> None:
            found[start : start + size] = request.get_output_tensor().data

        with lock:
            requests = queue(size)
            requests.set_callback(store)
            for start in range(0, whole, size):
                requests.start_async({0: pixels[start : start + size]}, start, share_inputs=True)
            requests.wait_all()
        return found[:count]

    queue(1)
    return answer
