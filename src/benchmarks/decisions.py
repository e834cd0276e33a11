"""The decision log over a million rows, and a day's work in minutes: does what they hold grow with what they have done?

`python -m src.benchmarks.decisions` measures in a process of its own, whose memory nothing else adds to. Rows are as a
server writes them, and nobody is asked over a network.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from src.benchmarks import defaults
from src.cascade.policy import Policy, Reply
from src.metrics import Floats
from src.serving.lane import Lane
from src.serving.live import Cascade
from src.serving.log import Log, new_request
from src.serving.payloads import Payloads
from src.store import DecisionLog, Logged
from src.task import TaskSpec

WRITERS = 64  # at a time
MOST = 32  # rows of one write
CLASSES = 5
IMAGES = 500  # different ones that are replayed; from there on they repeat themselves
ESCALATED = 0.1  # of the replayed
LOOK_EVERY = 500  # answers, at which one is looked up in the log
WATCH_EVERY_S = 0.05
TASK = TaskSpec("benchmark", 1, "classify", {"sound": "all of it", "broken": "any of it"}, {}, "", "?", "accuracy")


@dataclass
class Watch:
    """How much was done of `total`, and what the process held meanwhile, in bytes."""

    total: int
    done: int = 0
    early: int = 0  # at a tenth
    most: int = 0  # from there on

    def note(self, count: int) -> None:
        self.done += count
        if self.done >= self.total or (not self.early and self.done >= 0.1 * self.total):
            self.look()

    def look(self) -> None:
        held = psutil.Process().memory_info().rss
        self.early = self.early or held
        self.most = max(self.most, held)

    async def go_on(self) -> None:
        while True:
            if self.early:
                self.look()
            await asyncio.sleep(WATCH_EVERY_S)


async def logged(address: Path, count: int) -> dict[str, Any]:
    """`count` decisions by 64 writers through `Log.write`, 1 to 32 at a time."""
    chance, decisions = random.Random(0), DecisionLog(address)
    watch, waits = Watch(count), list[float]()
    left = count

    async def write(log: Log) -> None:
        nonlocal left
        while left:
            size = min(left, chance.randint(1, MOST))
            left -= size
            rows = _rows(chance, size)
            began = time.perf_counter()
            await log.write(rows)
            waits.append(time.perf_counter() - began)
            watch.note(size)

    async with Log(decisions) as log:
        seconds, cpu_s = await _timed(watch, lambda: _together(lambda: write(log)))
    stored = decisions.count()
    decisions.close()
    if stored != count:
        raise SystemExit(f"{count} decisions were written, and {stored} are in the log")
    return _found(watch, seconds, cpu_s, waits) | {"bytes": _size(address) / count}


async def replayed(address: Path, count: int) -> dict[str, Any]:
    """`count` single images through `Cascade.submit`, 64 at a time: one in ten is doubtful and goes to an LLM that
    answers at once. Everything is real but the student, the decoding and the LLM."""
    spec, decisions = defaults.serving(), DecisionLog(address)
    watch, waits, images = Watch(count), list[float](), [b"image %d" % n for n in range(IMAGES)]
    left, lost = count, 0

    async def ask(cascade: Cascade) -> None:
        nonlocal left, lost
        while left:
            left -= 1
            number, request = left, new_request(datetime.now(UTC))
            began = time.perf_counter()
            tickets = await cascade.submit(request, [images[number % IMAGES]], client="benchmark")
            if number % LOOK_EVERY == 0:  # never behind the answer
                lost += not await asyncio.to_thread(decisions.of, request)
            for ticket in tickets:
                if ticket.latest.answer is None:
                    await ticket.settled.wait()
            waits.append(time.perf_counter() - began)
            watch.note(1)

    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(Log(decisions))
        cascade = await stack.enter_async_context(Cascade(
            task=TASK, student="run:benchmark", policy=Policy(0.6, 0.5, 0.0), batcher=_student, see=_see,
            teacher=_Llm(), lane=Lane(lease_s=spec.lease_s), log=log, decisions=decisions,
            payloads=Payloads(address.parent / "served", spec.keep_days, int(spec.keep_gb * 1e9)), spec=spec))
        seconds, cpu_s = await _timed(watch, lambda: _together(lambda: ask(cascade)))
        await cascade.drain(spec.shutdown_s)
    stored = decisions.count()
    escalated = sum(1 for row in decisions.read() if row.step)
    decisions.close()
    if lost or stored != count + escalated:
        raise SystemExit(f"{count} images were answered; {stored} steps are in the log, {lost} of those looked up were "
                         "not there yet when they were answered")
    return _found(watch, seconds, cpu_s, waits) | {"bytes": _size(address) / stored, "escalated": escalated}


class _Llm:
    """Answers at once, and costs nothing."""

    async def ask(self, key: str, payload: bytes, *, within_s: float) -> tuple[Reply, str]:
        return Reply(answer=TASK.names[0], probability=0.9), "benchmark"

    async def said(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        return {}

    async def drain(self, seconds: float) -> None:
        pass


def _see(payload: bytes) -> NDArray[np.uint8]:
    """How sure the student will be of it stands in its only pixel."""
    doubtful = int(payload.split()[1]) < ESCALATED * IMAGES
    return np.full((3, 1, 1), 50 if doubtful else 90, np.uint8)


async def _student(images: NDArray[np.uint8]) -> Floats:
    sure = images[:, 0, 0, 0] / 100
    return np.stack([sure, 1 - sure], 1)


def _rows(chance: random.Random, size: int) -> list[Logged]:
    now = datetime.now(UTC)
    request, shares = new_request(now), [chance.random() for _ in range(CLASSES)]
    probabilities = tuple(share / sum(shares) for share in shares)
    return [Logged(request, position, 0, sha256(f"{request}{position}".encode()).hexdigest(), TASK.name, 1,
                   "run:" + 32 * "0", "benchmark", probabilities, TASK.names[0], max(probabilities), "student", None,
                   None, latency_s=0.003, created_at=now) for position in range(size)]


async def _together(work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(work() for _ in range(WRITERS)))


async def _timed(watch: Watch, work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    looking = asyncio.create_task(watch.go_on())
    began, cpu_s = time.perf_counter(), time.process_time()
    await work()
    found = time.perf_counter() - began, time.process_time() - cpu_s
    looking.cancel()
    return found


def _found(watch: Watch, seconds: float, cpu_s: float, waits: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(waits, [50, 99]) * 1e3
    return {"seconds": seconds, "cpu_s": cpu_s, "early": watch.early, "most": watch.most, "p50_ms": float(p50),
            "p99_ms": float(p99)}


def _size(address: Path) -> int:
    return sum(path.stat().st_size for path in address.parent.glob(f"{address.name}*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--logged", type=int)
    kinds.add_argument("--replayed", type=int)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who measures
    found = (logged(args.folder / "logged.db", args.logged) if args.logged else
             replayed(args.folder / "replayed.db", args.replayed))
    sys.stdout.write(json.dumps(asyncio.run(found)))


if __name__ == "__main__":
    main()
