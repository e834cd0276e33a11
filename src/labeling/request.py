"""One question's tries: what each may cost, what came of it, and whether there shall be another.

Shared by the labeler, which asks about many items until it must stop, and by a server, which asks about one at a time
and never stops. Knows nothing about where questions come from, who waits for them, or when a run ends.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Protocol

from src.labeling.client import Fault
from src.labeling.outcome import Outcome
from src.labeling.pacing import Pacer, Permit
from src.labeling.plan import again_usd, worst_usd
from src.labeling.prompt import Prompt
from src.labeling.teacher import Teacher
from src.store import Key
from src.task import Annotation, Failure, TaskSpec


class Asks(Protocol):
    """Who answers: a client of a real endpoint, or what stands in its place."""

    async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome: ...


class Purse(Protocol):
    """Where a request's worst case is reserved before it goes out, and settled by the bill."""

    def reserve(self, worst_usd: float) -> bool: ...
    def settle(self, worst_usd: float, cost_usd: float) -> None: ...


class Tries:
    """How often one question was tried, at most `most` times, `most_unusable` of these with an unusable answer.

    `fault` is what was wrong with the last answer, to be shown to its author, and `unusable` how many were.
    """

    def __init__(self, question: str, *, most: int, most_unusable: int) -> None:
        self._question = question
        self._most, self._most_unusable = most, most_unusable
        self.count, self.unusable = 0, 0
        self.fault: Fault | None = None

    @property
    def name(self) -> str:
        """An unusable answer asked for again is another question to a server that replays by name."""
        return f"{self._question}-{self.unusable}" if self.unusable else self._question

    def note(self, outcome: Outcome) -> bool:
        """Count a try; returns whether it was the last."""
        failure = outcome.failure
        self.count += 1
        self.unusable += failure is not None and not failure.transient
        self.fault = Fault(_content(outcome), outcome.fault) if failure and outcome.fault else None
        return (failure in (None, Failure.BAD_REQUEST, Failure.LOST) or self.count == self._most
                or self.unusable == self._most_unusable)


class Requests:
    """Sends requests to one teacher and books them, in the name of `annotator`; `job` names who pays.

    `dearest_usd` is the most that one cost so far, an unusable answer shown again not counted. `cut_off` is called
    where a request was cancelled, which is not passed on: it may be on the bill, so its booking comes first.
    """

    def __init__(self, *, task: TaskSpec, teacher: Teacher, annotator: str, prompt: Prompt, job: str, pacer: Pacer,
                 purse: Purse, cut_off: Callable[[], None]) -> None:
        self._task, self._teacher, self._annotator, self._prompt, self._job = task, teacher, annotator, prompt, job
        self._pacer, self._purse, self._cut_off = pacer, purse, cut_off
        self._again_usd = again_usd(teacher, task)
        self.worst_usd = worst_usd(teacher, prompt)
        self.dearest_usd = 0.0

    def at_most(self, worst: float, fault: Fault | None) -> float:
        """What a try can cost whose item alone can cost `worst`."""
        return max(worst, self.dearest_usd) + (self._again_usd if fault else 0.0)

    def ever(self, worst: float) -> float:
        """What any of its tries can cost."""
        return max(worst, self.dearest_usd) + self._again_usd

    async def send(self, client: Asks, tries: Tries, shown: bytes | str, reserved: float, permit: Permit
                   ) -> tuple[Outcome, float]:
        """One request: what came of it, and what it cost in US dollars, or may have cost."""
        cost: float | None = None
        outcome = Outcome(failure=Failure.CONNECTION)
        try:
            outcome = await client.ask(shown, tries.name, tries.fault)
            if outcome.cost_usd is not None:
                cost = outcome.cost_usd
                # The provider's bill is right where a price table is not.
                self.dearest_usd = max(self.dearest_usd, cost - (self._again_usd if tries.fault else 0.0))
            elif outcome.tokens_in:
                cost = self._teacher.cost(outcome.tokens_in, outcome.tokens_out)
            elif _turned_away(outcome):
                cost = 0.0
        except asyncio.CancelledError:
            self._cut_off()
            outcome = Outcome(failure=Failure.LOST, why="cut off before it was answered; booked at its worst case")
        finally:
            # A request whose bill we never see may have cost its worst case, in the books as well as for the cap.
            cost = reserved if cost is None else cost
            self._purse.settle(reserved, cost)
            tokens = 0 if _turned_away(outcome) else outcome.tokens_in + outcome.tokens_out or None
            self._pacer.done(permit, tokens=tokens, refused=_refused(outcome),
                             retry_after_s=outcome.retry_after_s if outcome.failure else None)
        return outcome, cost

    def give_back(self, reserved: float, permit: Permit) -> None:
        """Settle a request that was never sent."""
        self._purse.settle(reserved, 0.0)
        self._pacer.done(permit, tokens=0, refused=False, retry_after_s=None)

    def annotation(self, key: Key, shown_hash: str, outcome: Outcome, cost_usd: float) -> Annotation:
        """As it goes into the store."""
        return Annotation(
            item=key.item, annotator=self._annotator, prompt_hash=self._prompt.hash, task=self._task.name,
            pass_index=key.pass_index, label=outcome.label, failure=outcome.failure,
            confidence=outcome.confidence, why=outcome.why, cost_usd=cost_usd, tokens_in=outcome.tokens_in,
            tokens_out=outcome.tokens_out, latency_s=outcome.latency_s, model=outcome.model,
            provider=outcome.provider, shown_hash=shown_hash, reply=outcome.reply,
            task_version=self._task.version, job=self._job,
        )


def to_be_stored(outcome: Outcome, cost_usd: float, *, last: bool) -> bool:
    """A stored failure is one that was paid for, judged final, or the question's last; what is wrong with the key or
    the address is no fault of this item."""
    failure = outcome.failure
    return not outcome.fatal and (failure is None or not failure.transient or last or cost_usd > 0)


def cut_short() -> Outcome:
    """The last word on a question whose answers were unusable so far: not for good, the next run asks once more."""
    return Outcome(failure=Failure.LOST, why="the run ended before it was asked once more")


def _turned_away(outcome: Outcome) -> bool:
    """Before any work was done, so that nothing was used and nothing can be billed."""
    return outcome.failure in (Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.BAD_REQUEST) and not outcome.started


def _refused(outcome: Outcome) -> bool:
    """Whether the server turned this away for its rate or its load. A 5xx that names no time to wait is a fault, and
    comes as often however slowly one asks."""
    overloaded = outcome.failure == Failure.OVERLOADED and outcome.retry_after_s is not None
    return outcome.failure == Failure.RATE_LIMIT or overloaded


def _content(outcome: Outcome) -> str:
    """What the teacher said, without the envelope it came in."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(outcome.reply)["choices"][0]["message"]["content"])
    return outcome.why
