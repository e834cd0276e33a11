"""Annotations → labels: what a person said, else what the panel's answers come to, sure enough.

Pure. Knows nothing about how answers were got or what will learn from them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from src.metrics import Floats, Ints
from src.quality.confidence import OutOfFold, with_probability
from src.quality.consensus import posterior, winners
from src.quality.heuristics import doubt
from src.quality.spec import QualitySpec
from src.task import SECOND_LOOK, Annotation, Failure, Item, Label, Panel, TaskSpec

HUMAN = "human:"

Opinion = tuple[str, int]  # annotator, pass


def conclude(items: Iterable[Item], annotations: Sequence[Annotation], *, task: TaskSpec, panel: Panel,
             spec: QualitySpec, truths: Mapping[str, str], out_of_fold: OutOfFold | None = None) -> list[Label]:
    """One label for every item that anybody annotated, in the items' order.

    Gold belongs among the items: opinions are weighed on all together, and `truths` (gold's items alone → class) is
    what probabilities are calibrated on; it never touches a label. `out_of_fold` holds, item → [C], the probabilities
    of a student that did not learn from the item. Only the panel's answers count, of several by one annotator in one
    pass the last usable one; a person's latest word goes before everything else.

    A label is always a class that a person or one of the panel answered. With "agreement", all of a member's passes
    must be there and all answers be the same; where they are not, the arbiter's counts if more than half of the answers
    share it. Elsewhere what was answered counts, and only a tie brings no label. Raises ConfigError where "crowdlab" is
    asked for without `out_of_fold`.
    """
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_item[annotation.item].append(annotation)
    keys = [item.key for item in items if item.key in by_item]
    given = [_counted(by_item[key], task, panel) for key in keys]
    opinions = sorted({opinion for answers in given for opinion in answers})
    matrix = _matrix(given, opinions, task)
    probabilities = _posterior(keys, matrix, opinions, task, panel, spec, out_of_fold)
    labels = [_label(*found, task, panel, spec)
              for found in zip(keys, given, probabilities, winners(probabilities, matrix), strict=True)]
    labels = with_probability(labels, truths=truths, names=task.names, out_of_fold=out_of_fold)
    labels = [_filtered(label, answers, task, spec) for label, answers in zip(labels, given, strict=True)]
    return [_reviewed(label, by_item[label.item], task) for label in labels]


def to_learn(labels: Iterable[Label], spec: QualitySpec) -> list[Label]:
    """The labels as students get them: with probabilities only where these are wanted (`spec.disagreements`) and
    opinions differ; elsewhere the class alone."""
    soft = spec.disagreements == "soft"
    return [label if soft and len({vote for vote in label.votes if vote}) > 1 else replace(label, distribution=())
            for label in labels]


def votes(annotations: Iterable[Annotation], task: TaskSpec) -> dict[Opinion, Annotation]:
    """Each annotator's answer in each pass, the last usable one, and where there is none the last failure."""
    found: dict[Opinion, Annotation] = {}
    for annotation in annotations:
        key = (annotation.annotator, annotation.pass_index)
        if key not in found or task.map_label(annotation.label) or not task.map_label(found[key].label):
            found[key] = annotation
    return dict(sorted(found.items()))


def _counted(annotations: Iterable[Annotation], task: TaskSpec, panel: Panel) -> dict[Opinion, Annotation]:
    """The panel's answers: members in their order, each pass by pass, then the arbiter's, then second looks."""
    given = votes((a for a in annotations if panel.counts(a.annotator, a.pass_index)), task)
    order = {annotator: n for n, annotator in enumerate([*panel.members, *filter(None, [panel.arbiter])])}
    return dict(sorted(given.items(), key=lambda pair: (pair[0][1] >= SECOND_LOOK, order[pair[0][0]], pair[0][1])))


def _matrix(given: Sequence[dict[Opinion, Annotation]], opinions: Sequence[Opinion], task: TaskSpec) -> Ints:
    """[N, A] the place of each item's classes by opinion, -1 where there is none."""
    place = {name: n for n, name in enumerate(task.names)}
    labels = [[task.map_label(answers[o].label) if o in answers else None for o in opinions] for answers in given]
    return np.array([[place[label] if label else -1 for label in row] for row in labels],
                    dtype=np.int64).reshape(len(given), len(opinions))


def _posterior(keys: Sequence[str], matrix: Ints, opinions: Sequence[Opinion], task: TaskSpec, panel: Panel,
               spec: QualitySpec, out_of_fold: OutOfFold | None) -> Floats:
    unknown = np.full(len(task.names), np.nan)
    student = np.array([(out_of_fold or {}).get(key, unknown) for key in keys]).reshape(len(keys), len(task.names))
    # An arbiter, and whoever looks again, is asked where something seems wrong.
    on_all = np.array([who in panel.members and n < panel.passes for who, n in opinions], dtype=bool)
    return posterior(spec.consensus, matrix, len(task.names), student, on_all)


def _label(item: str, given: dict[Opinion, Annotation], probabilities: Floats, winner: int, task: TaskSpec,
           panel: Panel, spec: QualitySpec) -> Label:
    """What the answers come to, before any filter."""
    mapped = {opinion: task.map_label(a.label) for opinion, a in given.items()}
    usable = {opinion: label for opinion, label in mapped.items() if label}
    label, reason = None, _missing(given, usable, panel, spec)
    if not reason and spec.consensus == "agreement":
        label, reason = _agreed(usable, panel)
    elif not reason:
        label, reason = (task.names[winner], "") if winner >= 0 else (None, "passes disagree")
    if not label and reason == "passes disagree" and spec.disagreements == "soft":
        label = _most_probable(usable, probabilities, task, panel)
    # Whose word the label is; where there is none, all have a part in that.
    behind = [a for opinion, a in given.items() if label is None or mapped[opinion] == label] or list(given.values())
    told = [a.confidence for a in behind if a.confidence is not None]
    return Label(
        item, label, label is not None, ", ".join(dict.fromkeys(a.annotator for a in behind)), reason,
        # The least sure of them: a threshold must hold for each. What was not said is not confidence.
        min(told) if label and len(told) == len(behind) else None,
        tuple(mapped.values()), next((a.why for a in behind if a.why), ""),
        distribution=tuple(probabilities.tolist()) if usable else (),
    )


def _missing(given: dict[Opinion, Annotation], usable: dict[Opinion, str], panel: Panel, spec: QualitySpec) -> str:
    """Why the answers cannot come to anything, or nothing."""
    if usable and spec.consensus != "agreement":
        return ""
    needed = [(member, n) for member in panel.members for n in range(panel.passes)]
    if failed := next((a for opinion, a in given.items() if opinion in needed and opinion not in usable), None):
        # A label that was a class once and is none today came without a failure.
        return f"failed: {failed.failure or Failure.UNKNOWN_LABEL}"
    return "" if usable and all(opinion in usable for opinion in needed) else "not answered in every pass"


def _agreed(usable: dict[Opinion, str], panel: Panel) -> tuple[str | None, str]:
    """The label of all answers, or of the arbiter and most others, and what there is to say of it."""
    said = list(usable.values())
    if len(set(said)) == 1:
        return said[0], ""
    arbiter = usable.get((panel.arbiter or "", 0))
    if arbiter and 2 * said.count(arbiter) > len(said):
        return arbiter, "arbiter decided"
    return None, "passes disagree"


def _most_probable(usable: dict[Opinion, str], probabilities: Floats, task: TaskSpec, panel: Panel) -> str:
    """Of the classes that were said, the most probable; of several, the one that the arbiter said, else the first."""
    said = [usable[opinion] for opinion in sorted(usable, key=lambda opinion: opinion[0] != panel.arbiter)]
    chances = [probabilities[task.names.index(label)] for label in said]
    return next(label for label, chance in zip(said, chances, strict=True) if chance >= max(chances) - 1e-9)


def _filtered(label: Label, given: dict[Opinion, Annotation], task: TaskSpec, spec: QualitySpec) -> Label:
    if not label.accepted:
        return label
    if spec.min_confidence > 0 and label.confidence is None:
        return replace(label, accepted=False, reason="confidence not said")
    if label.confidence is not None and label.confidence < spec.min_confidence:
        return replace(label, accepted=False, reason=f"confidence below {spec.min_confidence:g}")
    if spec.min_probability > 0 and label.probability is None:
        return replace(label, accepted=False, reason="probability unknown: gold is too small to tell")
    if label.probability is not None and label.probability < spec.min_probability:
        return replace(label, accepted=False, reason=f"probability below {spec.min_probability:g}")
    doubts = [] if spec.heuristics == "off" else [
        d for a in given.values() if task.map_label(a.label) == label.label and (d := doubt(a, task))]
    if doubts and spec.heuristics == "drop":
        return replace(label, accepted=False, reason=doubts[0])
    return replace(label, reason=label.reason or (doubts[0] if doubts else ""))


def _reviewed(label: Label, annotations: Iterable[Annotation], task: TaskSpec) -> Label:
    """What a person said last, if it still stands. Gold cannot tell how likely a person is right."""
    said = [a for a in annotations if a.annotator.startswith(HUMAN)]
    if not said or not (final := task.map_label(said[-1].label)):
        return label
    certain = tuple(float(name == final) for name in task.names)
    return replace(label, label=final, accepted=True, source=said[-1].annotator, reason="reviewed", confidence=1.0,
                   probability=None, distribution=certain)
