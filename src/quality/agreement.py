"""How good the answers look: opinions against each other, and annotators against gold.

Pure. An opinion is one annotator in one pass. Knows nothing about which labels were accepted, except where it is told.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from src.errors import QualityError
from src.metrics import Interval, proportion
from src.quality.conclude import HUMAN, Opinion, votes
from src.quality.opinions import krippendorff_alpha
from src.task import Annotation, Label, Panel, TaskSpec

COLLAPSE_N = 10  # fewer answers than this say nothing about a collapse
COLLAPSE_SHARE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Shares of pairs of answers to one item that agree: `raw` as spelt, `mapped` as classes; n counts pairs.

    Two figures correct the mapped one for chance, nan where only one class was answered: Cohen's `kappa`, averaged
    over the pairs of opinions where these are more than two (Light, 1971), and Krippendorff's `alpha` over all answers.
    `spelt` is the share of answers that are spelt as the class they mean.
    """

    raw: Interval
    mapped: Interval
    kappa: float
    alpha: float
    spelt: float


def agreement(annotations: Sequence[Annotation], task: TaskSpec, panel: Panel) -> Agreement | None:
    """None where no item has two usable answers. Members' answers alone count: an arbiter and second looks see none
    but doubtful items. With more than two opinions, every pair counts once; the intervals take pairs for items, and
    are a little narrow then."""
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.annotator in panel.members and annotation.pass_index < panel.passes:
            by_item[annotation.item].append(annotation)
    pairs: dict[tuple[Opinion, Opinion], list[tuple[str, str]]] = defaultdict(list)
    raw_equal, spelt, answers = 0, 0, []
    for given in by_item.values():
        usable = [(opinion, label, a.label) for opinion, a in votes(given, task).items()
                  if (label := task.map_label(a.label))]
        spelt += sum(label == raw for _, label, raw in usable)
        answers.append([label for _, label, _ in usable])
        for (left, a, raw_a), (right, b, raw_b) in combinations(usable, 2):
            pairs[left, right].append((a, b))
            raw_equal += raw_a == raw_b
    n = sum(len(both) for both in pairs.values())
    if not n:
        return None
    equal = sum(a == b for both in pairs.values() for a, b in both)
    kappas = [_kappa(both) for both in pairs.values()]
    known = [kappa for kappa in kappas if not math.isnan(kappa)]
    return Agreement(proportion(raw_equal, n), proportion(equal, n), sum(known) / len(known) if known else math.nan,
                     krippendorff_alpha(answers), spelt / sum(len(given) for given in answers))


def teacher_accuracy(annotations: Sequence[Annotation], truths: Mapping[str, str], task: TaskSpec,
                     panel: Panel | None = None) -> dict[str, Interval]:
    """By annotator, the share of items whose first usable answer is right, against truth; empty without any.

    With a `panel`, only the answers that count there do: an arbiter's accuracy is then about what it was asked alone,
    the items on which the others disagree, and not about what it said in its preflight.
    """
    judged = {who: [answer == truths[item] for item, answer in first.items() if item in truths]
              for who, first in _first_answers(annotations, task, panel).items()}
    return {who: proportion(sum(right), len(right)) for who, right in judged.items() if right}


def teacher_confusion(annotations: Sequence[Annotation], truths: Mapping[str, str], task: TaskSpec,
                      panel: Panel | None = None) -> dict[str, npt.NDArray[np.int64]]:
    """By annotator, [C, C] counts of first usable answers, rows truth, columns answers, in the task's order; of the
    same answers as `teacher_accuracy`."""
    place = {name: n for n, name in enumerate(task.names)}
    found = {}
    for who, first in _first_answers(annotations, task, panel).items():
        matrix = np.zeros((len(place), len(place)), dtype=np.int64)
        for item, answer in first.items():
            if item in truths:
                matrix[place[truths[item]], place[answer]] += 1
        if matrix.any():
            found[who] = matrix
    return found


def label_accuracy(labels: Sequence[Label], truths: Mapping[str, str]) -> Interval | None:
    """The share of accepted labels that are right, against truth; None without any."""
    judged = [label.label == truths[label.item] for label in labels if label.accepted and label.item in truths]
    return proportion(sum(judged), len(judged)) if judged else None


def check_collapse(annotations: Sequence[Annotation], truths: Mapping[str, str], task: TaskSpec, *,
                   images: bool) -> None:
    """Raise QualityError where an annotator does not seem to see what it is shown.

    Either nearly all answers are one class although gold's truth is not, or the accuracy on gold is near chance, which
    is what these answers would reach in random order: not surely above it, and surely not half-way from it to 1. The
    second clause spares a good teacher whose data are nearly all of one class, where chance is close to 1 as well.
    Whoever saw doubtful items alone, as arbiters do, should not be judged here. `images` says what items are shown as.
    """
    by_annotator = _first_answers(annotations, task)
    for who, first in by_annotator.items():
        _check_collapse("the teacher" if len(by_annotator) == 1 else who, first, truths, task, images)


def _check_collapse(who: str, first: Mapping[str, str], truths: Mapping[str, str], task: TaskSpec,
                    images: bool) -> None:
    answers, known = list(first.values()), list(truths.values())
    if len(answers) < COLLAPSE_N or not known:
        return
    common = max(sorted(set(answers)), key=answers.count)
    share, expected = answers.count(common) / len(answers), known.count(common) / len(known)
    if share >= COLLAPSE_SHARE and expected < COLLAPSE_SHARE - 0.1:
        raise QualityError(
            f"{share:.0%} of {len(answers)} answers are {common!r}, but only {expected:.0%} of gold is: {who} "
            "does not seem to see the items. Check that "
            + ("the model takes images and that teacher.base_url keeps image_url parts." if images
               else "the prompt tells the classes apart, and look at what was asked and answered.")
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
            f"The accuracy on gold is {right}, no better than chance ({chance:.2f}), where {who} answers. Check the "
            f"prompt, {'that the model takes images, ' if images else ''}and that gold's labels are right."
        )


def _first_answers(annotations: Sequence[Annotation], task: TaskSpec,
                   panel: Panel | None = None) -> dict[str, dict[str, str]]:
    """Annotator → item → the usable answer of the lowest pass, of those that count where a `panel` is given."""
    found: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    for annotation in annotations:
        label = task.map_label(annotation.label)
        if label is None or annotation.annotator.startswith(HUMAN):
            continue
        if panel and not panel.counts(annotation.annotator, annotation.pass_index):
            continue
        own = found[annotation.annotator]
        if annotation.item not in own or annotation.pass_index < own[annotation.item][0]:
            own[annotation.item] = (annotation.pass_index, label)
    return {who: {item: label for item, (_, label) in own.items()} for who, own in found.items()}


def _kappa(pairs: Sequence[tuple[str, str]]) -> float:
    from sklearn.metrics import cohen_kappa_score  # takes memory while a million items are asked about

    left, right = zip(*pairs, strict=True)
    return float(cohen_kappa_score(left, right)) if len({*left, *right}) > 1 else math.nan
