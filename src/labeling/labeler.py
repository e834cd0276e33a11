"""Questions → annotations in the store: bounded concurrency, retries, a cost cap, and nothing paid for lost.

An answer is in the store before its question counts as done, so a run killed at any moment goes on from there; what is
being asked is claimed there too, so that no other process asks it as well. Knows nothing about what the labels are for.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from src.console import say, warn
from src.errors import FlywheelError, TeacherError
from src.labeling.budget import Budget
from src.labeling.client import Fault
from src.labeling.outcome import Outcome
from src.labeling.owner import is_dead
from src.labeling.pacing import Pacer, Permit
from src.labeling.plan import UNSEEN, Question, again_usd, answers, worst_usd
from src.labeling.prompt import Prompt
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.teacher import Teacher
from src.labeling.writer import Writer
from src.store import Claim, Key, Store
from src.task import Annotation, Failure, Item, TaskSpec

GIVE_UP_AFTER = 20  # questions failed in a row: whatever ails them ails the next ones too
UNBILLED = (Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.BAD_REQUEST)  # turned away before any work was done
LONG_PAUSE_S = 30  # from here on, silence would look like a hang
UNREACHABLE_AFTER = 3  # tries without any answer at the start of a run: the address is wrong or nothing runs there
LOOK_AGAIN_S = 0.5  # between looks at what another process is asking
REMEMBERED = 1000  # items whose passes are compared as they come in

Show = Callable[[Item], tuple[bytes | str, str]]


class Asks(Protocol):
    """Who answers: a client of a real endpoint, or what stands in its place."""

    async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome: ...


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
    """Asks one teacher. `show` gives what the teacher sees of an item, and its hash; `job` names who pays."""

    def __init__(self, *, task: TaskSpec, teacher: Teacher, annotator: str, prompt: Prompt, spec: LabelerSpec,
                 store: Store, show: Show, budget: Budget, seed: int, stop: Stop, job: str = "") -> None:
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
        self._pacer = Pacer(
            backoff_s=spec.backoff_s, max_backoff_s=spec.max_backoff_s, seed=seed, sleep=stop.nap,
            requests_per_minute=spec.requests_per_minute, tokens_per_minute=spec.tokens_per_minute,
            concurrency=spec.concurrency, adaptive=spec.adaptive,
        )
        stop.when_stopped(self._pacer.release)
        self.tally = Tally()
        self._labels: OrderedDict[str, list[str]] = OrderedDict()
        self._deferred: list[Question] = []
        self._dearest_usd = 0.0
        self._usual_tokens = 0.0
        self._heard = False
        self._told = False
        self._failed_in_a_row = 0
        self._again_usd = again_usd(teacher, task)

    async def run(self, questions: Iterator[Question], client: Asks, writer: Writer, *, usual_tokens: float,
                  dearest_usd: float, update: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Ask everything, or stop early, once what was in flight has been stored; `stop` then says why.

        `dearest_usd` is the most that one question has cost so far, `usual_tokens` what one takes, both as known
        beforehand.
        """
        started = time.monotonic()
        self._client, self._writer, self._update = client, writer, update
        self._usual_tokens = usual_tokens
        self._dearest_usd = max(self._dearest_usd, dearest_usd)
        before = self.tally.seconds
        writer.when_refused(self._refused)

        async def work() -> None:
            for question in questions:
                if self._stop.why:
                    return
                await self._settle(question)
                self.tally.seconds = before + time.monotonic() - started
                while writer.backlog > 4 * self._spec.concurrency and not self._stop.why:
                    await asyncio.sleep(0.01)

        try:
            while True:
                results = await asyncio.gather(*(work() for _ in range(self._spec.concurrency)), return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                if not self._deferred or self._stop.why:
                    break
                questions = iter(await self._others())
        finally:
            await writer.drain()
        self.tally.seconds = before + time.monotonic() - started
        return self.tally

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

    async def _settle(self, question: Question) -> None:
        """Bring one question to its end: an answer, or the failure that remains when its tries are used up."""
        key = Key(self._annotator, self._prompt.hash, question.item.key, question.pass_index)
        claimed = False
        try:
            shown, shown_hash = self._show(question.item)
            worst = worst_usd(shown, self._teacher, self._prompt)
            claimed = await self._claim(question, key, worst)
            if claimed:
                claimed = not await self._ask_until_settled(question, key, shown, shown_hash, worst)
        except FlywheelError as error:
            self._stop.end(error)
        except Exception:
            self._stop.end(TeacherError("The labeler failed; what was answered is stored."))
            raise
        if claimed:
            self._writer.release(key)

    async def _claim(self, question: Question, key: Key, worst: float) -> bool:
        """Whether the question is ours to ask. Another process may hold it, or have answered it since the plan."""
        known = question.known
        while True:
            standing = await self._writer.claim(Claim(
                key, self._writer.owner, max(worst, self._dearest_usd) + self._again_usd, self._task.name,
                self._task.version, self._job, known))
            if not standing.news:
                break
            known += len(standing.news)
            last = standing.news[-1]
            final = last.failure is None or not last.failure.transient
            if any(answers(a, self._task) for a in standing.news) or (final and not standing.owner):
                self.tally.elsewhere += 1
                self._update(self.tally)
                return False
        if standing.owner != self._writer.owner:
            self._deferred.append(replace(question, known=known))
            return False
        return True

    async def _ask_until_settled(self, question: Question, key: Key, shown: bytes | str, shown_hash: str,
                                 worst: float) -> bool:
        """Try until there is an answer, or no more tries; returns whether the claim was given up on the way."""
        content_tries = 0
        fault: Fault | None = None
        try:
            for tries in range(1, self._spec.max_attempts + 1):
                permit = await self._pacer.ready(self._usual_tokens)
                reserved = await self._afford(worst, fault)
                if reserved is None:
                    self._pacer.done(permit, tokens=0, refused=False, retry_after_s=None)
                    break
                # An unusable answer asked for again is another question to a server that replays by name.
                name = f"{question.name}-{content_tries}" if content_tries else question.name
                outcome = await self._ask(name, shown, fault, reserved, permit)
                failure = outcome.failure
                content_tries += failure is not None and not failure.transient
                last = tries == self._spec.max_attempts or content_tries == self._spec.max_content_attempts
                last = last or failure in (None, Failure.BAD_REQUEST, Failure.LOST)
                fault = Fault(_content(outcome), outcome.fault) if outcome.fault else None
                if outcome.retry_after_s and failure and failure.transient and outcome.retry_after_s >= LONG_PAUSE_S:
                    warn(f"The teacher asks for a pause of {outcome.retry_after_s:.0f} s (rate limit). "
                         "Ctrl-C keeps what was answered.")
                ends = self._must_stop(outcome) or last
                # A stored failure is one that was paid for, judged final, or the question's last; what is wrong with
                # the key or the address is no fault of this item.
                if not outcome.fatal and (failure is None or not failure.transient or last or outcome.cost_usd):
                    annotation = self._annotation(question, outcome, shown_hash)
                    stored = self._keep(annotation, key if ends else None, question if ends else None, outcome)
                    if ends:
                        return True
                    # The claim covers one request: the next one goes out when the last is in the books.
                    await self._stop.until(stored)
                elif ends:
                    self._count(question, outcome)
                    return False
                if failure and failure.transient and not outcome.retry_after_s:
                    await self._pacer.back_off(tries)
                if self._stop.why:
                    break
        except asyncio.CancelledError:
            # A second Ctrl-C. Whoever cancelled waits for nothing but this end.
            self._stop.end(KeyboardInterrupt())
        if content_tries:
            # Its last word is an unusable answer, but not for good: the next run shall ask once more.
            outcome = Outcome(failure=Failure.LOST, cost_usd=0.0, why="the run ended before it was asked once more")
            self._keep(self._annotation(question, outcome, shown_hash), key, None, outcome)
            return True
        return False

    async def _afford(self, worst: float, fault: Fault | None) -> float | None:
        """Reserve one try's worst case and return it, or None where nothing more shall be asked."""
        while not self._stop.why:
            reserved = max(worst, self._dearest_usd) + (self._again_usd if fault else 0.0)
            if self._budget.reserve(reserved):
                return reserved
            if self._budget.in_flight:
                # What is in flight may cost less than its worst case.
                await self._budget.change()
                continue
            self._stop.end(TeacherError(
                f"labeler.max_cost_usd={self._budget.cap_usd:g} is reached: ${self._budget.spent_usd:.4f} spent, and "
                f"one more question can cost ${reserved:.4f}. Every answer is kept; raise the cap to go on from here."
            ))
        return None

    async def _ask(self, name: str, shown: bytes | str, fault: Fault | None, reserved: float,
                   permit: Permit) -> Outcome:
        cost: float | None = None
        outcome = Outcome(failure=Failure.CONNECTION)
        try:
            outcome = await self._client.ask(shown, name, fault)
            if outcome.cost_usd is not None:
                cost = outcome.cost_usd
                # The provider's bill is right where a price table is not.
                self._dearest_usd = max(self._dearest_usd, cost - (self._again_usd if fault else 0.0))
            elif outcome.tokens_in:
                cost = self._teacher.cost(outcome.tokens_in, outcome.tokens_out)
            elif outcome.failure in UNBILLED:
                cost = 0.0
        except asyncio.CancelledError:
            # Not passed on: it may be on the bill, so its booking comes first.
            self._stop.end(KeyboardInterrupt())
            outcome = Outcome(failure=Failure.LOST, why="cut off before it was answered; booked at its worst case")
        finally:
            # A request whose bill we never see may have cost its worst case, in the books as well as for the cap.
            cost = reserved if cost is None else cost
            self._budget.settle(reserved, cost)
            tokens = outcome.tokens_in + outcome.tokens_out
            refused = outcome.failure in (Failure.RATE_LIMIT, Failure.OVERLOADED)
            self._pacer.done(permit, tokens=tokens or None, refused=refused,
                             retry_after_s=outcome.retry_after_s if outcome.failure else None)
        self.tally.requests += 1
        self.tally.outcomes.update([outcome.failure.value if outcome.failure else "answered", *outcome.flaws])
        self._heard = self._heard or outcome.failure not in UNSEEN
        return replace(outcome, cost_usd=cost)

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

    def _keep(self, annotation: Annotation, release: Key | None, question: Question | None, outcome: Outcome
              ) -> asyncio.Future[None]:
        """Hand an annotation to the store; it counts, in money and in progress, once it is there."""
        stored = self._writer.keep(annotation, release=release)

        def on_disk(done: asyncio.Future[None]) -> None:
            if done.cancelled():
                return
            self.tally.cost_usd += annotation.cost_usd
            if question and outcome.failure != Failure.LOST:
                self._count(question, outcome)

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

    def _annotation(self, question: Question, outcome: Outcome, shown_hash: str) -> Annotation:
        return Annotation(
            item=question.item.key, annotator=self._annotator, prompt_hash=self._prompt.hash, task=self._task.name,
            pass_index=question.pass_index, label=outcome.label, failure=outcome.failure,
            confidence=outcome.confidence, why=outcome.why, cost_usd=outcome.cost_usd or 0.0,
            tokens_in=outcome.tokens_in, tokens_out=outcome.tokens_out, latency_s=outcome.latency_s,
            model=outcome.model, provider=outcome.provider, shown_hash=shown_hash, reply=outcome.reply,
            task_version=self._task.version, job=self._job,
        )


def book_the_dead(store: Store) -> None:
    """Questions that were in flight when their process died are booked at their worst case, and may be asked again."""
    lost = store.bury(is_dead)
    if lost:
        cost = sum(a.cost_usd for a in lost)
        say(f"A labelling process died with {len(lost)} question(s) in flight: booked as lost, at their worst case of "
            f"${cost:.4f} together, and asked again.")


def _content(outcome: Outcome) -> str:
    """What the teacher said, without the envelope it came in."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(outcome.reply)["choices"][0]["message"]["content"])
    return outcome.why
