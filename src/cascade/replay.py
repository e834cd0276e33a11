"""What a policy would have done with items whose answers are known, and what that is worth.

Pure: cases in, decisions and figures out; a replay asks nobody. Where it would have to ask about an item whose reply is
unknown, the escalation stays open, is counted as `undecided`, and every figure that depends on it is None: `asked`
takes the cases that leave nothing open. Right is what equals the truth; cases without truth count for rates, costs and
latency, and not for accuracy. Items are taken to be independent, as everywhere in `metrics`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.cascade.policy import (
    UNKNOWN,
    Decision,
    Escalation,
    EscalationReason,
    HumanReason,
    Opinion,
    Policy,
    Reply,
    Route,
    first,
    then,
)
from src.metrics import Floats, Interval, proportion
from src.task import Annotation, Failure, TaskSpec

STUDENT_ALONE = Policy(threshold=0.0, teacher_confidence=0.0, audit_share=0.0)
LLM_ALONE = Policy(threshold=None, teacher_confidence=0.0, audit_share=0.0)
CURVE_POINTS = 100
MILLION = 1_000_000

WAYS = tuple(f"{reason}: {way}" for reason in EscalationReason for way in (Route.TEACHER, *HumanReason, UNKNOWN))

Outcome = Decision | Escalation  # an escalation is one whose reply is unknown


@dataclass(frozen=True, slots=True)
class Case:
    """An item, by its `key`: what the student makes of it, what came of asking the LLM (None where nobody knows), and
    the `truth`, a class or None."""

    key: str
    student: Opinion
    truth: str | None = None
    reply: Reply | None = None


@dataclass(frozen=True)
class Worth:
    """What became of `n` cases, of which `judged` have a truth and `undecided` an unknown reply that was needed.

    Rates are shares of all cases, `coverage` that of the student's own answers, audits taken off. `accuracy` is of the
    automatic answers, the student's and the LLM's together; `accuracy_with_people` takes people to be right. Dollars
    and milliseconds; latency ends where a person takes over. `escalated` and `human` count cases by reason. None is
    what no case can tell, or what hangs on undecided ones.
    """

    n: int
    judged: int
    undecided: int
    coverage: Interval
    escalation_rate: Interval
    human_rate: Interval | None
    accuracy: Interval | None
    student_accuracy: Interval | None
    teacher_accuracy: Interval | None
    accuracy_with_people: Interval | None
    llm_calls: int | None
    llm_usd_per_million: float | None
    latency_mean_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    escalated: Mapping[EscalationReason, int]
    human: Mapping[HumanReason, int]

    def flat(self, prefix: str = "cascade") -> dict[str, float]:
        """The figures under the names that runs are compared by, as in `cascade/accuracy_low`; None is left out."""
        found: dict[str, float | None] = {"n": self.n, "judged": self.judged, "undecided": self.undecided}
        for name in ("coverage", "escalation_rate", "human_rate", "accuracy", "student_accuracy", "teacher_accuracy",
                     "accuracy_with_people"):
            interval: Interval | None = getattr(self, name)
            if interval:
                found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        for name in ("llm_calls", "llm_usd_per_million", "latency_mean_ms", "latency_p50_ms", "latency_p95_ms"):
            found[name] = getattr(self, name)
        found |= {f"escalated/{reason}": self.escalated.get(reason, 0) / self.n for reason in EscalationReason}
        if not self.undecided:
            found |= {f"human/{reason}": self.human.get(reason, 0) / self.n for reason in HumanReason}
        return {f"{prefix}/{name}": float(value) for name, value in found.items() if value is not None}


class Kind(StrEnum):
    """What answers: a cascade, its student alone, its LLM alone, or another model alone."""

    CASCADE = "cascade"
    STUDENT = "student"
    LLM = "llm"
    OTHER = "other"


class Compared(NamedTuple):
    """One way to answer all cases, and its worth. `best_cheap` marks the best single cheap model."""

    name: str
    kind: Kind
    worth: Worth
    best_cheap: bool = False


@dataclass(frozen=True)
class CoveragePoint:
    """The `share` of cases that the student is at least as sure of as `threshold`, audits not taken off, and its
    accuracy on those with truth, None without any."""

    threshold: float
    share: float
    accuracy: Interval | None


@dataclass(frozen=True)
class CostPoint:
    """What the cascade is worth with `threshold` (None escalates everything): its accuracy, of the automatic answers
    and with people taken to be right, None without any; US dollars for a million items, and the share for people."""

    threshold: float | None
    llm_usd_per_million: float
    accuracy: Interval | None
    accuracy_with_people: Interval | None
    human_rate: float


def reply_of(annotation: Annotation, task: TaskSpec, probability: float | None = None) -> Reply:
    """A stored annotation as a reply; `probability` is the calibrated one of its being right."""
    answer = task.map_label(annotation.label)
    cost, latency = annotation.cost_usd, annotation.latency_s
    if answer is None:
        return Reply(failure=annotation.failure or Failure.UNKNOWN_LABEL, cost_usd=cost, latency_s=latency)
    return Reply(answer, probability, cost_usd=cost, latency_s=latency)


def asked(cases: Sequence[Case]) -> list[Case]:
    """The cases whose reply is known. They stand for all of them only where it did not depend on the item who was
    asked: on the doubtful ones alone, every cascade looks worse than it is."""
    return [case for case in cases if case.reply is not None]


def replay(cases: Sequence[Case], policy: Policy) -> list[Outcome]:
    """What the policy does with each case, in their order; an escalation is left where the reply is unknown."""
    return [_outcome(case, policy) for case in cases]


def worth(cases: Sequence[Case], outcomes: Sequence[Outcome], *, student_ms: float) -> Worth:
    """What `outcomes`, one for each case, are worth, where the student takes `student_ms` milliseconds for an item.

    Raises ValueError without cases, or for another number of outcomes.
    """
    n = len(cases)
    if not n or n != len(outcomes):
        raise ValueError(f"{n} cases and {len(outcomes)} outcomes: one of each is needed, and at least one")
    decided = [found for found in outcomes if isinstance(found, Decision)]
    complete = len(decided) == n
    judged = [(found, case.truth) for case, found in zip(cases, outcomes, strict=True) if case.truth is not None]
    right = {route: [found.answer == truth for found, truth in judged
                     if isinstance(found, Decision) and found.route == route] for route in Route}
    automatic = right[Route.STUDENT] + right[Route.TEACHER]
    by_route = Counter(found.route for found in decided)
    replies = [found.reply for found in decided if found.reply]
    latency = _latency_ms(decided, student_ms) if complete else None
    return Worth(
        n=n, judged=len(judged), undecided=n - len(decided),
        coverage=proportion(by_route[Route.STUDENT], n),
        escalation_rate=proportion(n - by_route[Route.STUDENT], n),
        human_rate=proportion(by_route[Route.HUMAN], n) if complete else None,
        accuracy=_share(automatic) if complete else None,
        student_accuracy=_share(right[Route.STUDENT]),
        teacher_accuracy=_share(right[Route.TEACHER]),
        accuracy_with_people=_share(automatic + [True] * len(right[Route.HUMAN])) if complete else None,
        llm_calls=sum(not reply.over_budget for reply in replies) if complete else None,
        llm_usd_per_million=math.fsum(reply.cost_usd for reply in replies) / n * MILLION if complete else None,
        latency_mean_ms=float(latency.mean()) if latency is not None else None,
        latency_p50_ms=float(np.quantile(latency, 0.5)) if latency is not None else None,
        latency_p95_ms=float(np.quantile(latency, 0.95)) if latency is not None else None,
        escalated=Counter(reason for found in outcomes if (reason := found.escalated)),
        human=Counter(found.human for found in decided if found.human),
    )


def compare(cases: Sequence[Case], policies: Mapping[str, Policy], others: Mapping[str, Mapping[str, Reply]], *,
            student_ms: float) -> list[Compared]:
    """The cascade under each of `policies`, by their names, beside the student alone, the LLM alone, and `others`: what
    further models replied, by name and key. All on the same cases.

    A model alone gives whatever it answers; what it fails to answer is a person's. The best single cheap model is, of
    the LLM and the others, the one that answers most of the judged cases rightly (then the cheaper one) of those that
    cost less than the dearest: there is none where one model was asked alone, or one leaves cases undecided.
    """
    found = [Compared(name, Kind.CASCADE, worth(cases, replay(cases, policy), student_ms=student_ms))
             for name, policy in policies.items()]
    alone = worth(cases, replay(cases, STUDENT_ALONE), student_ms=student_ms)
    models = [Compared("LLM alone", Kind.LLM, worth(cases, replay(cases, LLM_ALONE), student_ms=0.0))]
    for name, replies in others.items():
        given = [replace(case, reply=replies.get(case.key)) for case in cases]
        models.append(Compared(f"{name} alone", Kind.OTHER, worth(given, replay(given, LLM_ALONE), student_ms=0.0)))
    best = _best_cheap(models)
    return [*found, Compared("student alone", Kind.STUDENT, alone),
            *(model._replace(best_cheap=model is best) for model in models)]


def coverage_at(cases: Sequence[Case], threshold: float) -> CoveragePoint:
    """How many cases the student is at least so sure of, and how right it is on these. Raises ValueError without any
    case."""
    if not cases:
        raise ValueError("no cases: a curve needs one at least")
    accepted = [case for case in cases if case.student.probability >= threshold]
    right = [case.student.answer == case.truth for case in accepted if case.truth is not None]
    return CoveragePoint(threshold, len(accepted) / len(cases), _share(right))


def coverage_curve(cases: Sequence[Case], points: int = CURVE_POINTS) -> list[CoveragePoint]:
    """The student by itself, strictest threshold first: every confidence that occurs, or `points` of them; nothing
    without cases."""
    return [coverage_at(cases, threshold) for threshold in _thresholds(cases, points)]


def cost_curve(cases: Sequence[Case], policy: Policy, points: int = CURVE_POINTS) -> list[CostPoint]:
    """The cascade under `policy` with other thresholds: none at all, then strictest first as in `coverage_curve`.

    Nothing without cases; raises ValueError for those whose reply is unknown. A case's outcome depends on the threshold
    only through whether the student is confident, so that two replays, one where it always is and one where it never
    is, hold them all.
    """
    if not cases:
        return []
    if open_cases := sum(case.reply is None for case in cases):
        raise ValueError(f"the reply is unknown for {open_cases} of {len(cases)} cases, and a curve needs all of them: "
                         "take those that were asked about")
    ordered = sorted(cases, key=lambda case: -case.student.probability)
    # [N + 1, 5] each: row k holds what the k surest cases add up to.
    confident, doubtful = (np.vstack([np.zeros(5), np.cumsum(_rows(ordered, replace(policy, threshold=at)), axis=0)])
                           for at in (0.0, None))
    thresholds = _thresholds(cases, points)
    counts = [sum(case.student.probability >= threshold for case in cases) for threshold in thresholds]
    return [_cost_point(threshold, confident[count] + doubtful[-1] - doubtful[count], len(cases))
            for threshold, count in zip([None, *thresholds], [0, *counts], strict=True)]


def escalation_table(cases: Sequence[Case], outcomes: Sequence[Outcome], names: Sequence[str], *,
                     by: str) -> pd.DataFrame:
    """A row for each class of `names`: how many `items`, and how many of these went each way, the student's first.

    Classes are those that the student answers (`by="answer"`) or the true ones (`by="truth"`, of cases that have one).
    A column for every way that occurs, as in `doubtful: teacher`; where the reply is unknown, `doubtful: unknown`.
    """
    if by not in ("answer", "truth"):
        raise ValueError(f"by={by!r}: must be 'answer' or 'truth'")
    classes = [case.student.answer if by == "answer" else case.truth for case in cases]
    counts = Counter((name, found.outcome) for name, found in zip(classes, outcomes, strict=True) if name is not None)
    if strange := {name for name, _ in counts} - set(names):
        raise ValueError(f"{', '.join(sorted(strange))}: none of the classes {', '.join(names)}")
    occurring = {way for _, way in counts}
    ways = [Route.STUDENT.value, *(way for way in WAYS if way in occurring)]
    rows = [[name, sum(counts[name, way] for way in ways), *(counts[name, way] for way in ways)] for name in names]
    return pd.DataFrame(rows, columns=["class", "items", *ways])


def _outcome(case: Case, policy: Policy) -> Outcome:
    step = first(policy, case.key, case.student)
    if isinstance(step, Decision) or case.reply is None:
        return step
    return then(policy, step, case.reply)


def _share(right: Sequence[bool]) -> Interval | None:
    return proportion(sum(right), len(right)) if right else None


def _latency_ms(decided: Sequence[Decision], student_ms: float) -> Floats:
    return student_ms + 1000 * np.array([found.reply.latency_s if found.reply else 0.0 for found in decided])


def _best_cheap(models: Sequence[Compared]) -> Compared | None:
    prices = [model.worth.llm_usd_per_million for model in models]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    cheap = [(model, price) for model, price in zip(models, known, strict=True) if price < max(known)]
    return max(cheap, key=lambda one: (_right(one[0].worth), -one[1]), default=(None, 0.0))[0]


def _right(found: Worth) -> int:
    return round(found.accuracy.value * found.accuracy.n) if found.accuracy else 0


def _thresholds(cases: Sequence[Case], points: int) -> list[float]:
    """The confidences that occur, highest first, or `points` of them from end to end."""
    distinct = sorted({case.student.probability for case in cases}, reverse=True)
    places = np.unique(np.linspace(0, len(distinct) - 1, min(points, len(distinct))).astype(int))
    return [distinct[place] for place in places]


def _rows(cases: Sequence[Case], policy: Policy) -> Floats:
    """[N, 5] of each case: automatic and judged, automatic and right, judged and a person's, a person's, dollars."""
    rows = np.zeros((len(cases), 5))
    for row, case, found in zip(rows, cases, replay(cases, policy), strict=True):
        assert isinstance(found, Decision)  # every reply is known
        judged, automatic = case.truth is not None, found.route != Route.HUMAN
        row[:] = (judged and automatic, judged and automatic and found.answer == case.truth,
                  judged and not automatic, not automatic, found.reply.cost_usd if found.reply else 0.0)
    return rows


def _cost_point(threshold: float | None, sums: Floats, n: int) -> CostPoint:
    automatic, right, by_people, human = map(int, sums[:4])
    judged = automatic + by_people
    return CostPoint(threshold, float(sums[4]) / n * MILLION, proportion(right, automatic) if automatic else None,
                     proportion(right + by_people, judged) if judged else None, human / n)
