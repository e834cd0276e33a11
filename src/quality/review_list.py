"""What a person should look at, in which order, and why.

Pure. Knows nothing about the files that people are shown it in.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from src.quality.conclude import HUMAN
from src.quality.spot_checks import sample
from src.task import Label

SPOT_CHECK = "spot check"


@dataclass(frozen=True)
class Listed:
    """`label` as it stands, and `why` a person should look at it: a spot check, or a reason to doubt it."""

    label: Label
    why: str

    @property
    def blind(self) -> bool:
        """Whether the person answers without knowing the label: who has read it agrees more often than who has not, and
        a spot check is to tell how right the labels are."""
        return self.why == SPOT_CHECK

    @property
    def shown(self) -> Label:
        """What a person may see of the label."""
        if not self.blind:
            return self.label
        return replace(self.label, label=None, source="", reason="", confidence=None, votes=(), why="",
                       probability=None, distribution=())


def to_review(labels: Sequence[Label], unreviewed: Sequence[Label], *, keep: Container[str], spot_checks: int,
              seed: int) -> list[Listed]:
    """Spot checks in the order of their draw; then what is doubtful, the least sure first; then what else is in `keep`.

    `unreviewed` are the labels as they would be without people: an item stays where it was listed when it has been
    answered, and spot checks are drawn from what the teacher alone got accepted.
    """
    current, alone = {label.item: label for label in labels}, {label.item: label for label in unreviewed}
    machine = [alone.get(label.item, label) for label in labels
               if label.item in alone or not label.source.startswith(HUMAN)]
    listed = [Listed(current[label.item], SPOT_CHECK) for label in sample(machine, spot_checks, seed)]
    drawn = {one.label.item for one in listed}
    rest = [label for label in machine if label.item not in drawn]
    doubtful = sorted((label for label in rest if not label.accepted or label.reason), key=_sureness)
    listed += [Listed(current[label.item], label.reason or "not accepted") for label in doubtful]
    shown = {one.label.item for one in listed}
    return listed + [Listed(label, "reviewed before" if label.source.startswith(HUMAN) else "kept") for label in labels
                     if label.item in keep and label.item not in shown]


def _sureness(label: Label) -> tuple[bool, bool, float]:
    told = label.probability if label.probability is not None else label.confidence
    return label.accepted, told is not None, told or 0.0
