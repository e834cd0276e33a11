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
from src.quality.confidence import with_probability
from src.task import Annotation, Item, Label, TaskSpec


def replies(annotations: Iterable[Annotation], truths: Mapping[str, str], task: TaskSpec) -> dict[str, Reply]:
    """By item, what one annotator replied in its first pass: its last attempt, with the cost and the time of all that
    are stored; the waiting between them is not.

    `truths` (item → class, of gold's *choose* part) calibrate how probably an answer is right; where gold has fewer
    answers than that takes, the probability is unknown.
    """
    attempts: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.pass_index == 0:
            attempts[annotation.item].append(annotation)
    last = {item: max(tried, key=lambda a: a.attempt) for item, tried in attempts.items()}
    said = [Label(item, answer, False, a.annotator, confidence=a.confidence, votes=(answer,))
            for item, a in last.items() if (answer := task.map_label(a.label)) is not None]
    probability = {label.item: label.probability for label in with_probability(said, truths=truths, names=task.names)}
    return {item: replace(reply_of(a, task, probability.get(item)),
                          cost_usd=sum(tried.cost_usd for tried in attempts[item]),
                          latency_s=sum(tried.latency_s for tried in attempts[item]))
            for item, a in last.items()}


def cases(items: Sequence[Item], probabilities: Floats, names: Sequence[str],
          replied: Mapping[str, Reply]) -> list[Case]:
    """One case for each item, from the student's calibrated [N, C] probabilities in the order of `names`."""
    return [Case(item.key, Opinion.of(row, names), item.truth, replied.get(item.key))
            for item, row in zip(items, probabilities.tolist(), strict=True)]
