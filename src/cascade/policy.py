"""Who answers: the student where it is sure, else the LLM, and a person where the LLM is no help.

Pure: opinions in, a decision out. Asking stands between two steps, `first` and `then`, so that a replay, which has the
reply at hand, and a server, which awaits it, take the same routes. Knows nothing about models, prices or budgets: who
asks says what came of it. Probabilities are taken at their word, and so must be calibrated.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from src.task import Failure

SUM_TOLERANCE = 1e-3  # of a student's probabilities, as in `metrics.score`
UNKNOWN = "unknown"


class Route(StrEnum):
    """Whose answer it is."""

    STUDENT = "student"
    TEACHER = "teacher"
    HUMAN = "human"


class EscalationReason(StrEnum):
    """Why the student did not answer alone. AUDIT is for items that it would have answered: a doubtful one that is
    drawn as well is DOUBTFUL."""

    DOUBTFUL = "doubtful"  # less sure than the threshold
    UNCERTIFIED = "uncertified"  # there is no threshold: no confidence is enough
    AUDIT = "audit"


class HumanReason(StrEnum):
    """Why the LLM, once asked for, did not settle it."""

    TEACHER_UNSURE = "teacher_unsure"
    TEACHER_FAILED = "teacher_failed"
    OVER_BUDGET = "over_budget"
    DISAGREEMENT = "disagreement"  # on an audit: both are sure, of different answers


@dataclass(frozen=True)
class Policy:
    """`threshold` is the confidence from which on the student answers; None where nothing is certified, and then it
    never does. `teacher_confidence` is how probably right the LLM's answer must be; one of unknown probability is not,
    except with 0, which takes whatever it answers. `audit_share` of all keys is escalated however sure the student is,
    by a draw of `seed`.

    Raises ValueError for what does not lie in [0, 1].
    """

    threshold: float | None
    teacher_confidence: float
    audit_share: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_share("threshold", self.threshold)
        _check_share("teacher_confidence", self.teacher_confidence)
        _check_share("audit_share", self.audit_share)

    def confident(self, student: "Opinion") -> bool:
        """Whether the student may answer, audits aside."""
        return self.threshold is not None and student.probability >= self.threshold

    def audits(self, key: str) -> bool:
        """Whether `key` is drawn: always the same way, whatever anybody thinks of its item. A larger share only adds to
        a smaller one."""
        place = hashlib.sha256(f"audit:{self.seed}:{key}".encode()).digest()[:8]
        return int.from_bytes(place) < self.audit_share * 2**64


@dataclass(frozen=True, slots=True)
class Opinion:
    """The student's answer and how probably it is right, calibrated. Raises ValueError unless that lies in [0, 1]."""

    answer: str
    probability: float

    def __post_init__(self) -> None:
        _check_share("probability", self.probability)

    @classmethod
    def of(cls, probabilities: Sequence[float], names: Sequence[str]) -> "Opinion":
        """The most probable class (of several, the first) of [C] `probabilities`, in the order of `names`.

        Raises ValueError unless these are finite, not negative and sum to one.
        """
        given = [float(value) for value in probabilities]
        if len(given) != len(names):
            raise ValueError(f"probabilities={given}: {len(names)} are needed, one for each of {', '.join(names)}")
        if not all(math.isfinite(value) and value >= 0 for value in given) or abs(sum(given) - 1) > SUM_TOLERANCE:
            raise ValueError(f"probabilities={given}: must be finite, not negative and sum to one")
        most = max(given)
        return cls(names[given.index(most)], min(1.0, most))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of asking the LLM: an `answer`, a `failure`, or nothing since it was `over_budget` to ask.

    `probability` is how probably the answer is right, calibrated, or None where that is unknown. US dollars and
    seconds; a failed question may have cost both. Raises ValueError unless it is one of the three, with figures that
    make sense.
    """

    answer: str | None = None
    probability: float | None = None
    failure: Failure | None = None
    over_budget: bool = False
    cost_usd: float = 0.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.answer is not None) + (self.failure is not None) + self.over_budget != 1:
            raise ValueError(f"answer={self.answer!r}, failure={self.failure!r}, over_budget={self.over_budget}: a "
                             "reply is one of the three")
        if self.probability is not None:
            if self.answer is None:
                raise ValueError(f"probability={self.probability} without an answer")
            _check_share("probability", self.probability)
        for name in ("cost_usd", "latency_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be finite and not negative")


@dataclass(frozen=True, slots=True)
class Escalation:
    """The LLM is to be asked about it; `escalated` says why."""

    key: str
    student: Opinion
    escalated: EscalationReason

    @property
    def outcome(self) -> str:
        """As that of a decision, of which nobody knows how it would end."""
        return f"{self.escalated}: {UNKNOWN}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was answered, by which `route`, and why.

    `answer` and its `probability` are None where a person is to answer and has not yet. `escalated` says why the
    student did not answer alone, `human` why the LLM did not settle it either; None where they did. `reply` is what
    came of asking, None where nobody was asked. Raises ValueError where route and reasons contradict each other.
    """

    key: str
    answer: str | None
    probability: float | None
    route: Route
    escalated: EscalationReason | None
    human: HumanReason | None
    student: Opinion
    reply: Reply | None = None

    def __post_init__(self) -> None:
        reasons = (self.escalated is not None, self.human is not None)
        if reasons != (self.route != Route.STUDENT, self.route == Route.HUMAN):
            raise ValueError(f"route={self.route} with escalated={self.escalated} and human={self.human}")
        if (self.reply is None) != (self.route == Route.STUDENT):
            raise ValueError(f"route={self.route} with reply={self.reply}")
        if self.answer is None and self.route != Route.HUMAN:
            raise ValueError(f"answer=None by route={self.route}: only people may not have answered yet")

    @property
    def automatic(self) -> bool:
        """Whether nobody had to look at it."""
        return self.route != Route.HUMAN

    @property
    def outcome(self) -> str:
        """Route and reasons as one heading of a table: `student`, `doubtful: teacher`, `audit: disagreement`."""
        return f"{self.escalated}: {self.human or self.route}" if self.escalated else str(self.route)


def first(policy: Policy, key: str, student: Opinion) -> Decision | Escalation:
    """The student's answer, or that the LLM is to be asked."""
    if policy.threshold is None:
        return Escalation(key, student, EscalationReason.UNCERTIFIED)
    if not policy.confident(student):
        return Escalation(key, student, EscalationReason.DOUBTFUL)
    if policy.audits(key):
        return Escalation(key, student, EscalationReason.AUDIT)
    return Decision(key, student.answer, student.probability, Route.STUDENT, None, None, student)


def then(policy: Policy, escalation: Escalation, reply: Reply) -> Decision:
    """The LLM's answer, or that a person is to give one."""
    key, student, reason = escalation.key, escalation.student, escalation.escalated
    human = _why_human(policy, escalation, reply)
    if human:
        return Decision(key, None, None, Route.HUMAN, reason, human, student, reply)
    return Decision(key, reply.answer, reply.probability, Route.TEACHER, reason, None, student, reply)


def decide(policy: Policy, key: str, student: Opinion, ask: Callable[[Escalation], Reply]) -> Decision:
    """Both steps; `ask` is called where the LLM is needed, and only there."""
    found = first(policy, key, student)
    return then(policy, found, ask(found)) if isinstance(found, Escalation) else found


def _why_human(policy: Policy, escalation: Escalation, reply: Reply) -> HumanReason | None:
    if reply.over_budget:
        return HumanReason.OVER_BUDGET
    if reply.failure is not None:
        return HumanReason.TEACHER_FAILED
    if policy.teacher_confidence > 0 and (
            reply.probability is None or reply.probability < policy.teacher_confidence):
        return HumanReason.TEACHER_UNSURE
    if escalation.escalated == EscalationReason.AUDIT and reply.answer != escalation.student.answer:
        return HumanReason.DISAGREEMENT
    return None


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # which nan does not either
        raise ValueError(f"{name}={value}: must lie in [0, 1]")
