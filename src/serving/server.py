"""Everything that serves, put together and run until it is told to stop.

Knows what the parts are called, and nothing about runs or config: how images become probabilities is an argument.
"""

import asyncio
import contextlib
import gc
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import aiohttp
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from src.cascade.policy import Policy
from src.console import say, warn
from src.data.escalations import served_folder
from src.errors import ConfigError, StoreError
from src.metrics import Floats
from src.serving.access import Access
from src.serving.app import HURRY, STOPPING, make_app
from src.serving.batcher import Batcher
from src.serving.connections import listening
from src.serving.counters import CountedLog, Counters
from src.serving.lane import Lane
from src.serving.live import Cascade
from src.serving.log import Log
from src.serving.payloads import Payloads
from src.serving.review import routes, take_up
from src.serving.spec import ServingSpec
from src.serving.teacher import TeacherLane
from src.store import DecisionLog, Logged, Store
from src.task import TaskSpec

EXPIRE_EVERY_S = 3600.0
ANSWERED_WITHIN_S = 2.0  # what handlers have to write their answers once all is decided
TOLD_EVERY_S = 60.0


@dataclass(frozen=True)
class Model:
    """A student as it is served: its `name` for the log, how an item's bytes are seen ([3, S, S] bytes, or Unreadable),
    and [n, C] calibrated probabilities of [n, 3, S, S], in the order of the task's classes."""

    name: str
    see: Callable[[bytes], NDArray[np.uint8]]
    predict: Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class Serving:
    """What is served to whom. `teacher` makes the lane to the LLM, of the store; None where nobody is asked. `truths`
    (item → class) are known in a rehearsal alone. All state lies below `home` and in `store`. Of `samples`,
    `sample_traffic` a second are sent by the server to itself, so that there is something to look at."""

    task: TaskSpec
    model: Model
    policy: Policy
    teacher: Callable[[Store], TeacherLane] | None
    rehearsal: bool
    truths: Mapping[str, str]
    spec: ServingSpec
    access: Access
    home: Path
    store: str
    max_pixels: int
    samples: Sequence[bytes] = ()
    sample_traffic: float = 0.0
    told: Callable[[str], None] = field(default=say)


def serve(what: Serving, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGINT or SIGTERM, and then bring what was accepted to its end; a second signal ends as
    soon as the database lets go of what is being written.

    `ready` is called with the address once it answers. Raises ConfigError and StoreError.
    """
    asyncio.run(_serve(what, ready))


async def _serve(what: Serving, ready: Callable[[str], None]) -> None:
    async with AsyncExitStack() as stack:
        stop = asyncio.Event()
        stack.enter_context(_signals(stop))
        cascade, app = await _assemble(stack, what)
        tally = app[TALLY]
        # What is there by now stays; to go through it again takes the collector, and all clients, a third of a second.
        gc.freeze()
        stack.callback(gc.unfreeze)
        host, port = await stack.enter_async_context(
            listening(app, what.spec.host, what.spec.port, end_within_s=ANSWERED_WITHIN_S))
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        what.told(f"Listening on {address}: POST /v1/decide, people decide at {address}/review, metrics at /metrics. "
                  "Ctrl-C stops it.")
        beside = [asyncio.create_task(_tell(what, tally))]
        if what.sample_traffic and what.samples:
            beside.append(asyncio.create_task(_send_samples(what, address)))
        ready(address)
        try:
            await stop.wait()
        finally:
            app[STOPPING].set()
            what.told("Stopping: nothing new is taken, and what was accepted is brought to its end …")
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await cascade.drain(what.spec.shutdown_s)
            app[HURRY].set()
    what.told(f"Stopped. {tally}")


class Tally:
    """What was decided since the start, for the console."""

    def __init__(self) -> None:
        self.items = 0
        self.answers: Counter[str] = Counter()
        self.cost_usd = 0.0

    def note(self, rows: Sequence[Logged]) -> None:
        for row in rows:
            self.items += row.step == 0
            self.answers[row.route] += row.answer is not None
            self.cost_usd += row.cost_usd

    def __str__(self) -> str:
        by = ", ".join(f"{name} {self.answers[route]}" for route, name in
                       (("student", "student"), ("teacher", "LLM"), ("human", "people")))
        return (f"{self.items} items: {by}, open {max(0, self.items - sum(self.answers.values()))}; LLM "
                f"${self.cost_usd:.4f}")


TALLY = aiohttp.web.AppKey("tally", Tally)


class _TalliedLog:
    """A log whose rows are noted once they are on disk."""

    def __init__(self, log: CountedLog, tally: Tally) -> None:
        self._log, self._tally = log, tally

    async def write(self, rows: Sequence[Logged]) -> None:
        await self._log.write(rows)
        self._tally.note(rows)


async def _assemble(stack: AsyncExitStack, what: Serving) -> tuple[Cascade, aiohttp.web.Application]:
    spec, task = what.spec, what.task
    stack.enter_context(_alone(served_folder(what.home, task.name)))
    store, decisions = Store(what.store), DecisionLog(what.store)
    stack.callback(store.close)
    stack.callback(decisions.close)
    counters, tally = Counters(), Tally()
    log = CountedLog(await stack.enter_async_context(Log(decisions)), counters)
    payloads = Payloads(served_folder(what.home, task.name), spec.keep_days, int(spec.keep_gb * 1e9))
    batcher = await stack.enter_async_context(
        Batcher(counters.timed(what.model.predict), most=spec.batch_images, wait_ms=spec.batch_wait_ms))
    lane = Lane(lease_s=spec.lease_s, second_opinion_share=spec.second_opinion_share)
    teacher = None
    if what.teacher:
        teacher = await stack.enter_async_context(what.teacher(store))
    cascade = await stack.enter_async_context(Cascade(
        task=task, student=what.model.name, policy=what.policy, batcher=batcher, see=what.model.see, teacher=teacher,
        lane=lane, log=_TalliedLog(log, tally), decisions=decisions, payloads=payloads, spec=spec,
        truths=what.truths if what.rehearsal else None))
    await take_up(lane, task, store, cascade.answered)
    counters.watch(cascade)
    await stack.enter_async_context(_expiring(payloads))
    app = make_app(cascade, decisions=decisions, spec=spec, access=what.access, counters=counters, task=task,
                   rehearsal=what.rehearsal, max_pixels=what.max_pixels,
                   review=routes(lane, task, payloads, store, cascade.answered, keys=not what.access.open,
                                 rehearsal=what.rehearsal, max_pixels=what.max_pixels))
    app[TALLY] = tally
    return cascade, app


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two servers of one task would show people the same items, and both take their answers. Raises ConfigError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("home", str(folder.parents[2]), f"another server of the task {folder.name!r} runs there: "
                          "stop that one, or give this one a home= of its own") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`; the second cancels."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    installed = []

    def told() -> None:
        if stop.is_set() and task:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not in another thread than the main one, and not on Windows: there Ctrl-C ends at once.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, told)
            installed.append((number, before))
    try:
        yield
    finally:
        for number, before in installed:
            loop.remove_signal_handler(number)
            signal.signal(number, before)


@asynccontextmanager
async def _expiring(payloads: Payloads) -> AsyncIterator[None]:
    """Payloads go when their time is over, at the start and once an hour."""

    async def expire() -> None:
        while True:
            try:
                if gone := await asyncio.to_thread(payloads.expire, datetime.now(UTC)):
                    say(f"{gone} image(s) of escalations were removed: their time was over, or room was needed.")
            except StoreError as error:
                warn(str(error))
            await asyncio.sleep(EXPIRE_EVERY_S)

    task = asyncio.create_task(expire())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _tell(what: Serving, tally: Tally) -> None:
    """A line a minute while something happens."""
    before = ""
    while True:
        await asyncio.sleep(TOLD_EVERY_S)
        now = str(tally)
        if now != before:
            what.told(now)
        before = now


async def _send_samples(what: Serving, address: str) -> None:
    """Over HTTP, as anybody would send them, at an even pace; the answers are not waited for."""
    due = time.monotonic()
    async with aiohttp.ClientSession() as session:
        for payload in cycle(what.samples):
            form = aiohttp.FormData({"wait": "poll"})
            form.add_field("image", payload, filename="sample", content_type="application/octet-stream")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"{address}/v1/decide", data=form) as response:
                    await response.read()
            due = max(due + 1 / what.sample_traffic, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
