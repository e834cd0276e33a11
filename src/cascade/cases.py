"""From predictions and stored annotations to the cases that a policy is replayed on.

What an LLM says of its own confidence becomes a probability that can be taken at its word by what gold says of it.
Knows nothing about who was asked when, nor about policies.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from src.cascade.policy import Opinion, Reply
from src.cascade.replay import Case, reply_of
from src.metrics import Floats
from src.quality.confidence import Confidence, fit
from src.task import Annotation, Item, Label, TaskSpec


def replies(annotations: Iterable[Annotation], truths: Mapping[str, str], task: TaskSpec) -> dict[str, Reply]:
    """By item, what one annotator replied in its first pass: its last attempt, with the cost and the time of all that
    are stored; the waiting between them is not.

    `truths` (item → class, of gold's *choose* part) calibrate how probably an answer is right; where gold has fewer
    answers than that takes, the probability is unknown.
    """
    said = list(annotations)
    return replies_by(said, confidence(said, truths, task), task)


def confidence(annotations: Iterable[Annotation], truths: Mapping[str, str], task: TaskSpec) -> Confidence:
    """How far one annotator's first pass can be believed, by what it said about gold (`truths`: item → class)."""
    tried = _attempts(a for a in annotations if a.item in truths)
    return fit(_answers(tried, task), truths=truths, names=task.names)


def replies_by(annotations: Iterable[Annotation], confidence: Confidence, task: TaskSpec) -> dict[str, Reply]:
    """As `replies`, with a confidence that was fitted before: so a server judges one answer as a replay does all."""
    attempts = _attempts(annotations)
    probability = {label.item: label.probability for label in confidence.judge(_answers(attempts, task))}
    return {item: replace(reply_of(tried[-1], task, probability.get(item)),
                          cost_usd=sum(a.cost_usd for a in tried), latency_s=sum(a.latency_s for a in tried))
            for item, tried in attempts.items()}


def cases(items: Sequence[Item], probabilities: Floats, names: Sequence[str],
          replied: Mapping[str, Reply]) -> list[Case]:
    """One case for each item, from the student's calibrated [N, C] probabilities in the order of `names`."""
    return [Case(item.key, Opinion.of(row, names), item.truth, replied.get(item.key))
            for item, row in zip(items, probabilities.tolist(), strict=True)]


def _attempts(annotations: Iterable[Annotation]) -> dict[str, list[Annotation]]:
    """The first pass by item, each in the order of its attempts."""
    found: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.pass_index == 0:
            found[annotation.item].append(annotation)
    return {item: sorted(tried, key=lambda a: a.attempt) for item, tried in found.items()}


def _answers(attempts: Mapping[str, Sequence[Annotation]], task: TaskSpec) -> list[Label]:
    """The last attempts that named a class."""
    last = {item: tried[-1] for item, tried in attempts.items()}
    return [Label(item, answer, False, a.annotator, confidence=a.confidence, votes=(answer,))
            for item, a in last.items() if (answer := task.map_label(a.label)) is not None]
