"""Who holds a claim, and whether that process still lives.

Knows nothing about what was claimed.
"""

import os
import socket
import uuid
from datetime import UTC, datetime, timedelta

import psutil

SILENT_S = 120.0  # a process on another machine that was not heard of for so long is taken for dead
BEAT_S = 20.0

_living: set[str] = set()


def born() -> str:
    """A name for one labelling run of this process: host, process, when that began, and a word of its own."""
    name = f"{_here()}|{os.getpid()}|{_began(os.getpid())}|{uuid.uuid4().hex[:12]}"
    _living.add(name)
    return name


def died(owner: str) -> None:
    """The run is over; claims that it could not give up are anybody's."""
    _living.discard(owner)


def is_dead(owner: str, beat_at: datetime) -> bool:
    """On this machine the process tells; of another one only its silence does."""
    host, pid, began, _ = owner.split("|")
    if host != _here():
        return datetime.now(UTC) - beat_at > timedelta(seconds=SILENT_S)
    if int(pid) == os.getpid() and began == _began(os.getpid()):
        return owner not in _living
    return _began(int(pid)) != began


def _here() -> str:
    """This machine, as far as processes see each other on it: containers can share a host's name."""
    host = socket.gethostname()[:40]
    try:
        return f"{host}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return host


def _began(pid: int) -> str:
    """When a process began, in seconds since the machine did, or nothing where it does not run any more."""
    try:
        process = psutil.Process(pid)
        # By the wall clock, it would have begun at another time as soon as somebody sets that clock.
        began = process.create_time() - psutil.boot_time()
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{began:.2f}"
    except psutil.Error:
        return ""
