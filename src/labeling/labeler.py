"""Questions → annotations in the store: bounded concurrency, retries, a cost cap, and nothing paid for lost.

An answer is in the store before its question counts as done, so a run killed at any moment goes on from there. Knows
nothing about what the labels are for.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

from src.console import Update, warn
from src.errors import FlywheelError, TeacherError
from src.labeling.budget import Budget
from src.labeling.client import Client
from src.labeling.outcome import Outcome
from src.labeling.pacing import Pacer
from src.labeling.plan import Plan, Question
from src.labeling.prompt import Prompt
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.store import Store
from src.task import Annotation, Failure, Item, TaskSpec

GIVE_UP_AFTER = 20  # questions failed in a row: whatever ails them ails the next ones too
UNBILLED = (Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.BAD_REQUEST)  # turned away before any work was done
LONG_PAUSE_S = 30  # from here on, silence would look like a hang
UNREACHABLE_AFTER = 3  # tries without any answer at the start of a run: the address is wrong or nothing runs there


@dataclass
class Tally:
    """What happened in one run; costs in US dollars, time in seconds."""

    requests: int = 0
    answered: int = 0
    failed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    seconds: float = 0.0
    pairs: int = 0
    agreeing: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        rate = self.answered / self.seconds if self.seconds else 0.0
        agreement = f" · agreement {self.agreeing / self.pairs:.3f}" if self.pairs else ""
        failed = f" · {self.failed} failed" if self.failed else ""
        return f"{rate:.1f}/s{agreement} · ${self.cost_usd:.4f}{failed}"


class Labeler:
    """Asks the questions of one plan. `show` gives the bytes that the teacher sees of an item, and their hash."""

    def __init__(self, *, task: TaskSpec, teacher: Teacher, annotator: str, prompt: Prompt, spec: LabelerSpec,
                 store: Store, show: Callable[[Item], tuple[bytes, str]], budget: Budget, seed: int) -> None:
        self._task = task
        self._teacher = teacher
        self._annotator = annotator
        self._prompt = prompt
        self._spec = spec
        self._store = store
        self._show = show
        self._budget = budget
        self._pacer = Pacer(backoff_s=spec.backoff_s, max_backoff_s=spec.max_backoff_s, seed=seed, sleep=self._nap)
        self._tally = Tally()
        self._labels: dict[str, dict[int, str]] = defaultdict(dict)
        self._stop: FlywheelError | KeyboardInterrupt | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._worst_usd = 0.0
        self._heard = False
        self._failed_in_a_row = 0
        self._waiting: list[tuple[Annotation, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def run(self, plan: Plan, update: Update) -> Tally:
        """Ask everything, or stop early and raise why, once what was in flight has been stored.

        Raises TeacherError (key, model, address, credit, cost cap), StoreError, or KeyboardInterrupt on SIGINT and
        SIGTERM; a second signal does not wait for what is in flight.
        """
        started = time.monotonic()
        questions = iter(plan.questions)
        self._worst_usd = plan.worst_usd
        total = len(plan.questions)

        async def work() -> None:
            for question in questions:
                if self._stop:
                    return
                await self._settle(question)
                self._tally.seconds = time.monotonic() - started
                done = self._tally.answered + self._tally.failed
                left = (total - done) * self._tally.seconds / done if done else 0.0
                update(done, f"{self._tally} · {left:.0f} s left")

        with self._signals():
            try:
                width = self._spec.concurrency
                async with Client(self._teacher, self._prompt, self._task, connections=width) as self._client:
                    workers = (work() for _ in range(width))
                    results = await asyncio.gather(*workers, return_exceptions=True)
            except asyncio.CancelledError:
                if isinstance(self._stop, KeyboardInterrupt):
                    raise self._stop from None
                raise
            finally:
                if self._writing:
                    await self._writing
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._tally.seconds = time.monotonic() - started
        if self._stop:
            raise self._stop
        return self._tally

    async def _settle(self, question: Question) -> None:
        """Bring one question to its end: an answer, or the failure that remains when its tries are used up."""
        try:
            image, shown_hash = self._show(question.item)
            content_tries = 0
            for tries in range(1, self._spec.max_attempts + 1):
                await self._pacer.ready()
                worst_usd = await self._afford()
                if worst_usd is None:
                    return
                # An unusable answer asked for again is another question to a server that replays by name.
                name = f"{question.name}-{content_tries}" if content_tries else question.name
                outcome = await self._ask(name, image, worst_usd)
                failure = outcome.failure
                content_tries += failure is not None and not failure.transient
                last = tries == self._spec.max_attempts or content_tries == self._spec.max_content_attempts
                last = last or failure == Failure.BAD_REQUEST
                if outcome.retry_after_s and failure and failure.transient:
                    self._pacer.pause(outcome.retry_after_s)
                    if outcome.retry_after_s >= LONG_PAUSE_S:
                        warn(f"The teacher asks for a pause of {outcome.retry_after_s:.0f} s (rate limit). "
                             "Ctrl-C keeps what was answered.")
                # A stored failure is one that was paid for, judged final, or the question's last; what is wrong with
                # the key or the address is no fault of this item.
                if not outcome.fatal and (failure is None or not failure.transient or last or outcome.cost_usd):
                    await self._keep(self._annotation(question, outcome, shown_hash))
                if self._must_stop(outcome) or failure is None or last:
                    self._count(question, outcome)
                    return
                if failure.transient and not outcome.retry_after_s:
                    await self._pacer.back_off(tries)
        except FlywheelError as error:
            self._end(error)
        except Exception:
            self._end(TeacherError("The labeler failed; what was answered is stored."))
            raise

    def _end(self, why: FlywheelError | KeyboardInterrupt) -> None:
        """Ask nothing more; the first reason is the one that is told."""
        self._stop = self._stop or why
        self._stopping.set()
        self._pacer.release()

    async def _nap(self, seconds: float) -> None:
        """Sleep, but not through the end of the run: a server may ask for minutes of patience."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _afford(self) -> float | None:
        """Reserve one question's worst case and return it, or None where nothing more shall be asked."""
        while not self._stop:
            worst_usd = self._worst_usd
            if self._budget.reserve(worst_usd):
                return worst_usd
            if self._budget.in_flight:
                # What is in flight may cost less than its worst case.
                self._settled.clear()
                await self._settled.wait()
                continue
            self._end(TeacherError(
                f"labeler.max_cost_usd={self._budget.cap_usd:g} is reached: ${self._budget.spent_usd:.4f} spent, and "
                f"one more question can cost ${worst_usd:.4f}. Every answer is kept; raise the cap to go on from here."
            ))
        return None

    async def _ask(self, name: str, image: bytes, worst_usd: float) -> Outcome:
        # A request whose bill we never see may have cost its worst case, and the cap must hold.
        charged = worst_usd
        try:
            outcome = await self._client.ask(image, name)
            billed = outcome.cost_usd is not None or outcome.tokens_in > 0 or outcome.failure in UNBILLED
            if outcome.cost_usd is None:
                outcome = replace(outcome, cost_usd=self._teacher.cost(outcome.tokens_in, outcome.tokens_out))
            cost = outcome.cost_usd or 0.0
            charged = cost if billed else worst_usd
            self._tally.cost_usd += cost
            # The provider's bill is right where a price table is not.
            self._worst_usd = max(self._worst_usd, cost)
        finally:
            self._budget.settle(worst_usd, charged)
            self._settled.set()
        self._tally.requests += 1
        self._tally.outcomes[outcome.failure.value if outcome.failure else "answered"] += 1
        self._heard = self._heard or outcome.failure not in (Failure.CONNECTION, Failure.TIMEOUT)
        return outcome

    def _must_stop(self, outcome: Outcome) -> bool:
        """Note a fault that further questions would meet as well."""
        if outcome.fatal:
            self._end(TeacherError(outcome.fatal))
        elif not self._heard and self._tally.requests >= UNREACHABLE_AFTER:
            self._end(TeacherError(
                f"Nothing answers at {self._teacher.base_url} ({outcome.why}). Start the server, or check "
                "teacher.base_url and the network."
            ))
        return self._stop is not None and (outcome.fatal is not None or not self._heard)

    def _count(self, question: Question, outcome: Outcome) -> None:
        label = self._task.map_label(outcome.label)
        if label is None:
            self._tally.failed += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER and outcome.failure:
                self._end(TeacherError(
                    f"{GIVE_UP_AFTER} questions in a row failed, the last with {outcome.failure.value}: "
                    f"{outcome.why or 'no reason given'}. Mend that and run again, with labeler.retry_failed=true; "
                    "what was answered is kept."
                ))
            return
        self._failed_in_a_row = 0
        self._tally.answered += 1
        for other in self._labels[question.item.key].values():
            self._tally.pairs += 1
            self._tally.agreeing += other == label
        self._labels[question.item.key][question.pass_index] = label

    def _annotation(self, question: Question, outcome: Outcome, shown_hash: str) -> Annotation:
        return Annotation(
            item=question.item.key, annotator=self._annotator, prompt_hash=self._prompt.hash, task=self._task.name,
            pass_index=question.pass_index, label=outcome.label, failure=outcome.failure,
            confidence=outcome.confidence, why=outcome.why, cost_usd=outcome.cost_usd or 0.0,
            tokens_in=outcome.tokens_in, tokens_out=outcome.tokens_out, latency_s=outcome.latency_s,
            model=outcome.model, provider=outcome.provider, shown_hash=shown_hash, reply=outcome.reply,
        )

    async def _keep(self, annotation: Annotation) -> None:
        """Return when the annotation is on disk. Those that arrive during a write share the next one."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((annotation, stored))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await stored

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._store.add, [annotation for annotation, _ in batch])
            except Exception as error:
                for _, stored in batch:
                    if not stored.done():
                        stored.set_exception(error)
            else:
                for _, stored in batch:
                    # Whoever waited may have been cancelled by a second Ctrl-C; the answer is stored all the same.
                    if not stored.done():
                        stored.set_result(None)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal lets what is in flight arrive, for it is paid for; the second ends at once."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        installed = []

        def interrupt() -> None:
            if self._stop and task:
                task.cancel()
            self._end(KeyboardInterrupt())

        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in another thread than the main one, and not on Windows: there Ctrl-C ends at once.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                before = signal.getsignal(number)
                loop.add_signal_handler(number, interrupt)
                installed.append((number, before))
        try:
            yield
        finally:
            for number, before in installed:
                loop.remove_signal_handler(number)
                signal.signal(number, before)
