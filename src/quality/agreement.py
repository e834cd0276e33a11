"""How good the answers look: passes against each other, and the teacher against gold.

Pure. Knows nothing about which labels were accepted, except where it is told.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from sklearn.metrics import cohen_kappa_score

from src.errors import QualityError
from src.metrics import Interval, proportion
from src.quality.conclude import votes
from src.task import Annotation, Label, TaskSpec

COLLAPSE_N = 10  # fewer answers than this say nothing about a collapse
COLLAPSE_SHARE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Shares of pairs of passes that agree: `raw` as spelt, `mapped` as classes; Cohen's `kappa` is the mapped one
    corrected for chance, nan where only one class was answered. `spelt` is the share of answers that are spelt as
    the class they mean. n counts items."""

    raw: Interval
    mapped: Interval
    kappa: float
    spelt: float


def agreement(annotations: Sequence[Annotation], task: TaskSpec) -> Agreement | None:
    """None where no item has two usable answers. With more than two passes, every pair counts once; the intervals
    take pairs for items, and are a little narrow then."""
    left, right, raw_equal, spelt, answers = [], [], 0, 0, 0
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_item[annotation.item].append(annotation)
    for given in by_item.values():
        usable = [a for a in votes(given, task).values() if task.map_label(a.label)]
        spelt += sum(a.label == task.map_label(a.label) for a in usable)
        answers += len(usable)
        for a, b in combinations(usable, 2):
            left.append(task.map_label(a.label))
            right.append(task.map_label(b.label))
            raw_equal += a.label == b.label
    if not left:
        return None
    n = len(left)
    equal = sum(a == b for a, b in zip(left, right, strict=True))
    kappa = float(cohen_kappa_score(left, right)) if len(set(left + right)) > 1 else math.nan
    return Agreement(proportion(raw_equal, n), proportion(equal, n), kappa, spelt / answers)


def teacher_accuracy(annotations: Sequence[Annotation], truths: Mapping[str, str], task: TaskSpec) -> Interval | None:
    """The share of items whose first usable answer is right, against truth; None without any."""
    first = _first_answers(annotations, task)
    judged = [answer == truths[item] for item, answer in first.items() if item in truths]
    return proportion(sum(judged), len(judged)) if judged else None


def label_accuracy(labels: Sequence[Label], truths: Mapping[str, str]) -> Interval | None:
    """The share of accepted labels that are right, against truth; None without any."""
    judged = [label.label == truths[label.item] for label in labels if label.accepted and label.item in truths]
    return proportion(sum(judged), len(judged)) if judged else None


def check_collapse(annotations: Sequence[Annotation], truths: Mapping[str, str], task: TaskSpec) -> None:
    """Raise QualityError where the teacher does not seem to see what it is shown.

    Either nearly all answers are one class although gold's truth is not, or the accuracy on gold is near chance, which
    is what these answers would reach in random order: not surely above it, and surely not half-way from it to 1. The
    second clause spares a good teacher whose data are nearly all of one class, where chance is close to 1 as well.
    """
    first = _first_answers(annotations, task)
    answers, known = list(first.values()), [truths[item] for item in truths]
    if len(answers) < COLLAPSE_N or not known:
        return
    common = max(sorted(set(answers)), key=answers.count)
    share, expected = answers.count(common) / len(answers), known.count(common) / len(known)
    if share >= COLLAPSE_SHARE and expected < COLLAPSE_SHARE - 0.1:
        raise QualityError(
            f"{share:.0%} of {len(answers)} answers are {common!r}, but only {expected:.0%} of gold is: the teacher "
            "does not seem to see the items. Check that the model takes images and that teacher.base_url keeps "
            "image_url parts."
        )
    judged = [(answer, truths[item]) for item, answer in first.items() if item in truths]
    if len(judged) < COLLAPSE_N:
        return
    right = proportion(sum(a == t for a, t in judged), len(judged))
    chance = sum(
        sum(a == c for a, _ in judged) * sum(t == c for _, t in judged) for c in task.names
    ) / len(judged) ** 2
    if right.low <= chance and right.high < (1 + chance) / 2:
        raise QualityError(
            f"The teacher's accuracy on gold is {right}, no better than chance ({chance:.2f}). Check the prompt, that "
            "the model takes images, and that gold's labels are right."
        )


def _first_answers(annotations: Sequence[Annotation], task: TaskSpec) -> dict[str, str]:
    found: dict[str, tuple[int, str]] = {}
    for annotation in annotations:
        label = task.map_label(annotation.label)
        if label and (annotation.item not in found or annotation.pass_index < found[annotation.item][0]):
            found[annotation.item] = (annotation.pass_index, label)
    return {item: label for item, (_, label) in found.items()}
