"""Which runtime and dtype a student answers with: one that is named, or the fastest of all that are good enough.

Good enough is measured on gold's *choose* part: the accuracy may lie at most `margin` below that of the student as it
was trained (torch, fp32). Speed is measured on this device. Knows nothing about where images and truth come from.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from src.console import table
from src.errors import ConfigError, DataError
from src.metrics import Interval, paired_difference, proportion
from src.student.checkpoint import Trained
from src.student.export import TOLERANCE, export
from src.student.protocol import DTYPES, RUNTIMES, Pixels, Student
from src.student.quantize import quantize
from src.student.runtimes import check, load, supported
from src.student.speed import Speed, measure

MODEL, MODEL_INT8 = "model.onnx", "model.int8.onnx"


@dataclass(frozen=True)
class Tried:
    """One runtime and dtype. `difference` is its accuracy less that of torch in fp32, paired by image; `largest` the
    largest difference between their probabilities; sizes are bytes. Figures are None where it did not come to them;
    `why` says what is wrong where it did not pass."""

    runtime: str
    dtype: str
    passed: bool
    why: str = ""
    speed: Speed | None = None
    accuracy: Interval | None = None
    difference: Interval | None = None
    largest: float | None = None
    bytes: int | None = None
    load_s: float | None = None


def choose(trained: Trained, *, runtime: str, dtype: str | None, margin: float, choose_images: Pixels,
           choose_truth: npt.NDArray[np.int64], calibration_images: Pixels, out: Path,
           timed: Callable[[Student], Speed] = measure) -> tuple[Student, list[Tried]]:
    """The student that answers on `trained`'s device, and what was tried to find it.

    A named `runtime` is the one candidate, in fp32 where `dtype` is None; `auto` tries every runtime that this device
    has, in that dtype or in all. Images are N×3×S×S bytes, truth N class indices; those of `calibration_images` are of
    training, and needed for int8 alone. Files go to the folder `out`. Raises ConfigError for what this device does not
    support and for a named candidate that is not good enough, DataError for a student that cannot be exported.
    """
    candidates = _candidates(runtime, dtype, trained.device)
    if not len(choose_truth) == len(choose_images) > 1:
        raise DataError(f"{len(choose_truth)} truths for {len(choose_images)} images: whether a runtime is good enough "
                        "shows on gold's choose part, two items at least.")
    reference = replace(trained, dtype="fp32")
    expected = reference.predict(choose_images)
    makers = _Files(reference, choose_images, calibration_images, out)
    tried: list[Tried] = []
    students: list[Student] = []
    for name, kind in candidates:
        student, found = _try(reference, name, kind, makers, expected, choose_images, choose_truth, margin, timed,
                              alone=runtime != "auto")
        tried.append(found)
        if found.passed and student is not None:
            students.append(student)
    if not students:
        if runtime == "auto":
            raise ConfigError("dtype", dtype, "; ".join(f"{row.runtime} {row.dtype}: {row.why}" for row in tried))
        raise ConfigError("dtype", tried[0].dtype, f"{tried[0].why}. Take dtype=fp32 or runtime=auto")
    passed = [row for row in tried if row.passed]
    best = max(range(len(passed)), key=lambda n: _rate(passed[n]))
    return students[best], tried


def show(tried: Sequence[Tried], chosen: Student) -> None:
    """Print what was tried, the chosen one marked."""
    rows = []
    for row in tried:
        speed, one = ("–", "–") if row.speed is None else (
            f"{row.speed.items_per_second:.0f}", f"{row.speed.p50_ms:.1f}/{row.speed.p95_ms:.1f}")
        rows.append((
            f"{row.runtime} {row.dtype}", speed, one, _interval(row.accuracy, ".3f"), _interval(row.difference, "+.3f"),
            "–" if row.largest is None else f"{row.largest:.0e}",
            "–" if row.bytes is None else f"{row.bytes / 2**20:.1f}",
            "–" if row.load_s is None else f"{row.load_s * 1e3:.0f}",
            "chosen" if (row.runtime, row.dtype) == (chosen.runtime, chosen.dtype) else row.why or "passed",
        ))
    judged = next((row.accuracy.n for row in tried if row.accuracy), 0)
    table(f"{chosen.name} on this {chosen.device}, accuracy on {judged} gold items (choose)", rows,
          ("", "img/s", "1 image, p50/p95 ms", "accuracy", "less torch fp32's", "largest difference", "MiB", "load, ms",
           ""))


def _interval(found: Interval | None, how: str) -> str:
    return "–" if found is None else f"{found.value:{how}} ({found.low:{how}} to {found.high:{how}})"


def _candidates(runtime: str, dtype: str | None, device: str) -> list[tuple[str, str]]:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("dtype", dtype, f"one of {', '.join(DTYPES)}, or null")
    if runtime != "auto":
        check(runtime, dtype or "fp32", device)
        return [(runtime, dtype or "fp32")]
    there = supported(device)
    found = [(name, kind) for name in RUNTIMES for kind in there.get(name, ()) if dtype in (None, kind)]
    if not found:
        has = ", ".join(dict.fromkeys(kind for kinds in there.values() for kind in kinds))
        raise ConfigError("dtype", dtype, f"no runtime has it on this {device}, which supports {has}")
    return found


@dataclass
class _Files:
    """Exports and quantises once each, when first asked; what failed once is not tried again."""

    reference: Trained
    images: Pixels
    calibration: Pixels
    out: Path

    def __post_init__(self) -> None:
        self._failed: dict[str, DataError] = {}
        self._made: set[str] = set()

    def get(self, dtype: str) -> Path:
        name = MODEL_INT8 if dtype == "int8" else MODEL
        path = self.out / name
        if name in self._failed:
            raise self._failed[name]
        if name not in self._made:
            try:
                if dtype == "int8":
                    quantize(self.get("fp32"), path, self.calibration)
                else:
                    export(self.reference, path, self.images)
            except DataError as error:
                self._failed[name] = error
                raise
            self._made.add(name)
        return path


def _try(reference: Trained, runtime: str, dtype: str, files: _Files, expected: npt.NDArray[np.float64],
         images: Pixels, truth: npt.NDArray[np.int64], margin: float, timed: Callable[[Student], Speed], *,
         alone: bool) -> tuple[Student | None, Tried]:
    try:
        path = None if runtime == "torch" else files.get(dtype)
        started = time.perf_counter()
        student: Student = replace(reference, dtype=dtype) if path is None else load(path, runtime, dtype)
        student.predict(images[:1])
        load_s = time.perf_counter() - started
        found = student.predict(images)
        if not np.isfinite(found).all():
            raise DataError(f"{runtime} in {dtype} answers with nan")
    except DataError as error:
        if alone:
            raise
        return None, Tried(runtime, dtype, passed=False, why=str(error))
    right = (found.argmax(axis=1) == truth).astype(np.float64)
    before = (expected.argmax(axis=1) == truth).astype(np.float64)
    is_reference = (runtime, dtype) == ("torch", "fp32")
    difference = None if is_reference else paired_difference(right[None], before[None])
    largest = float(np.abs(found - expected).max())
    why = ""
    if dtype == "fp32" and largest > TOLERANCE:
        why = f"its probabilities differ by up to {largest:.2g} from torch's, in fp32"
    elif difference is not None and difference.value < -margin - 1e-9:
        why = f"accuracy on choose falls by {-difference.value:.3f}, more than the margin {margin:g}"
    return student, Tried(runtime, dtype, not why, why, timed(student), proportion(int(right.sum()), len(right)),
                          difference, largest, _size(reference) if path is None else path.stat().st_size, load_s)


def _size(trained: Trained) -> int:
    """What its weights take on disk, whatever they are rounded to while it runs."""
    return sum(tensor.numel() * tensor.element_size() for tensor in trained.network.state_dict().values())


def _rate(row: Tried) -> float:
    assert row.speed is not None
    return row.speed.items_per_second
