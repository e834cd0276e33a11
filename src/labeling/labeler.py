"""Questions → annotations in the store: bounded concurrency, retries, a cost cap, and nothing paid for lost.

An answer is in the store before its question counts as done, so a run killed at any moment goes on from there; what is
being asked is claimed there too, so that no other process asks it as well. Knows nothing about what the labels are for.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from src.console import say, warn
from src.errors import FlywheelError, TeacherError
from src.labeling.budget import Budget
from src.labeling.client import Fault
from src.labeling.outcome import Outcome
from src.labeling.owner import is_dead
from src.labeling.pacing import Pacer, Permit
from src.labeling.plan import UNSEEN, Question, answers
from src.labeling.prompt import Prompt
from src.labeling.request import Asks, Requests, Tries, cut_short, to_be_stored
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.teacher import Teacher
from src.labeling.writer import Writer
from src.store import Claim, Key, Store
from src.task import Failure, Item, TaskSpec

GIVE_UP_AFTER = 20  # questions failed in a row: whatever ails them ails the next ones too
LONG_PAUSE_S = 30  # from here on, silence would look like a hang
UNREACHABLE_AFTER = 3  # tries without any answer at the start of a run: the address is wrong or nothing runs there
LOOK_AGAIN_S = 0.5  # between looks at what another process is asking
REMEMBERED = 1000  # items whose passes are compared as they come in
FAILED = "The labeler failed; what was answered is stored."
AHEAD_S = 0.1  # worth of questions that are claimed before a slot is free for them
PREPARED_S = 0.1  # of work on what is shown, before what is ready goes on

Show = Callable[[Item], tuple[bytes | str, str]]


class _Ready(NamedTuple):
    """A question with what is shown of it, the hash of that, and what it can cost at the most."""

    question: Question
    key: Key
    shown: bytes | str
    shown_hash: str
    worst: float


@dataclass
class Tally:
    """What happened in one run; costs in US dollars, time in seconds. `elsewhere` counts questions that another
    process answered meanwhile."""

    requests: int = 0
    answered: int = 0
    failed: int = 0
    elsewhere: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    seconds: float = 0.0
    pairs: int = 0
    agreeing: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def done(self) -> int:
        return self.answered + self.failed + self.elsewhere

    def __str__(self) -> str:
        rate = self.answered / self.seconds if self.seconds else 0.0
        agreement = f" · agreement {self.agreeing / self.pairs:.3f}" if self.pairs else ""
        failed = f" · {self.failed} failed" if self.failed else ""
        return f"{rate:.1f}/s{agreement} · ${self.cost_usd:.4f}{failed}"


class Labeler:
    """Asks one teacher. `show` gives what the teacher sees of an item, and its hash; `job` names who pays; `earlier`
    is one that asked this teacher before, and knows what it takes."""

    def __init__(self, *, task: TaskSpec, teacher: Teacher, annotator: str, prompt: Prompt, spec: LabelerSpec,
                 store: Store, show: Show, budget: Budget, seed: int, stop: Stop, job: str = "",
                 earlier: "Labeler | None" = None) -> None:
        self._task = task
        self._teacher = teacher
        self._annotator = annotator
        self._prompt = prompt
        self._spec = spec
        self._store = store
        self._show = show
        self._budget = budget
        self._stop = stop
        self._job = job
        self.pacer: Pacer = Pacer(
            backoff_s=spec.backoff_s, max_backoff_s=spec.max_backoff_s, seed=seed, sleep=stop.nap,
            requests_per_minute=spec.requests_per_minute, tokens_per_minute=spec.tokens_per_minute,
            concurrency=spec.concurrency, adaptive=spec.adaptive, earlier=earlier.pacer if earlier else None,
        )
        self._ahead: asyncio.Queue[_Ready | None] = asyncio.Queue()
        self._idle = spec.concurrency
        self._taken = asyncio.Event()
        for end in (self.pacer.release, self._taken.set):
            stop.when_stopped(end)
        self.tally = Tally()
        self._labels: OrderedDict[str, list[str]] = OrderedDict()
        self._deferred: list[Question] = []
        self._usual_tokens = 0.0
        self._heard = False
        self._told = False
        self._failed_in_a_row = 0
        self._requests = Requests(task=task, teacher=teacher, annotator=annotator, prompt=prompt, job=job,
                                  pacer=self.pacer, purse=budget, cut_off=lambda: stop.end(KeyboardInterrupt()))

    async def run(self, questions: Iterator[Question], client: Asks, writer: Writer, *, usual_tokens: float,
                  dearest_usd: float, update: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Ask everything, or stop early, once what was in flight has been stored; `stop` then says why.

        `dearest_usd` is the most that one question has cost so far, `usual_tokens` what one takes, both as known
        beforehand.
        """
        self._client, self._writer, self._update = client, writer, update
        self._usual_tokens = usual_tokens
        self._requests.dearest_usd = max(self._requests.dearest_usd, dearest_usd)
        self._began = time.monotonic() - self.tally.seconds
        writer.when_refused(self._refused)
        try:
            while True:
                workers = (self._work() for _ in range(self._spec.concurrency))
                results = await asyncio.gather(self._feed(questions), *workers, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                if not self._deferred or self._stop.why:
                    break
                questions = iter(await self._others())
        finally:
            while not self._ahead.empty():
                if unsent := self._ahead.get_nowait():
                    writer.release(unsent.key)
            await writer.drain()
        self.tally.seconds = time.monotonic() - self._began
        return self.tally

    async def _feed(self, questions: Iterator[Question]) -> None:
        """Claim what the workers ask next, some of it while they are still busy, or they would stand idle meanwhile.
        Not much: of a process that dies all that was claimed is booked, as nobody knows whether it was sent."""
        try:
            while not self._stop.why:
                self.tally.seconds = time.monotonic() - self._began
                per_second = self.tally.requests / (self.tally.seconds or 1.0)
                spare = 1 + min(self._spec.concurrency, int(AHEAD_S * per_second))
                room = self._idle + spare - self._ahead.qsize()
                if room <= 0:
                    self._taken.clear()
                    await self._taken.wait()
                elif few := await asyncio.to_thread(self._prepare, questions, room):
                    for ready in await self._claim(few):
                        self._ahead.put_nowait(ready)
                else:
                    return
        except FlywheelError as error:
            self._stop.end(error)
        except Exception:
            self._stop.end(TeacherError(FAILED))
            raise
        finally:
            for _ in range(self._spec.concurrency):
                self._ahead.put_nowait(None)

    async def _work(self) -> None:
        """One question after another, until there are no more."""
        while ready := await self._ahead.get():
            self._idle -= 1
            self._taken.set()
            try:
                await self._settle(ready)
            finally:
                self._idle += 1
            self.tally.seconds = time.monotonic() - self._began
            while self._writer.backlog > 4 * self._spec.concurrency and not self._stop.why:
                await asyncio.sleep(0.01)

    def _prepare(self, questions: Iterator[Question], most: int) -> list[_Ready]:
        """What comes next, encoded; less than `most` where that takes long. Runs in a thread beside the loop."""
        began = time.monotonic()
        found = []
        for question in questions:
            shown, shown_hash = self._show(question.item)
            key = Key(self._annotator, self._prompt.hash, question.item.key, question.pass_index)
            found.append(_Ready(question, key, shown, shown_hash, self._requests.worst_usd(shown)))
            if len(found) == most or time.monotonic() - began > PREPARED_S:
                break
        return found

    async def _others(self) -> list[Question]:
        """Questions that another process held, to be tried again: it may have answered them, or died."""
        deferred, self._deferred = self._deferred, []
        if not self._told:
            say(f"Another process is asking {len(deferred)} of these questions; waiting for its answers …")
        self._told = True
        await self._stop.nap(LOOK_AGAIN_S)
        # Not here: whoever holds the store would hold up every answer that is on its way.
        await asyncio.to_thread(book_the_dead, self._store)
        return deferred

    async def _settle(self, ready: _Ready) -> None:
        """Bring one question to its end: an answer, or the failure that remains when its tries are used up."""
        given_up = False
        try:
            given_up = not self._stop.why and await self._ask_until_settled(ready)
        except FlywheelError as error:
            self._stop.end(error)
        except Exception:
            self._stop.end(TeacherError(FAILED))
            raise
        if not given_up:
            self._writer.release(ready.key)

    async def _claim(self, wanted: Sequence[_Ready]) -> list[_Ready]:
        """Those that are ours to ask. Another process may hold one, or have answered it since the plan."""
        ours = []
        while wanted:
            standings = await self._writer.claim([
                Claim(ready.key, self._writer.owner, self._requests.ever(ready.worst),
                      self._task.name, self._task.version, self._job, ready.question.known) for ready in wanted])
            again = []
            for ready, standing in zip(wanted, standings, strict=True):
                if standing.news:
                    known = ready.question.known + len(standing.news)
                    last = standing.news[-1]
                    final = last.failure is None or not last.failure.transient
                    if any(answers(a, self._task) for a in standing.news) or (final and not standing.owner):
                        self.tally.elsewhere += 1
                        self._update(self.tally)
                    else:
                        again.append(ready._replace(question=replace(ready.question, known=known)))
                elif standing.owner == self._writer.owner:
                    ours.append(ready)
                else:
                    self._deferred.append(ready.question)
            wanted = again
        return ours

    async def _ask_until_settled(self, ready: _Ready) -> bool:
        """Try until there is an answer, or no more tries; returns whether the claim was given up on the way."""
        tries = Tries(ready.question.name, most=self._spec.max_attempts, most_unusable=self._spec.max_content_attempts)
        last = False
        try:
            while not last:
                reserved = await self._afford(ready.worst, tries.fault)
                if reserved is None:
                    break
                permit = await self.pacer.ready(self._usual_tokens)
                if self._stop.why:
                    self._requests.give_back(reserved, permit)
                    break
                outcome, cost_usd = await self._ask(tries, ready.shown, reserved, permit)
                failure = outcome.failure
                last = tries.note(outcome)
                if outcome.retry_after_s and failure and failure.transient and outcome.retry_after_s >= LONG_PAUSE_S:
                    warn(f"The teacher asks for a pause of {outcome.retry_after_s:.0f} s (rate limit). "
                         "Ctrl-C keeps what was answered.")
                ends = self._must_stop(outcome) or last
                if to_be_stored(outcome, cost_usd, last=last):
                    stored = self._keep(ready, outcome, cost_usd, ends=ends)
                    if ends:
                        return True
                    # The claim covers one request: the next one goes out when the last is in the books.
                    await self._stop.until(stored)
                elif ends:
                    self._count(ready.question, outcome)
                    return False
                if failure and failure.transient and not outcome.retry_after_s:
                    await self.pacer.back_off(tries.count)
                if self._stop.why:
                    break
        except asyncio.CancelledError:
            # A second Ctrl-C. Whoever cancelled waits for nothing but this end.
            self._stop.end(KeyboardInterrupt())
        if tries.unusable:
            self._keep(ready, cut_short(), 0.0, ends=True)
            return True
        return False

    async def _afford(self, worst: float, fault: Fault | None) -> float | None:
        """Reserve one try's worst case and return it, or None where nothing more shall be asked."""
        while not self._stop.why:
            reserved = self._requests.at_most(worst, fault)
            if self._budget.reserve(reserved):
                return reserved
            if self._budget.in_flight:
                # What is in flight may cost less than its worst case.
                await self._budget.change()
                continue
            self._stop.end(TeacherError(
                f"labeler.max_cost_usd={self._budget.cap_usd:g} is reached: ${self._budget.spent_usd:.4f} spent, and "
                f"one more question can cost ${reserved:.4f}. Every answer is kept: raise the cap to go on from here, "
                "or lower labeler.max_items to make do with what there is."
            ))
        return None

    async def _ask(self, tries: Tries, shown: bytes | str, reserved: float, permit: Permit) -> tuple[Outcome, float]:
        outcome, cost_usd = await self._requests.send(self._client, tries, shown, reserved, permit)
        self.tally.requests += 1
        for name in (outcome.failure.value if outcome.failure else "answered", *outcome.flaws):
            self.tally.outcomes[name] += 1
        self._heard = self._heard or outcome.failure not in UNSEEN
        return outcome, cost_usd

    def _must_stop(self, outcome: Outcome) -> bool:
        """Note a fault that further questions would meet as well."""
        if outcome.fatal:
            self._stop.end(TeacherError(outcome.fatal))
        elif not self._heard and self.tally.requests >= UNREACHABLE_AFTER:
            self._stop.end(TeacherError(
                f"Nothing answers at {self._teacher.base_url} ({outcome.why}). Start the server, or check "
                "teacher.base_url and the network."
            ))
        return self._stop.why is not None and (outcome.fatal is not None or not self._heard)

    def _keep(self, ready: _Ready, outcome: Outcome, cost_usd: float, *, ends: bool) -> asyncio.Future[None]:
        """Hand an annotation to the store; it counts, in money and in progress, once it is there. With the question's
        end goes its claim."""
        annotation = self._requests.annotation(ready.key, ready.shown_hash, outcome, cost_usd)
        stored = self._writer.keep(annotation, release=ready.key if ends else None)

        def on_disk(done: asyncio.Future[None]) -> None:
            if done.cancelled():
                return
            self.tally.cost_usd += cost_usd
            if ends and outcome.failure != Failure.LOST:
                self._count(ready.question, outcome)

        stored.add_done_callback(on_disk)
        return stored

    def _refused(self, error: Exception) -> None:
        """The store does not take what was paid for: buy no more of it."""
        self._stop.end(error if isinstance(error, FlywheelError) else
                       TeacherError(f"The labeler failed to store an answer ({error})."))

    def _count(self, question: Question, outcome: Outcome) -> None:
        label = self._task.map_label(outcome.label)
        if label is None:
            self.tally.failed += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER and outcome.failure and not self._teacher.answers:
                self._stop.end(TeacherError(
                    f"{GIVE_UP_AFTER} questions in a row failed, the last with {outcome.failure.value}: "
                    f"{outcome.why or 'no reason given'}. Mend that and run again, with labeler.retry_failed=true; "
                    "what was answered is kept."
                ))
        else:
            self._failed_in_a_row = 0
            self.tally.answered += 1
            others = self._labels.setdefault(question.item.key, [])
            self.tally.pairs += len(others)
            self.tally.agreeing += others.count(label)
            others.append(label)
            if len(self._labels) > REMEMBERED:
                self._labels.popitem(last=False)
        self._update(self.tally)


def book_the_dead(store: Store) -> None:
    """Questions that were in flight when their process died are booked at their worst case, and may be asked again."""
    lost = store.bury(is_dead)
    if lost:
        cost = sum(a.cost_usd for a in lost)
        say(f"A labelling process died with {len(lost)} question(s) in flight: booked as lost, at their worst case of "
            f"${cost:.4f} together, and asked again.")
