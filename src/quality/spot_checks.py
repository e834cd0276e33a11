"""A random sample of accepted labels for a person's look, and what it says about all of them.

Pure. An item's place in the draw is a hash of the seed and the item, so that every run draws the same, a larger sample
only adds to a smaller one, and a stricter filter only takes items out.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from src.metrics import Interval, proportion
from src.quality.reviewers import last_words
from src.task import Annotation, Label, TaskSpec


@dataclass(frozen=True)
class Audit:
    """How right the accepted labels are, before anybody corrected them: `accuracy` of the first n of `drawn` spot
    checks, all of them reviewed, whose `wrong` items a person called something else. `next` is the first spot check
    without an answer, and `waiting` counts the answered ones behind it, which count as soon as it has one."""

    accuracy: Interval
    wrong: tuple[str, ...]
    drawn: int
    next: str | None
    waiting: int


def sample(labels: Iterable[Label], size: int, seed: int) -> list[Label]:
    """`size` accepted labels at random, in the order in which they should be reviewed."""
    return nsmallest(size, (label for label in labels if label.accepted), key=lambda label: _place(label.item, seed))


def audit(unreviewed: Sequence[Label], reviews: Sequence[Annotation], *, task: TaskSpec, spot_checks: int,
          seed: int) -> Audit | None:
    """None where the first spot check has no answer. `unreviewed` are the labels as they would be without people.

    Answers behind the first gap do not count: who answers only what is easy, or was asked only about what is doubtful,
    would make the labels look better or worse than they are.
    """
    drawn, said = sample(unreviewed, spot_checks, seed), last_words(reviews, task)
    gap = next((place for place, label in enumerate(drawn) if label.item not in said), len(drawn))
    if gap == 0:
        return None
    wrong = tuple(label.item for label in drawn[:gap] if said[label.item] != label.label)
    waiting = sum(label.item in said for label in drawn[gap:])
    following = drawn[gap].item if gap < len(drawn) else None
    return Audit(proportion(gap - len(wrong), gap), wrong, len(drawn), following, waiting)


def _place(item: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{item}".encode()).hexdigest()
