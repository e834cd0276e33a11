"""A job over texts in a process of its own, forked from one that has imported everything, so that it starts at once."""

import ctypes
import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from scripted_server import make_survey, make_texts

from src.errors import FlywheelError
from src.labeling.labeler import Tally
from src.store import Store

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0


@dataclass
class Job:
    """A running process that labels texts."""

    process: ForkServerProcess
    _told: Connection

    def tell(self) -> Any:
        """What it has to tell next: what it did, or the error that it ended with."""
        assert self._told.poll(PATIENCE_S), "no end to it"
        return self._told.recv()

    def end(self) -> Tally | str:
        """Wait for its end."""
        told = self.tell()
        self.process.join(PATIENCE_S)
        assert isinstance(told, Tally | str)
        return told

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def texts_job(base_url: str, path: Path, items: int, *, largest_file: int | None = None, disk: tuple[int, int] = (0, 0),
              **options: Any) -> Iterator[Job]:
    """Label that many texts by the server at that address; `options` are `make_survey`'s.

    `largest_file` is in bytes. `disk` puts the store on a disk of its own of so many bytes, which is gone when the
    process ends; once the disk is full it gets the second size, and the job begins anew.
    """
    told, tell = multiprocessing.Pipe(duplex=False)
    process = forking().Process(target=_label, args=(tell, base_url, path, items, largest_file, disk, options))
    process.start()
    tell.close()
    try:
        yield Job(process, told)
    finally:
        process.kill()
        process.join()
        told.close()


def _label(tell: Connection, base_url: str, path: Path, items: int, largest_file: int | None, disk: tuple[int, int],
           options: dict[str, Any]) -> None:
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if disk[0]:
        try:
            _mount(path.parent, disk[0])
        except OSError as error:
            tell.send(f"no disk: {error}")
            return
    said = _survey(base_url, path, items, options)
    tell.send(said)
    if disk[1]:
        _mount(path.parent, disk[1], again=True)
        tell.send(_survey(base_url, path, items, options))
        tell.send(Store(path).read())


def _survey(base_url: str, path: Path, items: int, options: dict[str, Any]) -> Tally | str:
    try:
        store = Store(path)
        return make_survey(base_url, store, **options).run([], make_texts(items), lambda _: None).asked
    except FlywheelError as error:
        return str(error)


def _mount(folder: Path, size: int, *, again: bool = False) -> None:
    """Lay a small disk over a folder, for this process alone; nobody need be root for that. Raises OSError where it
    cannot be done."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if not again:
        new_namespace = 0x10000000 | 0x00020000  # of users, of mounts
        if not hasattr(libc, "unshare") or libc.unshare(new_namespace):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    remount = 0x20
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", remount if again else 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


@cache
def forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server's path is that of a bare Python.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tests"))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context
