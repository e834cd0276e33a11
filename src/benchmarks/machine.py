"""What figures stand beside: the machine they were made on, what else it did meanwhile, and how processes of ours are
started here."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from src.errors import DataError

ROOT = Path(__file__).parents[2]


def processor() -> str:
    """Its name and the number of its cores."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line)
        model = next(named, model)
    return f"{model}, {os.cpu_count()} cores"


def in_a_process(module: str, *arguments: str) -> dict[str, Any]:
    """What `subprocess.Popen` needs to run one of these modules from any folder."""
    return {"args": [sys.executable, "-m", module, *arguments], "cwd": ROOT,
            "env": {**os.environ, "PYTHONPATH": str(ROOT)}}


class Helper:
    """`with Helper(module, *arguments) as helper`: one of these modules in a process of its own, which answers
    commands, each a line of JSON, and is ended on leaving."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._command = module, in_a_process(module, *arguments)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(**self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Raises DataError where the process ends instead."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            found: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(f"{self._module} ended before its time (status {self._process.wait()}): see its words "
                            "above.") from error
        return found


class Elsewhere:
    """`with Elsewhere(pids) as elsewhere`: how many cores were at work meanwhile for others than these processes and
    this one, in `cores`; and the seconds of processor time that each of `pids` took, in `cpu_s`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]

    def __enter__(self) -> Self:
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        began, busy, ours, each = self._before
        ended, busy_now, ours_now, each_now = self._look()
        self.cpu_s = [after - before for before, after in zip(each, each_now, strict=True)]
        self.cores = max(0.0, (busy_now - busy - (ours_now - ours) - sum(self.cpu_s)) / (ended - began))

    def _look(self) -> tuple[float, float, float, list[float]]:
        every = psutil.cpu_times()
        busy = sum(every) - every.idle - getattr(every, "iowait", 0.0) - getattr(every, "guest", 0.0)
        return time.perf_counter(), busy, time.process_time(), [sum(one.cpu_times()[:2]) for one in self._processes]
