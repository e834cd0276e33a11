"""The books of confidence: every look at gold's *certify* part costs some of it, and it is spent before the look.

Each certification takes a share of what is left of delta: with the default of one half, delta/2, delta/4, and so on.
The sum never exceeds delta, so that all promises made on this gold hold together with a chance of 1 - delta (union
bound), in whatever number; nobody has to say beforehand how often, and each time costs a few gold items more (a half
as much delta: 7 at 0.90, 14 at 0.95). This holds as long as whatever is certified next was not made from what the
*certify* part showed, beyond whether the promises before were granted: it must never be trained, tuned or chosen on.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from src.errors import DataError

LEAST = 1e-6  # what is smaller is as good as nothing: 0.95 would take 270 items without an error


@dataclass(frozen=True)
class Spent:
    """One certification: `question` names the student and what was asked of it, `items` are the keys of the *certify*
    part, `delta` is what it cost. `run` is the training run's id, `time` when it was asked (ISO 8601)."""

    question: str
    items: tuple[str, ...]
    delta: float
    run: str
    time: str


@dataclass(frozen=True)
class Budget:
    """`delta` is what the next certification may cost, `left` what is left after it; `earlier` counts those that were
    paid for on this gold. `paid` says that this very question was: its answer is known, and costs nothing again."""

    delta: float
    left: float
    earlier: int
    paid: bool


def budget(earlier: Iterable[Spent], question: str, items: Collection[str], *, delta: float, spend: float) -> Budget:
    """What is left for `question` on these items, of `delta` in all, if each certification takes the share `spend`.

    Gold is the same gold if a single item is: what was learnt about it is known. Raises DataError where nothing is
    left.
    """
    keys = frozenset(items)
    same = [entry for entry in earlier if not keys.isdisjoint(entry.items)]
    left = delta - sum(entry.delta for entry in same)
    for entry in same:
        if entry.question == question and keys == frozenset(entry.items):
            return Budget(entry.delta, max(0.0, left), len(same), True)
    if left < LEAST:
        raise DataError(
            f"{len(same)} certification(s) on this gold have used up its confidence (calibration.delta={delta}): "
            "certify on gold items that are new, or promise less with a larger calibration.delta. A smaller "
            "calibration.spend from the start leaves more for later."
        )
    return Budget(left * spend, left * (1 - spend), len(same), False)


def read_ledger(path: Path) -> list[Spent]:
    """Everything that was spent, oldest first; empty without a file. Raises DataError for a line that is broken."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = json.loads(line)
            found.append(Spent(**{**values, "items": tuple(values["items"]), "delta": float(values["delta"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number}, cannot be read ({error}): it says what confidence was spent. "
                            "Restore it from a copy.") from error
    return found


def spend(path: Path, question: str, items: Collection[str], *, delta: float, share: float, run: str,
          time: str) -> Budget:
    """Write down what `question` costs, and return it; nobody else can spend in between. To be called before gold's
    *certify* part is looked at. Raises DataError where nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        given = budget(read_ledger(path), question, items, delta=delta, spend=share)
        if not given.paid:
            entry = Spent(question, tuple(sorted(items)), given.delta, run, time)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry)) + "\n")
        return given
