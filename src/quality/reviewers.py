"""What people said about items: their last words, and whether they agree with each other.

Pure. A person is known by the annotator's name alone: somebody who reviews under two names counts as two.
"""

from collections import defaultdict
from collections.abc import Sequence

from src.metrics import Interval, proportion
from src.task import Annotation, TaskSpec


def last_words(reviews: Sequence[Annotation], task: TaskSpec) -> dict[str, str]:
    """Each item's class as a person last said it; `reviews` stand oldest first. Withdrawn words are no words."""
    latest = {review.item: task.map_label(review.label) for review in reviews}
    return {item: label for item, label in latest.items() if label}


def reviewer_agreement(reviews: Sequence[Annotation], task: TaskSpec) -> Interval | None:
    """The share of items on which everybody who answered agrees, of those that two people or more answered; None
    without any. Each person's last word counts."""
    said: dict[str, dict[str, str | None]] = defaultdict(dict)
    for review in reviews:
        said[review.item][review.annotator] = task.map_label(review.label)
    words = ([word for word in people.values() if word] for people in said.values())
    judged = [len(set(given)) == 1 for given in words if len(given) > 1]
    return proportion(sum(judged), len(judged)) if judged else None
