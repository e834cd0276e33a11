"""The LLM for a server: one item at a time, many at once, within a time and a budget, and never an exception.

Whatever is paid for stands in the store before it is used, under the same key as a labelling job's answers: what one of
them asked is not asked again by the other, and what it is asking just now is waited for. Knows nothing about policies,
nor about who waits for what.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

from src.cascade.cases import confidence, replies_by
from src.cascade.policy import Reply
from src.console import say, warn
from src.data.images import Unreadable, decode, shown
from src.data.spec import Shown
from src.errors import ConfigError, StoreError, TeacherError
from src.labeling.ask import RehearsalSpec, connect, seated
from src.labeling.budget import HOUR_S, HourlyBudget
from src.labeling.labeler import book_the_dead
from src.labeling.outcome import Outcome
from src.labeling.pacing import Pacer
from src.labeling.plan import prompt_tokens
from src.labeling.prompt import render
from src.labeling.request import Requests, Tries, cut_short, to_be_stored
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.labeling.writer import Writer
from src.quality.confidence import GOLD_LEAST
from src.serving.breaker import Breaker
from src.store import Claim, Key, Store
from src.task import Annotation, Failure, TaskSpec

USELESS_AFTER = 20  # answers of no use in a row: the next ones would be paid for as well, and be of none
LOOK_AGAIN_S = 0.5  # between looks at what another process is asking
LONGEST_BACKOFF_S = 5.0  # nobody waits for more
WRITE_AGAIN_S = (1.0, 30.0)  # after a store refused an answer: at first, and at the most
DOWN = (Failure.CONNECTION, Failure.TIMEOUT, Failure.OVERLOADED)


@dataclass(eq=False)
class _Question:
    """One item that is being asked about, for `waiting` clients, the first of which has `within_s`. `cost_usd` is what
    it cost and nobody was told yet; `sent` while a request is on its way."""

    key: str
    within_s: float
    waiting: int = 0
    cost_usd: float = 0.0
    sent: bool = False
    task: asyncio.Task[Reply] = field(init=False)


class TeacherLane:
    """`async with TeacherLane(...) as lane: reply, annotator = await lane.ask(key, payload, within_s=20)`.

    `gold` (item → class, of the *choose* part) says how far its answers can be believed, by what the store holds of
    them when this begins. `max_usd_per_hour` counts what this process spends, and what `job` did by the store in the
    hour before, whether anybody still waited for it or not; other processes' spending is not known. With `rehearsal`, a
    stand-in answers, about the items of `truths` (item → class) alone. `spec` says how many are asked at once, how
    often, and at which pace; `job` names who pays.

    Raises ConfigError for recorded answers: they are about other items.
    """

    def __init__(self, *, task: TaskSpec, teacher: Teacher, how: Shown, spec: LabelerSpec, store: Store,
                 gold: Mapping[str, str], max_usd_per_hour: float, max_pixels: int,
                 rehearsal: RehearsalSpec | None = None, truths: Mapping[str, str] | None = None,
                 seed: int = 0, job: str = "", breaker: Breaker | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if teacher.answers:
            raise ConfigError("teacher.answers", teacher.answers, "a server is asked about images that nobody has "
                              "recorded an answer for: choose a teacher that can be asked")
        self._seat = seated(task, teacher, rehearsal, 0)
        self.annotator = self._seat.annotator
        self._task, self._teacher, self._how, self._spec, self._store = task, teacher, how, spec, store
        self._gold, self._truths, self._max_pixels, self._job = gold, truths or {}, max_pixels, job
        self._prompt = render(task, how)
        self._clock = clock
        self.budget = HourlyBudget(max_usd_per_hour, clock=clock)
        self._breaker = breaker or Breaker(clock=clock)
        self._pacer = Pacer(
            backoff_s=spec.backoff_s, max_backoff_s=min(spec.max_backoff_s, LONGEST_BACKOFF_S), seed=seed,
            requests_per_minute=spec.requests_per_minute, tokens_per_minute=spec.tokens_per_minute,
            concurrency=spec.concurrency, adaptive=spec.adaptive)
        self._requests = Requests(task=task, teacher=teacher, annotator=self.annotator, prompt=self._prompt, job=job,
                                  pacer=self._pacer, purse=self.budget, cut_off=lambda: None)
        self._usual_tokens, _ = prompt_tokens([], teacher, self._prompt)
        self._under_way: dict[str, _Question] = {}
        self._useless = 0
        self._said_at: dict[str, float] = {}
        self._writing_again: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(book_the_dead, self._store)
            hour_ago = datetime.now(UTC) - timedelta(seconds=HOUR_S)
            self.budget.book(await asyncio.to_thread(partial(self._store.spent, self._job, since=hour_ago)))
            on_gold = await asyncio.to_thread(self._read, list(self._gold))
            self._confidence = confidence(on_gold, self._gold, self._task)
            self._requests.dearest_usd = max((a.cost_usd for a in on_gold), default=0.0)
            self._writer = await stack.enter_async_context(Writer(self._store))
            self._writer.when_refused(self._write_again)
            self._client, self._stand_in = await connect(stack, self._seat, self._prompt, self._task,
                                                         connections=self._spec.concurrency)
            self._stack = stack.pop_all()
        if not self._confidence.judges:
            warn(f"Gold has fewer than {GOLD_LEAST} answers by {self.annotator}, so how probably its next ones are "
                 "right is unknown, and people get all of them (unless cascade.teacher_confidence=0). "
                 "`python -m src.label` asks it about gold.")
        if not self._stand_in and self._teacher.key_env and not self._requests.worst_usd(b""):
            warn(f"No price is known for {self._teacher.model}, so serving.max_usd_per_hour cannot hold unless its "
                 "replies name their cost. Give teacher.price.input_usd and teacher.price.output_usd (US dollars per "
                 "million tokens).")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """What is still under way is cut off, and booked at its worst case; `drain` before that waits for it."""
        self._closing = True
        self._pacer.release()
        tasks = [question.task for question in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writing_again:
            self._writing_again.cancel()
        await self._stack.aclose()

    @property
    def pending(self) -> int:
        """Items that are being asked about."""
        return len(self._under_way)

    async def ask(self, key: str, payload: bytes, *, within_s: float) -> tuple[Reply, str]:
        """What the LLM says about the image `payload`, whose sha256 is `key`, and the name that its answers have in the
        store.

        An answer that is stored costs nothing, and one that several wait for is asked for once; its cost is told to
        one of them. After `within_s` it is a timeout, and a request that is on its way goes on to the teacher's own
        limit and is stored.
        """
        began = self._clock()
        question = self._under_way.get(key)
        if question is None:
            question = self._under_way[key] = _Question(key, within_s)
            question.task = asyncio.create_task(self._settle(question, payload))
        question.waiting += 1
        try:
            await asyncio.wait([question.task], timeout=within_s)
        finally:
            question.waiting -= 1
        latency = max(0.0, self._clock() - began)
        if not question.task.done():
            if question.sent:
                self._fault(Failure.TIMEOUT, f"no answer within {within_s:g} s")
            return Reply(failure=Failure.TIMEOUT, latency_s=latency), self.annotator
        reply = Reply(failure=Failure.LOST) if question.task.cancelled() else question.task.result()
        cost, question.cost_usd = question.cost_usd, 0.0
        return replace(reply, cost_usd=cost, latency_s=latency), self.annotator

    async def said(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        """By item, the class that is stored of its last attempt (None for a failure), and why. Raises StoreError."""
        found = {}
        for a in sorted(await asyncio.to_thread(self._read, list(keys)), key=lambda a: a.attempt):
            why = f"{a.failure}: {a.why}" if a.failure and a.why else a.failure or a.why
            found[a.item] = self._task.map_label(a.label), str(why)
        return found

    async def drain(self, seconds: float) -> None:
        """Wait for what is on its way, until it is written, for so long at the most; it is paid for whether somebody
        waits or not."""
        until = time.monotonic() + seconds
        if tasks := [question.task for question in self._under_way.values()]:
            await asyncio.wait(tasks, timeout=seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._writer.drain(), max(0.0, until - time.monotonic()))

    # One question.

    async def _settle(self, question: _Question, payload: bytes) -> Reply:
        try:
            return await self._answer(question, payload)
        except StoreError as error:
            self._tell("store", f"The LLM is not asked, since its answers could not be kept: {error}")
            return Reply(failure=Failure.LOST)
        except TeacherError as error:
            self._fault(Failure.BAD_REQUEST, str(error), for_long=True)
            return Reply(failure=Failure.BAD_REQUEST)
        except Unreadable as error:
            self._tell("unreadable", f"An image cannot be shown to the LLM: {error}")
            return Reply(failure=Failure.BAD_REQUEST)
        except Exception as error:  # a mistake of ours must not leave a client without an answer
            self._tell("unforeseen", f"Asking the LLM failed as nobody foresaw ({error!r}); people take over.")
            return Reply(failure=Failure.LOST)
        finally:
            self._breaker.leave(question)
            self._under_way.pop(question.key, None)

    async def _answer(self, question: _Question, payload: bytes) -> Reply:
        key = Key(self.annotator, self._prompt.hash, question.key, 0)
        tried = await asyncio.to_thread(self._read, [question.key])
        seen: tuple[bytes, str] | None = None
        while not self._is_final(tried):
            if refusal := self._shut(question):
                return refusal
            if seen is None:
                seen = await asyncio.to_thread(self._shown, payload)
            image, digest = seen
            claim = Claim(key, self._writer.owner, self._requests.ever(self._requests.worst_usd(image)),
                          self._task.name, self._task.version, self._job, known=len(tried))
            (standing,) = await self._writer.claim([claim])
            tried += standing.news
            if not standing.news and standing.owner == self._writer.owner:
                return await self._ask(question, key, image, digest, tried)
            if standing.owner and not self._is_final(tried):
                # Another process is asking: it will have answered, or died.
                await asyncio.sleep(LOOK_AGAIN_S)
                await asyncio.to_thread(book_the_dead, self._store)
                if not question.waiting:
                    return Reply(failure=Failure.TIMEOUT)
        return self._reply(tried)

    def _shut(self, question: _Question) -> Reply | None:
        """Why it shall not be asked about now; None where it may."""
        if not self._truths.get(question.key) and self._stand_in:
            self._tell("rehearsal", "REHEARSAL: an image of unknown truth came, about which a stand-in teacher cannot "
                                    "answer; people get such images.")
            return Reply(failure=Failure.REFUSAL)
        if self._pacer.paused_s >= question.within_s:
            return Reply(failure=Failure.RATE_LIMIT)
        if not self.budget.fits(self._requests.at_most(self._requests.worst_usd(b""), None)):
            return self._over_budget()
        if not self._breaker.admits(question):
            return Reply(failure=self._breaker.why)
        return None

    async def _ask(self, question: _Question, key: Key, seen: bytes, seen_hash: str, tried: list[Annotation]) -> Reply:
        """Try until there is an answer, or nobody waits for one any more. The claim is ours, and goes at the end."""
        if self._stand_in:
            self._stand_in.learn(seen_hash, question.key, self._truths[question.key])
        tries = Tries(f"{question.key[:32]}-0", most=self._spec.max_attempts,
                      most_unusable=self._spec.max_content_attempts)
        worst = self._requests.worst_usd(seen)
        failure, held = Failure.TIMEOUT, True
        try:
            while True:
                # The budget comes last: what only waits for its turn must not keep it from those whose turn it is.
                permit = await self._pacer.ready(self._usual_tokens)
                if not question.waiting or self._closing or not self._breaker.admits(question):
                    self._pacer.done(permit, tokens=0, refused=False, retry_after_s=None)
                    return Reply(failure=self._breaker.why or failure)
                reserved = self._requests.at_most(worst, tries.fault)
                if not self.budget.reserve(reserved):
                    self._pacer.done(permit, tokens=0, refused=False, retry_after_s=None)
                    return self._over_budget()
                question.sent = True
                outcome, cost_usd = await self._requests.send(self._client, tries, seen, reserved, permit)
                question.sent = False
                question.cost_usd += cost_usd
                failure = outcome.failure or failure
                last = tries.note(outcome)
                self._heard(question, outcome)
                if outcome.fatal:  # no fault of this item, about which nothing is stored
                    held = False
                    self._writer.release(key)
                    return Reply(failure=failure)
                if to_be_stored(outcome, cost_usd, last=last):
                    annotation = self._requests.annotation(key, seen_hash, outcome, cost_usd)
                    held = not last
                    await self._writer.keep(annotation, release=key if last else None)
                    tried.append(replace(annotation, attempt=len(tried)))
                if last:
                    return self._reply(tried)
                if outcome.failure and outcome.failure.transient and not outcome.retry_after_s:
                    await self._pacer.back_off(tries.count)
        finally:
            if held and tries.unusable:
                self._writer.keep(self._requests.annotation(key, seen_hash, cut_short(), 0.0), release=key)
            elif held:
                self._writer.release(key)

    def _read(self, keys: list[str]) -> list[Annotation]:
        found = self._store.read(annotator=self.annotator, prompt_hash=self._prompt.hash, items=keys, replies=False)
        return [a for a in found if a.pass_index == 0]

    def _shown(self, payload: bytes) -> tuple[bytes, str]:
        seen = shown(decode(payload, self._max_pixels), self._how)
        return seen, hashlib.sha256(seen).hexdigest()

    def _is_final(self, tried: Sequence[Annotation]) -> bool:
        """Whether asking again is for labelling jobs with labeler.retry_failed, if at all."""
        last = max(tried, key=lambda a: a.attempt, default=None)
        if last is None:
            return False
        if self._task.map_label(last.label):
            return True
        return not (self._spec.retry_failed or (last.failure and last.failure.transient))

    def _reply(self, tried: Sequence[Annotation]) -> Reply:
        """As a replay would have it, but for cost and time, which are those of this question."""
        (reply,) = replies_by(tried, self._confidence, self._task).values()
        return reply

    # What is learned of the teacher.

    def _heard(self, question: _Question, outcome: Outcome) -> None:
        failure = outcome.failure
        if outcome.fatal:
            self._fault(failure or Failure.BAD_REQUEST, outcome.fatal, for_long=True)
        elif failure in DOWN:
            self._fault(failure, outcome.why)
        elif failure not in (Failure.RATE_LIMIT, Failure.LOST):
            self._useless = self._useless + 1 if failure else 0
            if failure and self._useless >= USELESS_AFTER:
                self._fault(failure, f"{self._useless} answers in a row were of no use; {outcome.why}", for_long=True)
            elif question.waiting:  # in time for somebody
                if self._breaker.why:
                    say("The LLM answers again.")
                    self._said_at.pop("down", None)
                self._breaker.worked()

    def _fault(self, failure: Failure, why: str, *, for_long: bool = False) -> None:
        before = self._breaker.why
        self._breaker.failed(failure, for_long=for_long)
        if self._breaker.why and not before:
            self._tell("down", f"The LLM is of no help ({failure}: {why}). People get what the student doubts; the LLM "
                               "is tried again from time to time.")

    def _over_budget(self) -> Reply:
        self._tell("budget", f"serving.max_usd_per_hour={self.budget.cap_usd:g} is reached: people get what the "
                             "student doubts until the hour's bill has gone down. What other processes spend is not "
                             "counted.")
        return Reply(over_budget=True)

    def _tell(self, what: str, text: str) -> None:
        """Once, and again after an hour if it still is so."""
        now = self._clock()
        if now - self._said_at.get(what, -HOUR_S) >= HOUR_S:
            self._said_at[what] = now
            warn(text)

    def _write_again(self, error: Exception) -> None:
        """The store did not take what was paid for, and perhaps nothing will be asked that takes it along."""
        self._tell("store", f"An answer of the LLM could not be stored, and is tried again: {error}")
        if not self._writing_again or self._writing_again.done():
            self._writing_again = asyncio.create_task(self._until_written())

    async def _until_written(self) -> None:
        pause, longest = WRITE_AGAIN_S
        while not self._closing:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            try:
                await self._writer.claim([])
            except StoreError:
                continue
            self._said_at.pop("store", None)
            return
