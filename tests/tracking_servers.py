"""Real servers that keep runs: PostgreSQL, and `mlflow server`; on loopback, each in a folder of its own."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

UNPRIVILEGED = ("postgres", "nobody")  # PostgreSQL does not run as root


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database on a new server. Skips the test where PostgreSQL or its driver is missing."""
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda home: -int(home.parent.name))
    found = shutil.which("initdb") or next((str(home / "initdb") for home in homes if (home / "initdb").exists()), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: neither initdb on the PATH nor /usr/lib/postgresql")
    become: dict[str, int] = {}
    if os.geteuid() == 0:
        names = {user.pw_name: user for user in pwd.getpwall()}
        user = next((names[name] for name in UNPRIVILEGED if name in names), None)
        if user is None:
            pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")
        become = {"user": user.pw_uid, "group": user.pw_gid}
    # Not below pytest's folders, which other users may not enter; a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if become:
        os.chown(folder, become["user"], become["group"])
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, cwd=folder, **become)  # type: ignore[call-overload]
    port, data = free_port(), folder / "data"
    try:
        run([found, "-D", data, "-U", "me", "--auth=trust", "--encoding=UTF8", "--no-sync"])
        control = [Path(found).with_name("pg_ctl"), "-D", data, "-w", "-l", folder / "log"]
        run([*control, "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off", "start"])
        try:
            yield f"postgresql://me@127.0.0.1:{port}/postgres"
        finally:
            run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(home: Path, database: str, *further: str) -> Iterator[str]:
    """The address of a server that keeps figures in `database` and artifacts in `home`/elsewhere."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", database, "--artifacts-destination", f"{home}/elsewhere", *further]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its workers start and end slowly
    with (home / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=home,
                                                           env=env) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, home / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path, patience_s: float = 180) -> None:
    until = time.monotonic() + patience_s
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.5)


def environment(**more: str) -> dict[str, str]:
    """A new command's, as a user has it: `more`, and nothing that this process was told of runs."""
    own = ("MLFLOW_TRACKING_URI", "FLYWHEEL_PARENT_RUN", "FLYWHEEL_SWEPT")
    return {**{name: value for name, value in os.environ.items() if name not in own}, **more}
