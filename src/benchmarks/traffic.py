"""Clients of a server on loopback, in a process of their own: a stream of requests at a given rate, or a few that each
ask again once they are answered.

`python -m src.benchmarks.traffic` reads commands as JSON, a line each, and writes what it saw; it ends with its
standard input. `Traffic` starts it. Requests are bytes that lie ready, and of answers only status, length and
Retry-After are read: every microsecond here is one that the server on the same machine does not have. Knows nothing
about what is asked.
"""

import asyncio
import json
import math
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from src.benchmarks.machine import Helper

MOST_CONNECTIONS = 4000  # of one stream; what finds none is lost, and counts as such
PATIENCE_S = 30.0  # for one answer
LOST = 0  # as a status: no answer


@dataclass(frozen=True)
class Target:
    """Where bodies go, and the folder in which they lie; each file is one, and they are sent in turn."""

    url: str
    bodies: Path
    content_type: str


@dataclass(frozen=True)
class Seen:
    """One entry for each request, in the order of sending: when it was sent, in seconds since the first could be; how
    long its answer took; its status, LOST without one; Retry-After in seconds, nan without. `late_ms` is how far behind
    their time 99% of them were sent at most, `cpu_s` the processor time of the clients."""

    at_s: NDArray[np.float64]
    ms: NDArray[np.float64]
    status: NDArray[np.int64]
    retry_after_s: NDArray[np.float64]
    seconds: float
    late_ms: float
    cpu_s: float

    def between(self, start_s: float, end_s: float) -> "Seen":
        """Those that were sent then."""
        some = (self.at_s >= start_s) & (self.at_s < end_s)
        return Seen(self.at_s[some], self.ms[some], self.status[some], self.retry_after_s[some], end_s - start_s,
                    self.late_ms, self.cpu_s)

    @property
    def answered(self) -> int:
        return int((self.status == 200).sum())

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    def count(self, status: int) -> int:
        return int((self.status == status).sum())

    def percentiles(self, *wanted: float) -> list[float]:
        """Milliseconds, of what was answered by 200; nan where nothing was."""
        accepted = self.ms[self.status == 200]
        if not len(accepted):
            return [math.nan] * len(wanted)
        return [float(found) for found in np.percentile(accepted, wanted)]


class Traffic(Helper):
    """`with Traffic() as traffic`: the process."""

    def __init__(self) -> None:
        super().__init__("src.benchmarks.traffic")

    def stream(self, target: Target, stages: Sequence[tuple[float, float]], *, seed: int = 0) -> Seen:
        """(rate, seconds) one after the other: requests come at random moments, `rate` a second on average, however
        long answers take. Those of the last stage are waited for."""
        return self._seen(target, stages=stages, seed=seed)

    def in_turn(self, target: Target, count: int, *, clients: int = 1) -> Seen:
        """`count` requests by so many clients, each of which waits for its answer before it asks again."""
        return self._seen(target, clients=clients, count=count)

    def _seen(self, target: Target, **how: Any) -> Seen:
        found = self.ask(**{**asdict(target), "bodies": str(target.bodies.absolute()), **how})
        kinds = {"at_s": float, "ms": float, "status": int, "retry_after_s": float}  # None becomes nan
        return Seen(**{**found, **{name: np.array(found[name], dtype=kind) for name, kind in kinds.items()}})


class _Connection(asyncio.Protocol):
    """One request at a time; `answer` is done with (status, Retry-After) once the whole answer is there."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = -1  # bytes of the answer, its head included, once that is known
        self.answer: asyncio.Future[tuple[int, float | None]] | None = None
        self._head: tuple[int, float | None] = (LOST, None)
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, float | None]]":
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            status, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length, again = int(headers.get("content-length", "0")), headers.get("retry-after")
            self._head = int(status.split()[1]), float(again) if again else None
            self._wanted = end + 4 + length
            self.open = headers.get("connection", "").lower() != "close"
        if len(self._buffer) >= self._wanted:
            self._buffer.clear()
            self._wanted = -1
            self._done(self._head)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._done((LOST, None))

    def _done(self, found: tuple[int, float | None]) -> None:
        if self.answer and not self.answer.done():
            self.answer.set_result(found)
        self.answer = None


class _Clients:
    """What was asked of one server, over connections that are kept."""

    def __init__(self, url: str, bodies: str, content_type: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 80
        self._requests = [
            f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            for body in (path.read_bytes() for path in sorted(Path(bodies).iterdir()))]
        self._free: list[_Connection] = []
        self._connections = 0
        self._asked = 0
        self._began = time.perf_counter()
        self.at_s: list[float] = []
        self.ms: list[float] = []
        self.status: list[int] = []
        self.retry_after_s: list[float | None] = []

    async def ask(self) -> None:
        number = self._asked
        self._asked += 1
        self.at_s.append(time.perf_counter() - self._began)
        self.ms.append(0.0)
        self.status.append(LOST)
        self.retry_after_s.append(None)
        request = self._requests[number % len(self._requests)]
        connection, status, again = None, LOST, None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await self._connection()
                status, again = await connection.ask(request)
        except (OSError, TimeoutError):
            pass
        self.ms[number] = (time.perf_counter() - began) * 1e3
        self.status[number], self.retry_after_s[number] = status, again
        if connection and connection.open and status != LOST:
            self._free.append(connection)
        elif connection:
            self._connections -= 1
            connection.transport.abort()

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:
                return connection
            self._connections -= 1
        if self._connections >= MOST_CONNECTIONS:
            raise OSError("too many connections")
        self._connections += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        except OSError:
            self._connections -= 1
            raise
        return connection

    async def stream(self, stages: Sequence[tuple[float, float]], seed: int) -> list[float]:
        """How far behind its time each was sent, in seconds."""
        chance, under_way, late = random.Random(seed), set[asyncio.Task[None]](), []
        due = end = self._began
        for rate, seconds in stages:
            due, end = end, end + seconds
            while (due := due + chance.expovariate(rate)) < end:
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                late.append(time.perf_counter() - due)
                task = asyncio.create_task(self.ask())
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)
        return late

    async def in_turn(self, count: int, clients: int) -> list[float]:
        async def work() -> None:
            while self._asked < count:
                await self.ask()

        await asyncio.gather(*(work() for _ in range(clients)))
        return [0.0]

    def close(self) -> None:
        for connection in self._free:
            connection.transport.abort()


async def _obey(command: dict[str, Any]) -> dict[str, Any]:
    clients = _Clients(command["url"], command["bodies"], command["content_type"])
    began, cpu_s = time.perf_counter(), time.process_time()
    try:
        if "stages" in command:
            late = await clients.stream(command["stages"], command["seed"])
        else:
            late = await clients.in_turn(command["count"], command["clients"])
    finally:
        clients.close()
    return {"at_s": clients.at_s, "ms": clients.ms, "status": clients.status, "retry_after_s": clients.retry_after_s,
            "seconds": sum(stage[1] for stage in command.get("stages", [])) or time.perf_counter() - began,
            "late_ms": float(np.percentile(late, 99)) * 1e3 if late else 0.0, "cpu_s": time.process_time() - cpu_s}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who measures
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asyncio.run(_obey(json.loads(line)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
