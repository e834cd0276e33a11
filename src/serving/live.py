"""The cascade while clients wait: student → LLM → person, every step on disk before anybody hears of it.

The steps are the policy's own, `first` and `then`, with the asking in between, so that a live server takes the routes
of a replay. What has no answer yet lives on as a ticket, and in the log, from which a restarted server takes it up.
Knows nothing about HTTP, nor how anybody is asked.
"""

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from src.cascade.policy import Decision, Escalation, EscalationReason, Opinion, Policy, Reply, Route, first, then
from src.console import say, warn
from src.data.images import Unreadable
from src.errors import RowsRefused, StoreError
from src.metrics import Floats
from src.quality.conclude import HUMAN
from src.serving.admission import BUSY_S, Admission, Busy
from src.serving.lane import Lane, Waiting
from src.serving.spec import ServingSpec
from src.store import DecisionLog, Logged
from src.task import Failure, TaskSpec

AGAIN_S = (0.5, 30.0)  # between tries at a log that refuses: at first, and at the most
PATIENCE_S = 5.0  # that a reviewer waits for the log; it is tried on without them
ASKED_BODIES = 8  # bodies of the largest size, whose bytes the images may have that the LLM is asked about at a time
REMEMBERED = 1000  # answered items whose answer can still be taken back


class BadImages(Exception):
    """Images that cannot be used, by their position in the request, and why. Nothing was logged."""

    def __init__(self, positions: dict[int, str]) -> None:
        super().__init__("; ".join(f"{position}: {why}" for position, why in positions.items()))
        self.positions = positions


class Teacher(Protocol):
    """Who is asked about what the student doubts."""

    async def ask(self, key: str, payload: bytes, *, within_s: float) -> tuple[Reply, str]: ...
    async def said(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]: ...
    async def drain(self, seconds: float) -> None: ...


class Writes(Protocol):
    """Where steps are written down."""

    async def write(self, rows: Sequence[Logged]) -> None: ...


class Payloads(Protocol):
    """Where the images of escalations lie."""

    def keep(self, key: str, payload: bytes, truth: str | None = None) -> Path: ...
    def find(self, key: str) -> Path | None: ...


class Ticket:
    """One item of a request: what the student thinks, and the `latest` step, which is on disk. `settled` is set while
    that step has an answer; a person may take theirs back."""

    __slots__ = ("_settled", "began", "key", "latest", "opinion", "position", "request")

    def __init__(self, request: str, position: int, key: str, opinion: Opinion, latest: Logged, began: float) -> None:
        self.request, self.position, self.key = request, position, key
        self.opinion, self.latest, self.began = opinion, latest, began
        self._settled: asyncio.Event | None = None  # most are never waited for, and an event takes a kilobyte

    @property
    def settled(self) -> asyncio.Event:
        if self._settled is None:
            self._settled = asyncio.Event()
            self.step(self.latest)
        return self._settled

    def step(self, latest: Logged) -> None:
        """Note what is on disk now."""
        self.latest = latest
        if self._settled and latest.answer is not None:
            self._settled.set()
        elif self._settled:
            self._settled.clear()


@dataclass
class _Accepted:
    """A request that was decoded: keys, payloads, and what the student sees."""

    keys: list[str]
    payloads: Sequence[bytes]
    images: NDArray[np.uint8]


@dataclass(eq=False)
class _Turn:
    """Whose turn it is with one item, and how many want it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


class Cascade:
    """`async with Cascade(...) as cascade: tickets = await cascade.submit(request, payloads, client=name)`.

    `student` is the model's name for the log; `batcher` gives [n, C] calibrated probabilities of [n, 3, S, S] images in
    the order of the task's classes, and `see` makes such an image of an item's bytes, or raises Unreadable. Without a
    `teacher`, people get what the student doubts. `truths` (item → class) are known in a rehearsal alone, and kept with
    the images of escalations. `clock` tells seconds, `now` the time of day.

    On entering, what the log holds without an answer is taken up again; `review.take_up` then passes on what people had
    said about it. On leaving, what is still under way is dropped: `drain` before that.
    """

    def __init__(self, *, task: TaskSpec, student: str, policy: Policy,
                 batcher: Callable[[NDArray[np.uint8]], Awaitable[Floats]], see: Callable[[bytes], NDArray[np.uint8]],
                 teacher: Teacher | None, lane: Lane, log: Writes, decisions: DecisionLog, payloads: Payloads,
                 spec: ServingSpec, truths: Mapping[str, str] | None = None,
                 clock: Callable[[], float] = time.monotonic,
                 now: Callable[[], datetime] = lambda: datetime.now(UTC),
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._task, self._student, self._policy = task, student, policy
        self._batcher, self._see, self._teacher, self._lane = batcher, see, teacher, lane
        self._log, self._decisions, self._payloads, self._spec = log, decisions, payloads, spec
        self._truths = truths or {}
        self._clock, self._now, self._sleep = clock, now, sleep
        self._admission = Admission(spec.most_pending, spec.batch_images, clock=clock)
        self._asking = self._asked_bytes = self._waiting_count = 0
        self._open: dict[str, list[Ticket]] = {}
        self._waiting: dict[str, list[Ticket]] = {}
        self._answered: OrderedDict[str, list[Ticket]] = OrderedDict()
        self._words: dict[str, tuple[str, str] | None] = {}  # what people said here last; None: taken back
        self._turns: dict[str, _Turn] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._log_refuses = False
        self._stopping = False
        self._told_of_load = self._told_of_others = False

    async def __aenter__(self) -> Self:
        self._decoding = ThreadPoolExecutor(os.cpu_count(), "decode")
        await self._take_up()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._stopping = True
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._decoding.shutdown(wait=False)

    @property
    def pending(self) -> int:
        """Images that were taken and have no first step on disk yet."""
        return self._admission.pending

    @property
    def asking(self) -> int:
        """Items that the LLM is being asked about."""
        return self._asking

    @property
    def waiting(self) -> int:
        """Tickets that wait for a person."""
        return self._waiting_count

    def tickets(self, request: str) -> list[Ticket]:
        """Those without an answer; of an unknown or settled request, none."""
        return list(self._open.get(request, ()))

    async def submit(self, request: str, payloads: Sequence[bytes], *, client: str) -> list[Ticket]:
        """One ticket for each image, in order, whose first step is on disk; what was escalated goes on by itself.

        Raises BadImages, Busy or StoreError, and then nothing of the request was logged. A caller who is cancelled
        stops waiting; what was accepted is decided all the same.
        """
        if self._stopping:
            raise Busy(BUSY_S)
        self._admission.take(len(payloads))
        accepted = self._go_on(self._accept(request, payloads, client))
        accepted.add_done_callback(lambda _: self._admission.leave(len(payloads)))
        return await asyncio.shield(accepted)

    async def answered(self, key: str, label: str | None, annotator: str) -> None:
        """A person answered, or (None) took that back: settle every ticket of the item that waits for one, or open
        those that were settled so. Returns once that is on disk; where the log refuses for long, before, and it is
        tried on. Raises ValueError for what is no class."""
        if label is not None and label not in self._task.classes:
            raise ValueError(f"label={label!r} is no class: {', '.join(self._task.names)}")
        self._words[key] = None if label is None else (label, annotator)
        said = self._go_on(self._pass_on(key, label, annotator))
        done, _ = await asyncio.wait([said], timeout=PATIENCE_S)
        if done:
            said.result()

    async def drain(self, seconds: float) -> None:
        """Take nothing more, and bring what was accepted to its answer, or to the lane, for so long at the most. What
        is open then stands in the log, and a restarted server takes it up."""
        self._stopping = True
        until = self._clock() + seconds
        while self._under_way and self._clock() < until:
            await asyncio.wait(set(self._under_way), timeout=until - self._clock())
        if self._teacher:
            await self._teacher.drain(max(0.0, until - self._clock()))
        if self._under_way:
            say(f"{len(self._under_way)} step(s) were under way when the time was over; the log holds them open, and "
                "the next start takes them up.")

    # A request.

    async def _accept(self, request: str, payloads: Sequence[bytes], client: str) -> list[Ticket]:
        began = self._clock()
        loop = asyncio.get_running_loop()
        accepted = await loop.run_in_executor(self._decoding, self._decode, payloads)
        probabilities = (await self._batcher(accepted.images)).tolist()
        steps = [first(self._policy, key, Opinion.of(row, self._task.names))
                 for key, row in zip(accepted.keys, probabilities, strict=True)]
        escalated = [n for n, step in enumerate(steps) if isinstance(step, Escalation)]
        if escalated:
            # Before the log says that somebody shall look at them.
            await asyncio.to_thread(self._keep, [(accepted.keys[n], payloads[n]) for n in escalated])
        now, latency = self._now(), max(0.0, self._clock() - began)
        rows = []
        for position, (step, row) in enumerate(zip(steps, probabilities, strict=True)):
            decided = step if isinstance(step, Decision) else None
            rows.append(Logged(
                request=request, position=position, step=0, item=step.key, task=self._task.name,
                task_version=self._task.version, student=self._student, client=client, probabilities=tuple(row),
                answer=decided.answer if decided else None, probability=decided.probability if decided else None,
                route=(decided.route if decided else Route.TEACHER).value,
                escalated=step.escalated.value if step.escalated else None, human=None, latency_s=latency,
                created_at=now))
        await self._log.write(rows)
        tickets = [Ticket(request, row.position, row.item, step.student, row, began)
                   for step, row in zip(steps, rows, strict=True)]
        if escalated:
            self._open[request] = [tickets[n] for n in escalated]
        for n in escalated:
            step = steps[n]
            assert isinstance(step, Escalation)
            self._go_on(self._escalate(tickets[n], step, payloads[n])).add_done_callback(_tell_of_mistake)
        return tickets

    def _decode(self, payloads: Sequence[bytes]) -> _Accepted:
        images, bad = [], dict[int, str]()
        for position, payload in enumerate(payloads):
            try:
                images.append(self._see(payload))
            except Unreadable as error:
                bad[position] = str(error)
        if bad:
            raise BadImages(bad)
        return _Accepted([hashlib.sha256(payload).hexdigest() for payload in payloads], payloads, np.stack(images))

    def _keep(self, images: Iterable[tuple[str, bytes]]) -> None:
        for key, payload in images:
            self._payloads.keep(key, payload, self._truths.get(key))

    def _go_on(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """As a task of its own, which `drain` waits for and nobody's cancellation ends."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; to nobody, where they left

    # An escalation.

    async def _escalate(self, ticket: Ticket, escalation: Escalation, payload: bytes) -> None:
        reply, annotator = await self._ask(ticket.key, payload)
        decision = then(self._policy, escalation, reply)
        if decision.answer is not None:
            await self._write([self._next(ticket, answer=decision.answer, probability=decision.probability,
                                          route=Route.TEACHER.value, annotator=annotator, cost_usd=reply.cost_usd)],
                              [ticket])
            return
        assert decision.human
        step = self._next(ticket, route=Route.HUMAN.value, human=decision.human.value, cost_usd=reply.cost_usd)
        why = await self._why([ticket.key]) if self._teacher and not reply.over_budget else {}
        await self._to_people(ticket, step, reply.answer, reply.probability,
                              why.get(ticket.key, (None, str(reply.failure or "")))[1])

    async def _ask(self, key: str, payload: bytes) -> tuple[Reply, str]:
        if self._teacher is None:
            return Reply(failure=Failure.CONNECTION), ""
        too_many = self._asking >= self._spec.most_pending
        most_bytes = ASKED_BODIES * self._spec.most_body_mb * 1e6
        if too_many or (self._asking and self._asked_bytes + len(payload) > most_bytes):
            # Each holds its image in memory. A slow LLM must neither fill that nor keep clients from the student.
            if not self._told_of_load:
                warn(f"{self._asking} escalations wait for the LLM, and their number or their images are too much "
                     f"(serving.most_pending={self._spec.most_pending}, {most_bytes / 1e6:g} MB): people get the rest.")
            self._told_of_load = True
            return Reply(failure=Failure.OVERLOADED), ""
        self._asking += 1
        self._asked_bytes += len(payload)
        try:
            return await self._teacher.ask(key, payload, within_s=self._spec.teacher_within_s)
        except Exception as error:
            warn(f"Asking the LLM failed as nobody foresaw ({error!r}); people take over.")
            return Reply(failure=Failure.LOST), ""
        finally:
            self._asking -= 1
            self._asked_bytes -= len(payload)

    async def _why(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        """What the LLM said about items; a store that cannot be read only leaves the page without it."""
        try:
            return await self._teacher.said(keys) if self._teacher else {}
        except StoreError:
            return {}

    async def _to_people(self, ticket: Ticket, step: Logged | None, teacher: str | None,
                         teacher_probability: float | None, why: str) -> None:
        """Let it wait for a person, with `step` as the reason (None where that is logged); where one has answered this
        very item before, that is the answer."""
        async with self._turn(ticket.key):
            rows = [step] if step else []
            said = self._words[ticket.key] if ticket.key in self._words else self._said_before(ticket.key)
            if said:
                last = step or ticket.latest
                rows.append(self._next(ticket, after=last, answer=said[0], probability=None, annotator=said[1]))
            await self._write(rows, [ticket] * len(rows))
            if ticket.latest.answer is not None:
                if said:
                    self._remember(ticket.key, [ticket])
                return
            self._waiting.setdefault(ticket.key, []).append(ticket)
            self._waiting_count += 1
            row = ticket.latest
            self._lane.add(Waiting(ticket.key, row.human or "", row.escalated or "", ticket.opinion, teacher, why,
                                   row.created_at, teacher_probability, row.probabilities))

    def _said_before(self, key: str) -> tuple[str, str] | None:
        said = self._lane.said(key)
        return (said[0], HUMAN + said[1]) if said else None

    async def _pass_on(self, key: str, label: str | None, annotator: str) -> None:
        """A person's word to all tickets of the item that it is about."""
        async with self._turn(key):
            before = self._answered.get(key, [])
            waiting = self._waiting.get(key, [])
            if label is None:
                rows = [self._next(ticket, answer=None, probability=None, annotator="") for ticket in before]
                await self._write(rows, before)
                self._answered.pop(key, None)
                if before:
                    self._waiting[key] = [*waiting, *before]
                    self._waiting_count += len(before)
                for ticket in before:
                    self._open.setdefault(ticket.request, []).append(ticket)
                return
            changed = [ticket for ticket in before if ticket.latest.answer != label]
            rows = [self._next(ticket, answer=label, probability=None, annotator=annotator)
                    for ticket in [*waiting, *changed]]
            await self._write(rows, [*waiting, *changed])
            self._waiting.pop(key, None)
            self._waiting_count -= len(waiting)
            self._remember(key, waiting)

    def _remember(self, key: str, tickets: Sequence[Ticket]) -> None:
        """Their answer may be taken back; of too many, the oldest may not any more."""
        if tickets:
            self._answered.setdefault(key, []).extend(tickets)
            self._answered.move_to_end(key)
        while len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        """Words about one item are dealt with one after the other."""
        turn = self._turns.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[key]

    # The log.

    def _next(self, ticket: Ticket, *, after: Logged | None = None, **changes: Any) -> Logged:
        """The step after the ticket's latest one, or `after` that."""
        last = after or ticket.latest
        fields: dict[str, Any] = {"step": last.step + 1, "cost_usd": 0.0, "annotator": "", "created_at": self._now(),
                                  "latency_s": max(0.0, self._clock() - ticket.began), **changes}
        return replace(last, **fields)

    async def _write(self, rows: Sequence[Logged], tickets: Sequence[Ticket]) -> None:
        """Bring steps to disk, however long that takes, and only then to their tickets. Where another process was
        before us, what it wrote holds."""
        left = list(zip(tickets, rows, strict=True))
        pause, longest = AGAIN_S
        while left:
            try:
                await self._log.write([row for _, row in left])
                self._note(left)
                break
            except StoreError as error:
                if not self._log_refuses and not isinstance(error, RowsRefused):
                    warn(f"Decisions cannot be logged, and are held back until they can: {error}")
                    self._log_refuses = True
                there = await self._there(left)
                left = [(ticket, row) for ticket, row in left if ticket not in there]
                self._note(there.items())
                if not there and isinstance(error, RowsRefused):
                    warn(f"A step of request {rows[0].request} cannot be logged, and stays open: {error}")
                    raise
            if not there:
                await self._sleep(pause)
                pause = min(2 * pause, longest)
        if self._log_refuses and rows:
            self._log_refuses = False
            say("Decisions are logged again.")

    async def _there(self, steps: Sequence[tuple[Ticket, Logged]]) -> dict[Ticket, Logged]:
        """What the log says of those whose step it has: our own, of which only the word was lost, or another's."""
        first, last = dict(reversed(steps)), dict(steps)
        found = {}
        try:
            for request in {ticket.request for ticket in last}:
                for row in await asyncio.to_thread(self._decisions.of, request):
                    found[request, row.position] = row
        except StoreError:
            return {}
        there = {}
        for ticket, row in last.items():
            stands = found.get((ticket.request, ticket.position))
            if stands and stands.step >= first[ticket].step:
                there[ticket] = stands
                if stands != row and not self._told_of_others:
                    self._told_of_others = True
                    warn("Another process decides on the same items in the same store, and what it wrote first holds. "
                         "People are asked twice like this: give each server a store of its own (store=…).")
        return there

    def _note(self, steps: Iterable[tuple[Ticket, Logged]]) -> None:
        """These are on disk."""
        for ticket, row in steps:
            ticket.step(row)
            if row.answer is not None:
                self._close(ticket)

    def _close(self, ticket: Ticket) -> None:
        """It is no longer among those without an answer."""
        if ticket in (held := self._open.get(ticket.request, [])):
            held.remove(ticket)
            if not held:
                del self._open[ticket.request]

    # A restart.

    async def _take_up(self) -> None:
        """What the log holds open: to the lane, or to the LLM. Where the image is gone nobody can answer."""
        rows = await asyncio.to_thread(lambda: list(self._decisions.open(self._task.name, self._task.version)))
        kept = await asyncio.to_thread(lambda: {row.item for row in rows if self._payloads.find(row.item)})
        if gone := sum(row.item not in kept for row in rows):
            warn(f"{gone} escalation(s) of before have no image any more (serving.keep_days, serving.keep_gb): nobody "
                 "can answer them, and they stay open in the log.")
        rows = [row for row in rows if row.item in kept]
        if not rows:
            return
        tickets = []
        for row in rows:
            passed = (self._now() - row.created_at).total_seconds() + row.latency_s
            ticket = Ticket(row.request, row.position, row.item, Opinion.of(row.probabilities, self._task.names), row,
                            self._clock() - max(0.0, passed))
            self._open.setdefault(row.request, []).append(ticket)
            tickets.append(ticket)
        for_people = [ticket for ticket in tickets if ticket.latest.route == Route.HUMAN]
        for_the_llm = [ticket for ticket in tickets if ticket.latest.route != Route.HUMAN]
        why = await self._why([ticket.key for ticket in for_people])
        for ticket in for_people:
            teacher, words = why.get(ticket.key, (None, ""))
            await self._to_people(ticket, None, teacher, None, words)
        say(f"Taken up again: {len(for_people)} item(s) wait for people, {len(for_the_llm)} for the LLM.")
        if for_the_llm:
            self._go_on(self._ask_again(for_the_llm)).add_done_callback(_tell_of_mistake)

    async def _ask_again(self, tickets: Sequence[Ticket]) -> None:
        """A few at a time: each holds its image in memory, and clients of today want the LLM as well."""
        some = asyncio.Semaphore(max(1, self._spec.most_pending // 4))

        async def one(ticket: Ticket) -> None:
            async with some:
                try:
                    path = await asyncio.to_thread(self._payloads.find, ticket.key)
                    payload = await asyncio.to_thread(path.read_bytes) if path else None
                except (OSError, StoreError):  # it expired a moment ago
                    payload = None
                if payload is None:
                    return
                reason = EscalationReason(ticket.latest.escalated or EscalationReason.DOUBTFUL)
                await self._escalate(ticket, Escalation(ticket.key, ticket.opinion, reason), payload)

        await asyncio.gather(*(one(ticket) for ticket in tickets))


def _tell_of_mistake(task: asyncio.Task[Any]) -> None:
    """Nobody waits for an escalation's end, so that a mistake of ours there would pass in silence."""
    error = None if task.cancelled() else task.exception()
    if error and not isinstance(error, StoreError):  # which was told where it arose
        warn(f"An escalation stays open until the next start, by a mistake that nobody foresaw: {error!r}")
