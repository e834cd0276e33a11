"""A student that is asked in its own process, without a server: image files in, probabilities out.

`python -m src.benchmarks.in_process` is what a server is held against: the same files, decoded and answered in the same
batches by the same runtime on as many threads. Reads commands as JSON, a line each, and ends with its standard input.
"""

import argparse
import json
import signal
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.images import decode, square
from src.student.protocol import Student
from src.student.runtimes import load

WARM_UP = 3


class Asked:
    """What commands say: a number of batches, or of single images that come `gap_s` after one another."""

    def __init__(self, student: Student, files: list[bytes], max_pixels: int) -> None:
        self._student, self._max_pixels = student, max_pixels
        self._next = cycle(files)

    def batches(self, size: int, count: int) -> dict[str, Any]:
        for _ in range(WARM_UP):
            self._answer(size)
        began, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(count):
            self._answer(size)
        return {"images": size * count, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_s}

    def singles(self, count: int, gap_s: float) -> dict[str, Any]:
        for _ in range(WARM_UP):
            self._answer(1)
        ms, cpu_s = [], time.process_time()
        for _ in range(count):
            began = time.perf_counter()
            self._answer(1)
            ms.append((time.perf_counter() - began) * 1e3)
            if gap_s:
                time.sleep(gap_s)
        return {"ms": ms, "cpu_s": time.process_time() - cpu_s}

    def _answer(self, size: int) -> None:
        self._student.predict(np.stack([self._see(next(self._next)) for _ in range(size)]))

    def _see(self, payload: bytes) -> NDArray[np.uint8]:
        """As src.serve sees it."""
        image = decode(payload, self._max_pixels)
        return square(image, self._student.input_size, sharpen=self._student.sharpen).transpose(2, 0, 1)


def opened(model: Path, runtime: str, dtype: str) -> Student:
    if runtime != "torch":
        return load(model, runtime, dtype)
    from src.student.checkpoint import load as load_checkpoint  # imports torch, which the others do without

    return load_checkpoint(model, "cpu").on("cpu", dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "runtime", "dtype", "files"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who measures
    files = [path.read_bytes() for path in sorted(Path(args.files).iterdir())]
    asked = Asked(opened(Path(args.model), args.runtime, args.dtype), files, args.max_pixels)
    for line in sys.stdin:
        command = json.loads(line)
        kind = asked.batches if "size" in command else asked.singles
        sys.stdout.write(json.dumps(kind(**command)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
