"""Annotations → labels: what a person said, else what all passes agree on, confidently enough.

Pure. Knows nothing about how answers were got or what will learn from them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from src.quality.heuristics import doubt
from src.quality.spec import QualitySpec
from src.task import Annotation, Failure, Item, Label, TaskSpec

HUMAN = "human:"


def conclude(items: Iterable[Item], annotations: Sequence[Annotation], *, task: TaskSpec, passes: int,
             spec: QualitySpec) -> list[Label]:
    """One label for every item that anybody annotated, in the items' order.

    Of several annotations by the same annotator in the same pass, the last usable one counts; a person's latest
    word goes before everything else.
    """
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_item[annotation.item].append(annotation)
    return [_conclude(item, by_item[item.key], task, passes, spec) for item in items if item.key in by_item]


def votes(annotations: Iterable[Annotation], task: TaskSpec) -> dict[tuple[str, int], Annotation]:
    """Each annotator's answer in each pass, the last usable one, and where there is none the last failure."""
    found: dict[tuple[str, int], Annotation] = {}
    for annotation in annotations:
        key = (annotation.annotator, annotation.pass_index)
        if key not in found or task.map_label(annotation.label) or not task.map_label(found[key].label):
            found[key] = annotation
    return dict(sorted(found.items()))


def _conclude(item: Item, annotations: list[Annotation], task: TaskSpec, passes: int, spec: QualitySpec) -> Label:
    human = [a for a in annotations if a.annotator.startswith(HUMAN)]
    given = [a for (_, n), a in votes((a for a in annotations if a not in human), task).items() if n < passes]
    mapped = tuple(task.map_label(a.label) for a in given)
    why = next((a.why for a in given if a.why), "")
    if human and (said := task.map_label(human[-1].label)):
        return Label(item.key, said, True, human[-1].annotator, "reviewed", 1.0, mapped, why)
    source = given[0].annotator if given else ""
    failed = next((a for a, label in zip(given, mapped, strict=True) if label is None), None)
    if failed or len(given) < passes:
        # A label that was a class once and is none today came without a failure.
        reason = f"failed: {failed.failure or Failure.UNKNOWN_LABEL}" if failed else "not answered in every pass"
        return Label(item.key, None, False, source, reason, None, mapped, why)
    if len(set(mapped)) > 1:
        return Label(item.key, None, False, source, "passes disagree", None, mapped, why)
    # The less sure of the passes: a threshold must hold for each of them. What was not said is not confidence.
    told = [a.confidence for a in given if a.confidence is not None]
    confidence = min(told) if len(told) == len(given) else None
    if spec.min_confidence > 0 and (confidence is None or confidence < spec.min_confidence):
        reason = f"confidence below {spec.min_confidence:g}" if confidence is not None else "confidence not said"
        return Label(item.key, mapped[0], False, source, reason, confidence, mapped, why)
    doubts = [d for a in given if (d := doubt(a, task))] if spec.heuristics != "off" else []
    return Label(item.key, mapped[0], not (doubts and spec.heuristics == "drop"), source, doubts[0] if doubts else "",
                 confidence, mapped, why)
