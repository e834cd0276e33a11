"""Servers to measure, each in a process of its own on loopback: the cascade's, and MLflow's of the same student.

They are started as users start them, and ended by their own ids. Knows nothing about what is asked of them.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from src.benchmarks.machine import ROOT
from src.errors import DataError

STARTS_WITHIN_S = 180.0
ENDS_WITHIN_S = 15.0
LISTENING = re.compile(r"Listening on (http://\S+):")
OTHERS_KEYS = ("FLYWHEEL_CLIENT_KEYS", "FLYWHEEL_REVIEWER_KEYS")  # on loopback it does without


@dataclass(frozen=True)
class Server:
    """`pid` is the process that answers."""

    url: str
    pid: int


@contextmanager
def cascade(run: str, *, uri: str, home: Path, folder: Path, runtime: str, dtype: str) -> Iterator[Server]:
    """`python -m src.serve`, whose student answers all; what it writes lies in `folder`."""
    keys = {"run": run, "home": str(home), "tracking.uri": uri, "store": str(folder / "decisions.db"),
            "runtime": runtime, "dtype": dtype, "cascade.threshold": "0", "cascade.audit_share": "0",
            "serving.port": "0", "serving.max_usd_per_hour": "0", "hydra.run.dir": str(folder / "hydra")}
    command = [sys.executable, "-m", "src.serve", *(f"{key}={_quoted(value)}" for key, value in keys.items())]
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS_KEYS}
    with _running(command, {**environment, "PYTHONPATH": str(ROOT)}, folder / "serve.log") as process:
        url = _until(process, folder / "serve.log", _address)
        yield Server(url, process.pid)


@contextmanager
def mlflow(run: str, *, uri: str, folder: Path) -> Iterator[Server]:
    """`mlflow models serve`, one worker, with the packages that are here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{run}/student", "--env-manager",
               "local", "--workers", "1", "-h", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true",
                   "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
                   # It runs `uvicorn` by name.
                   "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    with _running(command, environment, folder / "mlflow.log") as process:
        _until(process, folder / "mlflow.log", lambda _: url if _answers(port) else None)
        children = psutil.Process(process.pid).children(recursive=True)
        yield Server(url, (children[-1] if children else process).pid)


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts, which is gone at the end."""
    with log.open("wb") as words:
        # In a session of its own: Ctrl-C is for the one who measures, who then ends it in order.
        process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=words,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for how in (signal.SIGTERM, signal.SIGKILL):
        for one in family:
            try:
                one.send_signal(how)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=ENDS_WITHIN_S)
    process.wait()


def _until(process: "subprocess.Popen[bytes]", log: Path, found: Callable[[str], str | None]) -> str:
    """What `found` makes of the process's words, once it does. Raises DataError where that ends or takes too long."""
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        if (address := found(_words(log))) is not None:
            return address
        time.sleep(0.2)
    last = " / ".join(_words(log).strip().splitlines()[-5:])
    raise DataError(f"A server to measure did not start, or not within {STARTS_WITHIN_S:g} s: {last or 'no words'}")


def _words(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _address(words: str) -> str | None:
    found = LISTENING.search(words)
    return found[1] if found else None


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _quoted(value: str) -> str:
    """As Hydra takes any text."""
    return "'" + value.replace("'", "\\'") + "'"
