"""Students that answer from a file: every runtime and dtype, what this machine lacks, and which one is taken."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_student
import torch

from src.errors import ConfigError, DataError
from src.student import runtimes
from src.student.checkpoint import Trained
from src.student.choose import choose, show
from src.student.protocol import Student, as_seen
from src.student.runtimes import CHUNK_MOST, chunk, cores, load, supported
from src.student.speed import Speed, measure

ROOT = Path(__file__).parents[1]
HERE = [(runtime, dtype) for runtime, dtypes in supported("cpu").items() for dtype in dtypes]
# Probabilities of the small student: rounding to 8 bits of mantissa, or of everything, moves them by as much at most.
CLOSE = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.3}


def opened(runtime: str, dtype: str, threads: int | None = None) -> Student:
    if runtime == "torch":
        return replace(small_student.student(), dtype=dtype)
    files = small_student.files()
    return load(files.int8 if dtype == "int8" else files.float32, runtime, dtype, threads=threads)


def test_this_machine_has_what_every_machine_has() -> None:
    assert {("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32")} <= set(HERE)


@pytest.mark.parametrize(("runtime", "dtype"), HERE)
def test_every_runtime_and_dtype_answers_as_the_student_does(runtime: str, dtype: str) -> None:
    images = small_student.pictures()
    expected = small_student.student().predict(images)
    student = opened(runtime, dtype)
    found = student.predict(images)
    assert (student.runtime, student.dtype, student.device) == (runtime, dtype, "cpu")
    assert found.dtype == np.float64 and found.shape == (120, 5) and np.allclose(found.sum(axis=1), 1, atol=1e-2)
    assert np.abs(found - expected).max() < CLOSE[dtype]
    # Rounding is real: a bf16 that computes in fp32 would be named wrongly.
    assert dtype == "fp32" or np.abs(found - expected).max() > 1e-4
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= {"fp32": 1, "bf16": 0.9, "int8": 0.8}[dtype]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_of_images_comes_back_in_order(runtime: str, threads: int) -> None:
    images = small_student.pictures()
    student = opened(runtime, "fp32", threads)
    whole = student.predict(images)
    assert len(np.unique(whole.round(6), axis=0)) > 100  # or the order would not show
    for count in (0, 1, 2, 3, 5, CHUNK_MOST, CHUNK_MOST + 1, 2 * CHUNK_MOST + 3, 120):
        found = student.predict(images[:count])
        assert found.shape == (count, 5) and np.allclose(found, whole[:count], atol=1e-5), count


@pytest.mark.parametrize(("count", "side", "threads", "expected"), [
    (1, 224, 2, 1), (2, 224, 2, 1), (3, 224, 2, 2), (8, 224, 2, 4), (32, 224, 2, 8), (128, 224, 2, 8), (128, 224, 1, 8),
    (128, 96, 2, 32), (32, 96, 2, 16), (128, 64, 2, 32), (128, 160, 2, 8), (7, 64, 16, 1), (128, 4096, 2, 1),
])
def test_images_are_shared_out_between_threads(count: int, side: int, threads: int, expected: int) -> None:
    assert chunk(count, side, threads) == expected


def test_tensors_and_strided_arrays_are_read_alike() -> None:
    images = small_student.pictures()[:6]
    student = opened("openvino", "fp32")
    expected = student.predict(images)
    assert np.array_equal(student.predict(torch.from_numpy(images)), expected)
    interleaved = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(student.predict(interleaved), expected)
    assert np.allclose(small_student.student().predict(interleaved), expected, atol=1e-5)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 32, 32), np.uint8), np.zeros((2, 48, 48, 3), np.uint8),
                                    np.zeros((2, 3, 48, 48), np.float32), np.zeros((3, 48, 48), np.uint8)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_images_are_refused(runtime: str, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be N×3×48×48 bytes"):
        opened(runtime, "fp32").predict(images)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_several_threads_may_ask_at_once(runtime: str) -> None:
    images, student = small_student.pictures(), opened(runtime, "fp32")
    expected = student.predict(images)
    wrong: list[int] = []

    def ask(start: int) -> None:
        for count in (1, 4, 20, 7):
            if not np.allclose(student.predict(images[start:start + count]), expected[start:start + count], atol=1e-5):
                wrong.append(start)

    asking = [threading.Thread(target=ask, args=(start,)) for start in range(0, 100, 10)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert not wrong


def test_pictures_of_any_size_are_seen_alike_by_all() -> None:
    from PIL import Image

    chance = np.random.default_rng(0)
    shown = [Image.fromarray(chance.integers(0, 256, size, dtype=np.uint8)) for size in ((90, 60, 3), (20, 30, 3))]
    student = opened("onnxruntime", "fp32")
    seen = as_seen(student, shown)
    assert seen.shape == (2, 3, 48, 48) and seen.dtype == np.uint8
    assert np.allclose(student.predict(seen), small_student.student().predict_images(shown), atol=1e-5)


def test_nothing_is_sent_and_nothing_left_behind_and_no_torch_loaded(tmp_path: Path) -> None:
    """Each of the two would leave an identifier below the home folder, and OpenVINO ask for an address, on import."""
    program = """
import json, os, sys
asked = []
sys.addaudithook(lambda event, given: asked.append(repr((event, given))) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request") else None)
import numpy as np, psutil
from pathlib import Path
from src.student.runtimes import load
images = np.zeros((3, 3, 48, 48), np.uint8)
shapes = [load(Path(file), runtime, dtype, threads=1).predict(images).shape
          for file, runtime, dtype in json.loads(sys.argv[1])]
import openvino.tools.ovc  # where the sending would have been set up
modules = [name for name in ("torch", "openvino_telemetry") if sys.modules.get(name)]
print(json.dumps([shapes, asked, modules, [str(one) for one in psutil.Process().net_connections()]]))
"""
    files = small_student.files()
    cases = [(str(files.float32), "onnxruntime", "fp32"), (str(files.float32), "openvino", "fp32"),
             (str(files.int8), "openvino", "int8"), (str(files.int8), "onnxruntime", "int8")]
    where = {name: value for name, value in os.environ.items() if name not in ("CI", "XDG_CACHE_HOME")}
    # What else would keep them quiet must not be what does: continuous integration, or a switch set from outside.
    where = {name: value for name, value in where.items() if not name.startswith(("ORT_", "TF_BUILD", "JENKINS"))}
    done = subprocess.run([sys.executable, "-c", program, json.dumps(cases)], check=True, capture_output=True,
                          text=True, cwd=ROOT, env={**where, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    shapes, asked, modules, connections = json.loads(done.stdout.splitlines()[-1])
    assert shapes == [[3, 5]] * 4
    assert not asked and not modules and not connections
    assert not list(tmp_path.rglob("*"))


def test_nobody_else_imports_what_would_send() -> None:
    """In code or behind our back: quantisation imports a part of ONNX Runtime once that has been told."""
    users = {path.name for path in (ROOT / "src").rglob("*.py")
             if re.search(r"^\s*(import|from) (onnxruntime|openvino|nncf)\b", path.read_text(), re.MULTILINE)}
    assert users == {"quantize.py"}


class TestUnsupported:
    @pytest.mark.parametrize(("runtime", "dtype", "device", "complaint"), [
        ("torch", "int8", "cpu", r"dtype='int8' is not allowed: torch supports fp32.* on this cpu, or "
                                 r"runtime=onnxruntime or openvino with it"),
        ("onnxruntime", "bf16", "cpu", "dtype='bf16' is not allowed: onnxruntime supports fp32, int8 on this cpu"),
        ("openvino", "fp32", "cuda", "runtime='openvino' is not allowed: .*this student on cuda: take runtime=torch"),
        ("onnxruntime", "fp32", "cuda", "runtime='onnxruntime' .*or accelerator=cpu"),
        ("onnxruntime", "fp32", "mps", "runtime='onnxruntime' .*on mps"),
        ("torch", "bf16", "mps", "dtype='bf16' is not allowed: torch supports fp32 on this mps; no runtime has it"),
        ("tensorrt", "fp32", "cpu", "runtime='tensorrt' is not allowed: one of torch, onnxruntime, openvino, auto"),
        ("torch", "fp16", "cpu", "dtype='fp16' is not allowed: one of fp32, bf16, int8"),
    ])
    def test_it_is_said_what_there_is(self, runtime: str, dtype: str, device: str, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            runtimes.check(runtime, dtype, device)

    def test_a_processor_without_bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one thing here that a machine cannot be asked for."""
        monkeypatch.setattr(runtimes, "_capabilities", lambda: ("FP32", "INT8", "BIN"))
        assert supported("cpu") == {"torch": ("fp32",), "onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "int8")}
        for runtime in ("torch", "openvino"):
            with pytest.raises(ConfigError, match=r"dtype='bf16' is not allowed: .* no runtime has it on this device"):
                runtimes.check(runtime, "bf16", "cpu")
        with pytest.raises(ConfigError, match=r"dtype='bf16' .*this cpu, which supports fp32, int8"):
            chosen("auto", "bf16", Path())

    def test_a_file_of_the_other_dtype(self) -> None:
        files = small_student.files()
        with pytest.raises(DataError, match="holds fp32 weights and cannot answer in int8"):
            load(files.float32, "onnxruntime", "int8")
        with pytest.raises(DataError, match="holds int8 weights and cannot answer in fp32"):
            load(files.int8, "openvino", "fp32")
        assert load(files.int8, "openvino").dtype == "int8"


def spoiled(file: Path, out: Path) -> Path:
    """The student's file with a weight that is nan."""
    import onnx

    model = onnx.load(file)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if values.ndim == 4 and values.dtype == np.float32:  # a convolution's
            values[:1] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_answers_that_are_no_probabilities_are_refused(runtime: str, tmp_path: Path) -> None:
    student = load(spoiled(small_student.files().float32, tmp_path / "nan.onnx"), runtime)
    with pytest.raises(DataError, match=rf"nan\.onnx answers on {runtime} in fp32 with what are no probabilities"):
        student.predict(small_student.pictures()[:3])


def test_speed_is_that_of_what_is_measured() -> None:
    """A stand-in that takes a known time: what a batch of 8 and one image take, and no less."""
    import time

    def slow(images: np.ndarray) -> np.ndarray:
        time.sleep(0.02 * len(images))
        return np.full((len(images), 2), 0.5)

    found = measure(SimpleNamespace(input_size=4, device="cpu", predict=slow), batch_size=8, repeats=3, singles=3)
    assert found.batch_size == 8 and found.device == "cpu"
    assert 5 < found.items_per_second <= 50 and 20 <= found.p50_ms <= found.p95_ms


def scripted(rates: dict[tuple[str, str], float]) -> Callable[[Student], Speed]:
    return lambda student: Speed(rates.get((student.runtime, student.dtype), 1.0), 32, 1.0, 2.0, student.device)


def chosen(runtime: str, dtype: str | None, out: Path, *, margin: float = 0.5, trained: Trained | None = None,
           calibration: np.ndarray | None = None, **rates: float) -> tuple[Student, list]:
    """`choose` on drawn pictures whose truth is what the student answers; rates by runtime_dtype."""
    trained = trained or small_student.tiny()
    images = small_student.pictures()
    truth = small_student.tiny().predict(images).argmax(axis=1)
    keyed = {tuple(name.split("_")): rate for name, rate in rates.items()}
    return choose(trained, runtime=runtime, dtype=dtype, margin=margin, choose_images=images, choose_truth=truth,
                  calibration_images=images if calibration is None else calibration, out=out,
                  timed=scripted(keyed))  # type: ignore[arg-type]


class TestChoice:
    def test_the_fastest_of_all_is_taken_and_every_one_reported(self, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
        student, tried = chosen("auto", None, tmp_path, onnxruntime_int8=90, openvino_fp32=80, torch_fp32=20)
        assert (student.runtime, student.dtype) == ("onnxruntime", "int8")
        assert [(row.runtime, row.dtype) for row in tried] == HERE and all(row.passed for row in tried)
        torch_row, *others = tried
        assert torch_row.accuracy and torch_row.accuracy.value == 1 and torch_row.accuracy.n == 120
        assert torch_row.difference is None and torch_row.largest == 0
        for row in others:
            assert row.accuracy and row.difference and row.load_s and row.bytes and row.speed
            assert row.difference.value == pytest.approx(row.accuracy.value - 1)
            assert row.difference.low < row.difference.value <= row.difference.high
        sizes = {row.dtype: row.bytes for row in tried if row.runtime == "onnxruntime"}
        assert sizes == {"fp32": (tmp_path / "model.onnx").stat().st_size,
                         "int8": (tmp_path / "model.int8.onnx").stat().st_size}
        capsys.readouterr()
        show(tried, student)
        told = capsys.readouterr().out
        assert "accuracy on 120 gold items" in told and told.count("chosen") == 1 and told.count("passed") == 6

    def test_what_answers_worse_is_not_taken_however_fast(self, tmp_path: Path) -> None:
        """Ranges from black pictures are no ranges: int8 then answers at random."""
        black = np.zeros_like(small_student.pictures())
        student, tried = chosen("auto", None, tmp_path, margin=0.01, calibration=black, onnxruntime_int8=90,
                                openvino_int8=95, openvino_fp32=80)
        assert (student.runtime, student.dtype) == ("openvino", "fp32")
        refused = [row for row in tried if row.dtype == "int8"]
        assert len(refused) == 2
        for row in refused:
            assert not row.passed and row.accuracy and row.accuracy.value < 0.7
            assert row.why == f"accuracy on choose falls by {1 - row.accuracy.value:.3f}, more than the margin 0.01"
        with pytest.raises(ConfigError, match=r"dtype='int8' is not allowed: accuracy on choose falls by 0\.\d+, more "
                                              r"than the margin 0\.01\. Take dtype=fp32 or runtime=auto"):
            chosen("openvino", "int8", tmp_path, margin=0.01, calibration=black)
        # The same within a margin that allows it.
        student, tried = chosen("openvino", "int8", tmp_path, margin=1.0, calibration=black)
        assert student.dtype == "int8" and len(tried) == 1 and tried[0].passed

    @pytest.mark.slow
    def test_the_margin_is_the_last_loss_that_passes(self, tmp_path: Path) -> None:
        _, tried = chosen("onnxruntime", "int8", tmp_path, margin=1.0)
        assert tried[0].difference
        loss = -tried[0].difference.value
        assert 0 < loss < 0.2
        assert chosen("onnxruntime", "int8", tmp_path, margin=loss)[0].dtype == "int8"
        with pytest.raises(ConfigError, match="more than the margin"):
            chosen("onnxruntime", "int8", tmp_path, margin=loss - 1 / 240)

    @pytest.mark.parametrize(("runtime", "dtype", "expected"), [
        ("torch", None, ("torch", "fp32")), ("onnxruntime", None, ("onnxruntime", "fp32")),
        ("openvino", "int8", ("openvino", "int8")),
    ])
    def test_one_that_is_named_is_the_only_one_tried(self, runtime: str, dtype: str | None,
                                                     expected: tuple[str, str], tmp_path: Path) -> None:
        student, tried = chosen(runtime, dtype, tmp_path)
        assert (student.runtime, student.dtype) == expected
        assert [(row.runtime, row.dtype) for row in tried] == [expected]
        assert bool(list(tmp_path.iterdir())) == (runtime != "torch")  # torch needs no file

    def test_auto_within_one_dtype(self, tmp_path: Path) -> None:
        student, tried = chosen("auto", "int8", tmp_path, onnxruntime_int8=2, openvino_int8=3)
        assert student.runtime == "openvino"
        assert [(row.runtime, row.dtype) for row in tried] == [("onnxruntime", "int8"), ("openvino", "int8")]

    def test_a_student_that_cannot_be_exported_answers_by_torch(self, tmp_path: Path) -> None:
        """What fails says why, once each; what is left is taken. Named, it is an error."""

        class Looping(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = small_student.tiny().network

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return self.network(images) * (1.0 if images.sum().item() > -1e9 else 0.0)

        looping = replace(small_student.tiny(), network=Looping(), name="looping")
        student, tried = chosen("auto", None, tmp_path, trained=looping, torch_fp32=1, openvino_fp32=9)
        assert student.runtime == "torch"
        for row in tried:
            assert row.passed == (row.runtime == "torch")
            assert row.passed or "looping cannot be exported to ONNX" in row.why
        with pytest.raises(DataError, match="looping cannot be exported"):
            chosen("openvino", None, tmp_path, trained=looping)

    def test_too_few_calibration_images_leave_the_other_dtypes(self, tmp_path: Path) -> None:
        few = small_student.pictures()[:10]
        student, tried = chosen("auto", None, tmp_path, calibration=few, onnxruntime_int8=9, onnxruntime_fp32=5)
        assert (student.runtime, student.dtype) == ("onnxruntime", "fp32")
        assert all("10 images are too few" in row.why for row in tried if row.dtype == "int8")
        with pytest.raises(ConfigError, match="dtype='int8' is not allowed: onnxruntime int8: 10 images are too few"):
            chosen("auto", "int8", tmp_path, calibration=few)

    def test_without_truth_nothing_is_chosen(self, tmp_path: Path) -> None:
        images = small_student.pictures()
        with pytest.raises(DataError, match="119 truths for 120 images"):
            choose(small_student.tiny(), runtime="auto", dtype=None, margin=0.01, choose_images=images,
                   choose_truth=np.zeros(119, np.int64), calibration_images=images, out=tmp_path)


def test_every_core_that_may_be_used_is_counted() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_ctrl_c_does_no_harm_once_a_student_was_let_go() -> None:
    """In a process of its own: where it fails, Python itself crashes."""
    script = f"""
import gc, os, signal, sys, threading
import numpy as np
from src.student.runtimes import load
from pathlib import Path
for _ in range(2):
    student = load(Path({str(small_student.files().float32)!r}), "openvino")
    student.predict(np.zeros((40, 3, student.input_size, student.input_size), np.uint8))
del student
elsewhere = threading.Thread(target=gc.collect)
elsewhere.start()
elsewhere.join()
signal.signal(signal.SIGINT, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
