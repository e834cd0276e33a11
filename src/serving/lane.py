"""Who looks at what: items that wait for a person, and the people who come for them.

One item is held by one reviewer at a time, and one reviewer holds one item; a hold ends with time. A share of the
answered items is wanted from a second reviewer, who sees neither the first answer nor the models'; where these two
differ, from a third as well. The client's answer is the first one and stays; students learn from what a person said
last, so the third settles that. Agreement counts the first two.

Pure: no I/O, and time is an argument. For one thread. Knows nothing about images, stores or HTTP.
"""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from src.cascade.policy import Opinion
from src.metrics import Interval, proportion
from src.quality.opinions import krippendorff_alpha

SECOND_OPINION = "second_opinion"  # the reason why an item is shown that a client no longer waits for
MOST_UNDONE = 50  # answers that a reviewer can take back
MOST_SECONDS = 1000  # second opinions wanted: of more, where one person works alone, the oldest are given up
FOREVER = datetime.max.replace(tzinfo=UTC)


class NotHeld(Exception):
    """The item is not this reviewer's to answer; its text says why."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An item that a person is to answer. `reason` is a HumanReason's value or SECOND_OPINION, `escalated` an
    EscalationReason's; `since` is when it began to wait. `teacher` is the LLM's answer where it gave one, with its
    calibrated probability where that is known. `probabilities` are the student's, in the task's order, or empty."""

    key: str
    reason: str
    escalated: str
    student: Opinion
    teacher: str | None
    teacher_why: str
    since: datetime
    teacher_probability: float | None = None
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """What a reviewer said. `first`: it is the client's answer, and not a second opinion."""

    waiting: Waiting
    label: str
    first: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """`mine` and `all` count answers; `waiting` the items without one, by reason in `reasons`, of which others hold
    `held`; the first has waited for `oldest_s` seconds. `seconds` are second opinions that this reviewer could give,
    `disputed` the items on which two differ, whoever may settle that."""

    mine: int
    all: int
    waiting: int
    held: int
    oldest_s: float | None
    reasons: dict[str, int]
    seconds: int
    disputed: int


@dataclass(frozen=True, slots=True)
class ReviewerAgreement:
    """Of the items that two people or more answered, on how many the first two agree; and Krippendorff's alpha of
    these answers, which corrects for chance whoever the two were; nan where all are of one class."""

    share: Interval
    alpha: float


@dataclass(slots=True)
class _Hold:
    reviewer: str
    since: datetime
    until: datetime


class Lane:
    """`lease_s` is how long a reviewer holds an item; `second_opinion_share` of all keys is drawn by `seed`, always the
    same way. `clock` tells the time in UTC."""

    def __init__(self, *, lease_s: float, second_opinion_share: float = 0.0, seed: int = 0,
                 clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.lease_s = lease_s
        self._share, self._seed, self._clock = second_opinion_share, seed, clock
        self._waiting: dict[str, Waiting] = {}  # oldest first
        self._seconds: dict[str, Waiting] = {}  # wanted from somebody who has not answered it
        self._fresh: set[str] = set()  # added, and not yet held against what people said before
        self._holds: dict[str, _Hold] = {}
        self._held: dict[str, str] = {}  # reviewer → the key of their hold, which may have run out
        self._skipped: dict[str, dict[str, None]] = defaultdict(dict)
        self._done: dict[str, deque[Answered]] = defaultdict(lambda: deque(maxlen=MOST_UNDONE))
        self._answers: dict[str, dict[str, str]] = {}  # of the drawn items: reviewer → label, in the order given
        self._words: dict[str, tuple[str, str]] = {}  # the last label and who said it
        self._counts: Counter[str] = Counter()

    # What waits.

    def add(self, waiting: Waiting) -> None:
        """Let it wait; of an item that waits already, nothing changes."""
        if waiting.key not in self._waiting:
            self._waiting[waiting.key] = waiting
            self._fresh.add(waiting.key)

    def remove(self, key: str) -> None:
        """No client waits for it any more. One that is being answered at this moment is answered all the same."""
        hold = self._holds.get(key)
        if hold and hold.until == FOREVER:
            return
        if self._waiting.pop(key, None):
            self._free(key)
        self._fresh.discard(key)

    def forget(self, key: str) -> None:
        """As `remove`, and no second opinion is wanted either: its picture is gone."""
        self.remove(key)
        self._seconds.pop(key, None)

    def shows(self, key: str) -> bool:
        """Whether some reviewer may look at it: it waits, or was answered lately and can be taken back."""
        return key in self._waiting or key in self._seconds or any(
            answered.waiting.key == key for done in self._done.values() for answered in done)

    def said(self, key: str) -> tuple[str, str] | None:
        """The label that a person gave this item last, and who, if it still stands."""
        return self._words.get(key)

    def known(self) -> list[str]:
        """The items that a person had answered before they came to wait, until they are removed."""
        found = [key for key in self._fresh if key in self._words and not self._holder(key)]
        self._fresh = set(found)
        return found

    def recall(self, key: str, reviewer: str, label: str | None, *, here: bool = True) -> None:
        """A person's last word on an item (None: took it back) from before this lane began; oldest first. `here`: it
        was said in such a lane, so that it counts as work done and towards the agreement."""
        self._words.pop(key, None)
        if label is not None:
            self._words[key] = label, reviewer
        if here and label is not None:
            self._counts[reviewer] += 1
            self._record(key, reviewer, label)

    # Who holds it.

    def next(self, reviewer: str, reason: str | None = None) -> Waiting | None:
        """What this reviewer holds, or else the item that has waited longest and nobody holds; of that `reason` alone,
        where one is given. What they skipped comes last. Held for `lease_s` from now."""
        held = self._held.get(reviewer)
        waiting = self._item(held, reviewer) if held else None
        if waiting is None or not _matches(waiting, reason):
            self.release(reviewer)
            waiting = self._first(reviewer, reason)
        if waiting:
            self._hold(reviewer, waiting.key)
        return waiting

    def ahead(self, reviewer: str, reason: str | None = None) -> Waiting | None:
        """What would come after the one that is held, if nobody else takes it."""
        return self._first(reviewer, reason)

    def hold(self, reviewer: str, key: str, *, answering: bool = False) -> Waiting:
        """Hold it for `lease_s` from now; while `answering`, until it is answered or held anew. A hold that ran out may
        be taken up again as long as nobody else did. Raises NotHeld."""
        other = self._holder(key)
        if other and other != reviewer:
            raise NotHeld("Your time with this item ran out, and another reviewer has it now.")
        waiting = self._item(key, reviewer)
        if waiting is None:
            raise NotHeld("This item is not waiting any more: it was answered by somebody else.")
        if self._held.get(reviewer) != key:
            self.release(reviewer)
        self._hold(reviewer, key, forever=answering)
        return waiting

    def holds(self, reviewer: str) -> str | None:
        """The key of what this reviewer holds."""
        key = self._held.get(reviewer)
        return key if key and self._holder(key) == reviewer else None

    def age_s(self, waiting: Waiting) -> float:
        """For how many seconds it has waited; 0 where it is from the future, by clocks that were set."""
        return max(0.0, (self._clock() - waiting.since).total_seconds())

    def left_s(self, key: str) -> float:
        """For how many seconds it is still held; 0 where it is not."""
        hold = self._holds.get(key)
        return max(0.0, (hold.until - self._clock()).total_seconds()) if hold else 0.0

    def looked_at_s(self, key: str) -> float:
        """For how many seconds its holder has had it; 0 where nobody has."""
        hold = self._holds.get(key)
        return max(0.0, (self._clock() - hold.since).total_seconds()) if hold else 0.0

    def release(self, reviewer: str) -> None:
        """Give back what this reviewer holds, to its place."""
        key = self._held.pop(reviewer, None)
        if key and key in self._holds and self._holds[key].reviewer == reviewer:
            del self._holds[key]

    def skip(self, reviewer: str, key: str) -> None:
        """Put it behind everything else, for this reviewer alone. Raises NotHeld."""
        self.hold(reviewer, key)
        self.release(reviewer)
        self._skipped[reviewer].pop(key, None)
        self._skipped[reviewer][key] = None

    def skipped(self, reviewer: str, key: str) -> bool:
        return key in self._skipped[reviewer]

    # What they say.

    def answer(self, reviewer: str, key: str, label: str) -> Answered:
        """Raises NotHeld."""
        self.hold(reviewer, key)
        first = key in self._waiting
        waiting = self._waiting.pop(key) if first else self._seconds[key]
        self._free(key)
        self._fresh.discard(key)
        self._skipped[reviewer].pop(key, None)
        self._counts[reviewer] += 1
        self._words[key] = label, reviewer
        self._record(key, reviewer, label)
        self._want(key, waiting)
        answered = Answered(waiting, label, first)
        self._done[reviewer].append(answered)
        return answered

    def last(self, reviewer: str) -> Answered | None:
        """What `undo` would take back."""
        done = self._done[reviewer]
        return done[-1] if done else None

    def take_back(self, reviewer: str) -> Answered | None:
        """Hold what `undo` would take back until it is, so that nobody answers it meanwhile; `release` gives that up.
        Who was about to give a second opinion of it holds it no more. Raises NotHeld where somebody else is answering
        it at this moment."""
        answered = self.last(reviewer)
        if answered:
            key = answered.waiting.key
            if (hold := self._holds.get(key)) and hold.reviewer != reviewer and hold.until == FOREVER:
                raise NotHeld("Another reviewer is answering this item at this moment. Try again.")
            self.release(reviewer)
            self._hold(reviewer, key, forever=True)
        return answered

    def undo(self, reviewer: str) -> Waiting | None:
        """Take back this reviewer's last answer, and hold that item again; None where there is none. Raises NotHeld, as
        `take_back` does."""
        answered = self.take_back(reviewer)
        if answered is None:
            return None
        self._done[reviewer].pop()
        waiting, key = answered.waiting, answered.waiting.key
        self._counts[reviewer] -= 1
        self._words.pop(key, None)
        self._record(key, reviewer, None)
        if answered.first:
            self._seconds.pop(key, None)
            self._waiting = {key: waiting, **self._waiting}  # where it was: before those that came later
        else:
            self._seconds = {key: waiting, **self._seconds}
        self._hold(reviewer, key)
        return waiting

    # How it goes.

    def progress(self, reviewer: str) -> Progress:
        held = sum(1 for key in self._waiting if self._holder(key) not in (None, reviewer))
        oldest = min(self._waiting.values(), key=lambda waiting: waiting.since, default=None)
        return Progress(
            mine=self._counts[reviewer], all=self._counts.total(), waiting=len(self._waiting), held=held,
            oldest_s=self.age_s(oldest) if oldest else None,
            reasons=dict(Counter(waiting.reason for waiting in self._waiting.values())),
            seconds=sum(1 for key in self._seconds if self._item(key, reviewer) and key not in self._waiting),
            disputed=sum(1 for key in self._seconds if len(self._answers.get(key, ())) > 1),
        )

    def agreement(self) -> ReviewerAgreement | None:
        """None where no item was answered twice."""
        pairs = [list(said.values())[:2] for said in self._answers.values() if len(said) > 1]
        if not pairs:
            return None
        return ReviewerAgreement(proportion(sum(a == b for a, b in pairs), len(pairs)), krippendorff_alpha(pairs))

    def draws(self, key: str) -> bool:
        """Whether a second opinion is wanted of `key`: always the same way. A larger share only adds to a smaller."""
        place = hashlib.sha256(f"second:{self._seed}:{key}".encode()).digest()[:8]
        return int.from_bytes(place) < self._share * 2**64

    def _first(self, reviewer: str, reason: str | None) -> Waiting | None:
        skipped = self._skipped[reviewer]
        for key in [key for key in skipped if key not in self._waiting and key not in self._seconds]:
            del skipped[key]

        def open_ones(of: dict[str, Waiting]) -> Iterator[Waiting]:
            return (waiting for key, waiting in of.items() if key not in skipped and not self._holder(key)
                    and _matches(waiting, reason) and self._item(key, reviewer) is waiting)

        found = [waiting for pool in (self._waiting, self._seconds) if (waiting := next(open_ones(pool), None))]
        if found:
            return min(found, key=lambda waiting: waiting.since)
        return next((waiting for key in skipped if not self._holder(key) and (waiting := self._item(key, reviewer))
                     and _matches(waiting, reason)), None)

    def _item(self, key: str, reviewer: str) -> Waiting | None:
        """The item, if this reviewer may answer it."""
        if key in self._waiting:
            return self._waiting[key]
        return self._seconds.get(key) if reviewer not in self._answers.get(key, {}) else None

    def _holder(self, key: str) -> str | None:
        hold = self._holds.get(key)
        return hold.reviewer if hold and hold.until > self._clock() else None

    def _hold(self, reviewer: str, key: str, *, forever: bool = False) -> None:
        now, before = self._clock(), self._holds.get(key)
        if before and before.reviewer != reviewer and self._held.get(before.reviewer) == key:
            del self._held[before.reviewer]  # it ran out
        since = before.since if before and before.reviewer == reviewer and before.until > now else now
        self._holds[key] = _Hold(reviewer, since, FOREVER if forever else now + timedelta(seconds=self.lease_s))
        self._held[reviewer] = key

    def _free(self, key: str) -> None:
        hold = self._holds.pop(key, None)
        if hold and self._held.get(hold.reviewer) == key:
            del self._held[hold.reviewer]

    def _record(self, key: str, reviewer: str, label: str | None) -> None:
        if not self.draws(key):
            return
        said = self._answers.setdefault(key, {})
        said.pop(reviewer, None)
        if label is not None:
            said[reviewer] = label

    def _want(self, key: str, waiting: Waiting) -> None:
        """Ask another person, or no longer."""
        said = list(self._answers.get(key, {}).values())
        self._seconds.pop(key, None)
        if len(said) == 1 or (len(said) == 2 and said[0] != said[1]):
            self._seconds[key] = replace(waiting, reason=SECOND_OPINION, since=self._clock())
            while len(self._seconds) > MOST_SECONDS:
                del self._seconds[next(key for key in self._seconds if not self._holder(key))]


def _matches(waiting: Waiting, reason: str | None) -> bool:
    return reason is None or waiting.reason == reason


