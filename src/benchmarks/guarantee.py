"""How often a promised precision is broken: fresh gold drawn again and again from a world whose truth is known.

The student is simulated: its logits are the true class's plus noise, twice too sure of themselves, so that one
temperature mends them, which no real student's are quite. Everything after the logits is the project's own code. The
worst case is a student whose confidence says nothing and whose answers are a hair less precise than promised: nearly
every certificate is a broken promise there, so that delta is all that protects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import OmegaConf
from scipy.stats import binom

from src.calibration.calibrators import Calibrator, fit_unchecked
from src.calibration.certificate import certify, declare, usual_threshold
from src.config import CONF
from src.console import progress, say, table
from src.metrics import Bools, Floats, Ints, proportion

DRAWS = 1000
DELTA = 0.05
SIZES = (150, 300, 600)
TARGETS = (0.90, 0.95)
CLASSES = 5
WORLD = 4_000  # items, drawn with replacement: its own precision is the truth, exactly
SIGNAL, NOISE, TOO_SURE = 3.0, 1.2, 2.0
HAIR = 1e-3


class World(NamedTuple):
    """[N, C] logits and [N] true classes."""

    logits: Floats
    truth: Ints


@dataclass(frozen=True)
class Way:
    """How a threshold is found: the calibrator's `method`; whether what calibrates is `apart` from what tests, or all
    of gold does both; whether thresholds are `tested`, or the lowest that reaches the target on gold is taken."""

    method: str
    apart: bool
    tested: bool


SHIPPED = "certified"
WAYS = {
    SHIPPED: Way("temperature", apart=True, tested=True),
    "usual threshold": Way("temperature", apart=False, tested=False),
    "certified on what calibrates": Way("temperature", apart=False, tested=True),
    "the same, isotonic": Way("isotonic", apart=False, tested=True),
}


@dataclass(frozen=True)
class Outcome:
    """Of `draws`: how many came to a threshold, and how many of these fall short of the target in truth; the mean
    share of all items that they accept."""

    draws: int
    found: int
    broken: int
    coverage: float


def run(*, draws: int = DRAWS, seed: int = 0) -> None:
    """Print a table for each simulated student; one to two minutes on one core."""
    say(f"Simulated students; {draws} draws of gold, delta {DELTA}. A promise is broken where what is accepted is, in "
        f"truth, less precise than the target; with {most_broken(draws, DELTA)} or fewer broken, delta may well hold. "
        "Of gold, one half certifies, where what calibrates is kept apart.")
    useful = informative(seed)
    accuracy = (useful.logits.argmax(axis=1) == useful.truth).mean()
    students: list[tuple[str, World, tuple[float, ...]]] = [
        (f"confidence means something, accuracy {accuracy:.2f}", useful, TARGETS)]
    students += [(f"worst case, all answers {target - HAIR:.3f} precise", uninformative(target, seed), (target,))
                 for target in TARGETS]
    rows: dict[str, list[tuple[str, ...]]] = {}
    with progress("drawing gold", len(students) * len(SIZES)) as update:
        for place, (name, simulated, targets) in enumerate(students):
            for step, size in enumerate(SIZES, start=1):
                found = study(simulated, size, targets, DELTA, draws=draws, seed=seed)
                rows[name] = rows.get(name, []) + [_row(size, *key, outcome) for key, outcome in found.items()]
                update(place * len(SIZES) + step)
    for name, lines in rows.items():
        table(f"SIMULATED: {name}", lines, HEADER)


def study(simulated: World, size: int, targets: Sequence[float], delta: float, *, draws: int, seed: int,
          ways: Sequence[str] = tuple(WAYS)) -> dict[tuple[float, str], Outcome]:
    """By target and way; all of them meet the same gold of `size` items."""
    rng = np.random.default_rng([seed, size])
    results: dict[tuple[float, str], list[tuple[bool, float]]] = {(t, way): [] for t in targets for way in ways}
    for _ in range(draws):
        gold = _part(simulated, rng.integers(len(simulated.truth), size=size))
        choose, own = (_part(gold, half) for half in np.array_split(np.arange(size), 2))
        for apart, method in sorted({(WAYS[name].apart, WAYS[name].method) for name in ways}):
            calibrator = fit_unchecked(method, *(choose if apart else gold))
            seen, tested = (_judged(calibrator, part) for part in ((choose, own) if apart else (gold, gold)))
            confidence, correct = _judged(calibrator, simulated)
            for target, name in results:
                way = WAYS[name]
                if (way.apart, way.method) != (apart, method):
                    continue
                threshold = _tested(seen, tested, target, delta) if way.tested else usual_threshold(*seen, target)
                if threshold is not None:
                    accepted = confidence >= threshold
                    broken = correct[accepted].mean() < target
                    results[target, name].append((bool(broken), float(accepted.mean())))
    return {key: Outcome(draws, len(found), sum(broken for broken, _ in found),
                         float(np.mean([coverage for _, coverage in found])) if found else 0.0)
            for key, found in results.items()}


def informative(seed: int) -> World:
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=WORLD)
    logits = rng.normal(scale=NOISE, size=(WORLD, CLASSES))
    logits[np.arange(WORLD), truth] += SIGNAL
    return World(TOO_SURE * logits, truth)


def uninformative(target: float, seed: int) -> World:
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=WORLD)
    wrong = rng.permutation(WORLD) < round((1 - target + HAIR) * WORLD)
    # Sorted by confidence, right and wrong take turns as evenly as can be: every threshold is as bad as the next.
    logits = np.zeros((WORLD, CLASSES))
    answers = np.where(wrong, (truth + rng.integers(1, CLASSES, size=WORLD)) % CLASSES, truth)
    logits[np.arange(WORLD), answers] = _evenly(wrong, rng)
    return World(logits, truth)


def most_broken(draws: int, delta: float) -> int:
    """What a promise that is broken with a chance of `delta` exceeds in less than one of 100 studies."""
    return int(binom.ppf(0.99, draws, delta))


def _evenly(wrong: Bools, rng: np.random.Generator) -> Floats:
    """[N] logits between 2 and 5 that tell nothing of who is wrong, ties and luck included."""
    places = np.empty(len(wrong))
    for kind in (wrong, ~wrong):
        places[kind] = rng.permutation((np.arange(kind.sum()) + 0.5) / kind.sum())
    return 2 + 3 * places


def _tested(seen: tuple[Floats, Bools], tested: tuple[Floats, Bools], target: float, delta: float) -> float | None:
    thresholds = declare(*seen, _coverages(), target=target, delta=delta, certify_size=len(tested[0]))
    return certify(*tested, thresholds, target=target, delta=delta).threshold


def _judged(calibrator: Calibrator, part: World) -> tuple[Floats, Bools]:
    """[N] confidences, and whether the answers are right."""
    probabilities = calibrator(part.logits)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == part.truth


def _part(whole: World, index: Ints) -> World:
    return World(whole.logits[index], whole.truth[index])


@cache
def _coverages() -> list[float]:
    """The grid that users start from."""
    return [float(share) for share in OmegaConf.load(Path(CONF, "calibration", "default.yaml")).coverages]


HEADER = ("gold", "target", "way", "broken", "of all draws", "found", "coverage of these")


def _row(size: int, target: float, way: str, outcome: Outcome) -> tuple[str, ...]:
    broken = proportion(outcome.broken, outcome.draws)
    return (str(size), f"{target:.2f}", way, str(outcome.broken),
            f"{broken.value:.1%} [{broken.low:.1%}, {broken.high:.1%}]", f"{outcome.found / outcome.draws:.1%}",
            f"{outcome.coverage:.1%}" if outcome.found else "")
