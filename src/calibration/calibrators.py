"""Scores → probabilities that can be taken at their word, fitted on gold's *choose* part.

Pure: [N, C] logits and [N] true class indices in, a calibrator out, which can lie beside a checkpoint as JSON. Where a
student gives probabilities, their logarithms are logits as well as any. Knows nothing about students, and must never
see gold's *certify* part.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from src.calibration.spec import METHODS
from src.errors import ConfigError, DataError
from src.metrics import Floats, Ints

# Below 0.05, softmax of anything is 0 or 1; above 20, everything is equally likely.
COLDEST, HOTTEST = 0.05, 20.0
LEAST = 1e-30  # a probability of 0 has no logarithm; float32 knows none much smaller
SUM_TOLERANCE = 1e-3  # of a row, as in `metrics.score`
WAY_OUT = "Check more items by hand (more rows in data.gold_csv, a larger data.gold_size), or give " \
          "calibration.method=none."


class Calibrator(Protocol):
    """[N, C] logits → [N, C] probabilities; every row sums to one."""

    method: ClassVar[str]

    def __call__(self, logits: Floats) -> Floats: ...


@dataclass(frozen=True)
class Uncalibrated:
    """The student's probabilities as they are."""

    method: ClassVar[str] = "none"

    def __call__(self, logits: Floats) -> Floats:
        return _softmax(logits)


@dataclass(frozen=True)
class Temperature:
    """softmax(logits / temperature): one number, more than 1 where the student is too sure of itself (Guo et al.,
    2017). No answer changes, and it takes little gold."""

    temperature: float
    method: ClassVar[str] = "temperature"

    def __call__(self, logits: Floats) -> Floats:
        return _softmax(logits / self.temperature)


@dataclass(frozen=True)
class Vector:
    """softmax(weights · logits + biases), a weight and a bias for each class (Guo et al., 2017). Answers may change."""

    weights: tuple[float, ...]
    biases: tuple[float, ...]
    method: ClassVar[str] = "vector"

    def __call__(self, logits: Floats) -> Floats:
        return _softmax(logits * np.array(self.weights) + np.array(self.biases))


@dataclass(frozen=True)
class Isotonic:
    """A rising curve for each class, one against the rest, through the points (`said`, `found`); rows are normalised
    again (Zadrozny and Elkan, 2002). Bends to any shape, and wants far more than 1,000 gold items. Answers may change.
    """

    said: tuple[tuple[float, ...], ...]
    found: tuple[tuple[float, ...], ...]
    method: ClassVar[str] = "isotonic"

    def __call__(self, logits: Floats) -> Floats:
        plain = _softmax(logits)
        curved = np.column_stack([np.interp(plain[:, c], said, found)
                                  for c, (said, found) in enumerate(zip(self.said, self.found, strict=True))])
        total = curved.sum(axis=1, keepdims=True)
        # Where every class is ruled out, the curves say nothing.
        return np.where(total > 0, np.divide(curved, total, out=np.zeros_like(curved), where=total > 0), plain)


KINDS: dict[str, type[Any]] = {kind.method: kind for kind in (Temperature, Vector, Isotonic, Uncalibrated)}


def to_logits(probabilities: Floats) -> Floats:
    """Logarithms of [N, C] probabilities. Raises DataError, naming the first row that is none."""
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] < 2:
        raise DataError(f"The student's scores have shape {given.shape}, and N×C with two classes or more are needed: "
                        "export or train it again.")
    _refuse_infinite(given)
    sums = given.sum(axis=1)
    wrong = (np.abs(sums - 1) > SUM_TOLERANCE) | (given < 0).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"The student's scores for item {row} sum to {sums[row]:.4g}, the least is "
                        f"{given[row].min():.4g}: they are no probabilities. A softmax may be missing after an export; "
                        "export or train it again.")
    return np.asarray(np.log(np.maximum(given, LEAST)))


def fit(method: str, logits: Floats, truth: Ints) -> Calibrator:
    """The calibrator with the least log loss on [N, C] `logits` and [N] `truth`, no item's counting without bound.

    Raises DataError, naming the way out, where gold cannot tell: fewer items than classes, items of one class alone,
    or no mistake among them, so that no confidence would be too high; and ConfigError for a method that is none.
    """
    if method not in METHODS:
        raise ConfigError("calibration.method", method, f"one of {', '.join(METHODS)}")
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(truth)
    if logits.ndim != 2 or truth.shape != logits.shape[:1]:
        raise DataError(f"Scores of shape {logits.shape} for {truth.shape} true classes: one row for each is needed.")
    _refuse_infinite(logits)
    if method == Uncalibrated.method:
        return Uncalibrated()
    n, size = logits.shape
    if n < size:
        raise DataError(f"{n} gold items for {size} classes are too few to calibrate on. {WAY_OUT}")
    if len(np.unique(truth)) < 2:
        raise DataError(f"All {n} gold items to calibrate on are of one class, and a promise about the others would "
                        f"rest on nothing. {WAY_OUT}")
    if (logits.argmax(axis=1) == truth).all():
        raise DataError(f"The student answers all {n} gold items to calibrate on rightly, so how wrong it is when it "
                        f"is unsure cannot be told. {WAY_OUT}")
    return fit_unchecked(method, logits, truth)


def fit_unchecked(method: str, logits: Floats, truth: Ints) -> Calibrator:
    """As `fit`, for parts of what it has looked at."""
    if method == Uncalibrated.method:
        return Uncalibrated()
    if method == Isotonic.method:
        return _isotonic(logits, truth)
    temperature = _temperature(logits, truth)
    return temperature if method == Temperature.method else _vector(logits, truth, temperature)


def to_dict(calibrator: Calibrator) -> dict[str, Any]:
    """Plain values for JSON, which `from_dict` reads."""
    return {"method": calibrator.method, **asdict(calibrator)}  # type: ignore[call-overload]


def from_dict(stored: Mapping[str, Any]) -> Calibrator:
    """Raises DataError for what is no calibrator of ours."""
    values = {key: _tuples(value) for key, value in stored.items() if key != "method"}
    try:
        made: Calibrator = KINDS[stored["method"]](**values)
        numbers = np.hstack([np.ravel(np.asarray(row, dtype=np.float64)) for value in values.values()
                             for row in (value if isinstance(value, tuple) else (value,))] or [np.zeros(1)])
        if not np.isfinite(numbers).all() or values.get("temperature", 1.0) <= 0:
            raise ValueError("numbers out of range")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The stored calibration cannot be read ({error}): calibrate again (python -m src.certify "
                        "run=<id>).") from error
    return made


def _temperature(logits: Floats, truth: Ints) -> Temperature:
    """Searches over log temperature, where the log loss has one valley but for what its floor bends."""
    def loss(log_temperature: float) -> float:
        return float(_floored(logits / math.exp(log_temperature), truth)[0].mean())

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded",
                            options={"xatol": 1e-4})
    return Temperature(math.exp(found.x))


def _vector(logits: Floats, truth: Ints, temperature: Temperature) -> Vector:
    """Starts at the one temperature, and is drawn back to it by as much as one gold item weighs, so that classes with
    little gold stay near it and none can run away."""
    n, size = logits.shape
    home = np.concatenate([np.full(size, 1 / temperature.temperature), np.zeros(size)])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, biases = parameters[:size], parameters[size:]
        losses, gap = _floored(logits * weights + biases, truth)
        away = parameters - home
        slope = np.concatenate([(gap * logits).sum(axis=0), gap.sum(axis=0)]) / n + away / n
        return float(losses.mean() + away @ away / (2 * n)), slope

    found = minimize(loss, home, jac=True, method="L-BFGS-B")
    return Vector(tuple(found.x[:size].tolist()), tuple(found.x[size:].tolist()))


def _floored(logits: Floats, truth: Ints) -> tuple[Floats, Floats]:
    """[N] log losses and their [N, C] slopes by the logits, where one in N is held to be beyond all knowing: of N
    items, a share of 1/N counts as spread evenly over the classes.

    N items cannot show that anything is rarer. Without it, a single photograph for which a student's logits were 1,000
    where others' were 4, and which it got wrong, decided the temperature: in ten fits for five students, the error on
    photographs that were not fitted on (ECE) rose from 0.11 to 0.18 on average; now it falls to 0.08.
    """
    n, size = logits.shape
    log = log_softmax(logits, axis=1)
    own = np.exp(log[np.arange(n), truth])
    likely = (1 - 1 / n) * own + 1 / (n * size)
    gap = np.exp(log)
    gap[np.arange(n), truth] -= 1
    return -np.log(likely), gap * ((1 - 1 / n) * own / likely)[:, None]


def _isotonic(logits: Floats, truth: Ints) -> Isotonic:
    plain = _softmax(logits)
    curves = [_curve(plain[:, c], truth == c) for c in range(plain.shape[1])]
    return Isotonic(tuple(said for said, _ in curves), tuple(found for _, found in curves))


def _curve(said: Floats, is_class: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The points of one class's curve; a class without gold is taken at its word."""
    if not is_class.any():
        return (0.0, 1.0), (0.0, 1.0)
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(said, is_class)
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())


def _softmax(logits: Floats) -> Floats:
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def _refuse_infinite(scores: Floats) -> None:
    wrong = ~np.isfinite(scores).all(axis=1)
    if wrong.any():
        raise DataError(f"The student's scores for item {int(np.argmax(wrong))} hold nan or infinity: its training has "
                        "come apart, or an export has. Train with a smaller student.learning_rate, or export again.")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
