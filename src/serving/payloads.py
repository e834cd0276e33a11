"""What review and relabelling need of an escalated item, for a stated time: its bytes, below one folder.

A file lies in the shard of its key's first two characters: `ab/abcd….png`; one whose truth is known, which is so in a
rehearsal alone, in that shard of a class folder: `apple/ab/abcd….png`. `data.escalations` reads them from there. How
old a file is, its modification time says: `cp -a`, rsync, tar and Python keep it, and a plain copy only makes a file
young. Knows nothing about decisions. Blocks; belongs in a thread.
"""

import errno
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from src.errors import StoreError

KEY = re.compile(r"[0-9a-f]{64}")
CLASS = re.compile(r"\w[\w.+-]*")  # of a task, as a folder may be called
# What the bytes of an image file begin with. Other kinds of images that can be decoded are kept as .png, which only
# `data.folder` reads by its name; what is decoded goes by the bytes.
BEGINNINGS = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"),
              (b"MM\0*", ".tif"))
SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")
PARTIAL = ".partial"
SLICE_S = 60  # how finely files are told apart by age where there are too many bytes


class _File(NamedTuple):
    path: str
    at: float  # seconds since 1970
    bytes: int


class Payloads:
    """Below `folder`, files for `keep_days` and of `most_bytes` together. May be used by several threads. What cannot
    be written, read or removed raises a StoreError."""

    def __init__(self, folder: Path, keep_days: float, most_bytes: int) -> None:
        self.folder = folder
        self._keep = timedelta(days=keep_days)
        self._most = most_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None  # of all together; unknown until they have been counted

    def keep(self, key: str, payload: bytes, truth: str | None = None) -> Path:
        """Write `payload` whole or not at all, and return where. What is there already counts as kept from now on.
        Where all would become too many, the oldest go."""
        if not KEY.fullmatch(key):
            raise ValueError(f"key={key!r}: must be 64 hexadecimal digits")
        if truth is not None and not CLASS.fullmatch(truth):
            raise StoreError(f"The class {truth!r} cannot name a folder, in which a rehearsal keeps what is served: "
                             "rename it.")
        path = (self.folder / truth if truth else self.folder) / key[:2] / f"{key}{_suffix(payload)}"
        with self._lock, self._told():
            if path.exists():
                os.utime(path)
                return path
            if len(payload) > self._most:
                raise StoreError(f"{len(payload)} bytes are more than may be kept of everything that is served: raise "
                                 "serving.keep_gb.")
            if self._bytes is None:
                self._bytes = sum(file.bytes for file in _files(self.folder))
            if self._bytes + len(payload) > self._most:
                # A tenth more than is needed, or every further file would cost a look at all of them.
                self._bytes -= self._trim(self._bytes + len(payload) - self._most + self._most // 10)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, payload)
            self._bytes += len(payload)
        return path

    def find(self, key: str) -> Path | None:
        """Where the bytes of `key` lie, or None where they do not, or no longer."""
        if not KEY.fullmatch(key):
            return None
        with self._told():
            for base in (self.folder, *_folders(self.folder)):
                shard = base / key[:2]
                if shard.is_dir():
                    for suffix in SUFFIXES:
                        if (path := shard / f"{key}{suffix}").is_file():
                            return path
        return None

    def expire(self, now: datetime) -> int:
        """Remove what was kept for its time, and the oldest of what is too much; returns how many. Looks at every file:
        now and then is enough."""
        oldest, removed, held = (now - self._keep).timestamp(), 0, 0
        with self._lock, self._told():
            for file in _files(self.folder):
                if file.at < oldest:
                    Path(file.path).unlink(missing_ok=True)
                    # What a writer left that died is not counted.
                    removed += not file.path.endswith(PARTIAL)
                else:
                    held += file.bytes
            if held > self._most:
                fewer, bytes_ = self._trim(held - self._most)
                removed, held = removed + fewer, held - bytes_
            self._bytes = held
        return removed

    def _trim(self, least: int) -> tuple[int, int]:
        """Remove the oldest files, of `least` bytes together; returns how many they were, and how many bytes."""
        # In two walks, for a list of a million files would fill the memory: how many bytes are how old, then away with
        # them. Only those of the last slice are sorted.
        sizes: Counter[int] = Counter()
        for file in _files(self.folder):
            sizes[int(file.at // SLICE_S)] += file.bytes
        total = border = 0
        for slice_of_time in sorted(sizes):
            border, total = slice_of_time, total + sizes[slice_of_time]
            if total >= least:
                break
        count, gone, last = 0, 0, []
        for file in _files(self.folder):
            if file.at // SLICE_S < border:
                Path(file.path).unlink(missing_ok=True)
                count, gone = count + 1, gone + file.bytes
            elif file.at // SLICE_S == border:
                last.append(file)
        for file in sorted(last, key=lambda file: (file.at, file.path)):
            if gone >= least:
                break
            Path(file.path).unlink(missing_ok=True)
            count, gone = count + 1, gone + file.bytes
        return count, gone

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way = ("The disk is full: free some space, or lower serving.keep_gb or serving.keep_days." if full else
                   "Check that it is a folder that can be read and written.")
            why = error.strerror or error
            raise StoreError(f"What is served could not be kept in {self.folder}: {why}. {way}") from error


def _suffix(payload: bytes) -> str:
    """What `data.folder` knows files of this kind by."""
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for beginning, suffix in BEGINNINGS if payload.startswith(beginning)), ".png")


def _write(path: Path, payload: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())  # the log will speak of it, and that is safe from a power cut
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _folders(folder: Path) -> list[Path]:
    """Those right below `folder`; none where there is none."""
    try:
        with os.scandir(folder) as found:
            return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _files(folder: Path | str) -> Iterator[_File]:
    """Every file, one folder at a time; what vanishes meanwhile is passed over."""
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                else:
                    at = entry.stat(follow_symlinks=False)
                    yield _File(entry.path, at.st_mtime, at.st_size)
