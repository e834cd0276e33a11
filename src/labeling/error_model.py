"""How a stand-in teacher errs: hard items, slips, over-confidence, dressed-up and broken answers.

`ErrorModel` holds the rates and `StandInTeacher` draws answers from them. Every draw is a function of seed, item,
question and how often the question was asked, so neither concurrency nor retries change what is answered. Knows
nothing about HTTP.
"""

import hashlib
import json
import math
import random
from dataclasses import dataclass
from typing import Any

from src.errors import ConfigError
from src.task import TaskSpec

EVEN_ERROR_RATE = 0.10  # where neither the config nor the task says how often the teacher errs

DRESSES = ("fenced_json", "surrounding_prose")
CONTENT_FAULTS = ("broken_json", "unknown_label", "refusal", "truncated", "empty")
TRANSPORT_FAULTS = ("error_in_200", "overloaded", "hang")

STRANGERS = ("none of these", "something else entirely", "not sure what this shows", "unlisted object")
REASONS = ("colour and outline look like", "surface and stem suggest", "overall shape is typical of")
REFUSALS = ("I'm sorry, but I can't help with identifying this image.", "I am unable to classify this picture.")
# As they come in life: the code as number or string, and sometimes a word.
BODY_ERRORS: tuple[tuple[str | int, str], ...] = (
    (429, "Rate limit exceeded upstream"),
    ("429", "Rate limit exceeded upstream"),
    ("rate_limit_exceeded", "Rate limit exceeded upstream"),
    (502, "Provider returned error"),
    ("503", "The model is overloaded"),
)


@dataclass
class ErrorModel:
    """How the stand-in teacher errs; `conf/rehearsal/errors/` holds the values and explains them.

    Rates are shares of questions in [0, 1]. Content faults exclude each other, and so do transport faults and
    dresses: each of these groups sums to at most 1. `teacher` is the place among several teachers; of the errors that
    all passes of one share, `common_errors` are shared by all teachers. `confidence_right` and `confidence_wrong` are
    weights over `confidence_values`, for right and wrong labels.
    """

    seed: int
    teacher: int
    error_rate: float | None
    shared_errors: float
    common_errors: float
    confidence_values: list[float]
    confidence_right: list[float]
    confidence_wrong: list[float]
    label_variants: float
    fenced_json: float
    surrounding_prose: float
    broken_json: float
    unknown_label: float
    refusal: float
    truncated: float
    empty: float
    error_in_200: float
    overloaded: float
    hang: float
    hang_s: float
    burst_every: int
    burst_length: int
    retry_after_s: float
    latency_ms_median: float
    latency_sigma: float

    def __post_init__(self) -> None:
        shares = ("error_rate", "shared_errors", "common_errors", "label_variants")
        for key in (*shares, *DRESSES, *CONTENT_FAULTS, *TRANSPORT_FAULTS):
            rate = getattr(self, key)
            if not (rate is None or 0 <= rate <= 1):
                raise ConfigError(f"rehearsal.errors.{key}", rate, "a share in [0, 1]")
        for key in ("hang_s", "burst_every", "burst_length", "retry_after_s", "latency_ms_median", "latency_sigma"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError(f"rehearsal.errors.{key}", getattr(self, key), "zero or more")
        for group in (DRESSES, CONTENT_FAULTS, TRANSPORT_FAULTS):
            total = sum(getattr(self, key) for key in group)
            if total > 1 + 1e-9:
                raise ConfigError(f"rehearsal.errors.{{{','.join(group)}}}", total, "a sum of at most 1")
        if not self.confidence_values or not all(0 <= value <= 1 for value in self.confidence_values):
            raise ConfigError("rehearsal.errors.confidence_values", self.confidence_values, "values in [0, 1]")
        for key in ("confidence_right", "confidence_wrong"):
            weights = getattr(self, key)
            if len(weights) != len(self.confidence_values) or not min(weights) >= 0 or not 0 < sum(weights) < math.inf:
                allowed = f"{len(self.confidence_values)} weights of zero or more, one for each confidence value"
                raise ConfigError(f"rehearsal.errors.{key}", weights, allowed)


@dataclass(frozen=True)
class Reply:
    """One drawn answer, sent after `delay_s` seconds. `kind` is "label", or the dress or fault that it came with."""

    kind: str
    content: str
    refusal: str | None
    finish_reason: str
    delay_s: float


class StandInTeacher:
    """The error model over one task, without HTTP.

    A true class whose answers are wrong at rate e makes an item hard with probability s*e (s: `shared_errors`): every
    pass then gives the same wrong label. The other items are missed by each pass on its own at (1-s)e / (1-se), so
    any single pass errs at e, and two passes agree more often than independent ones would. Of a second teacher's hard
    items, the share `common_errors` is drawn with the first one's, wrong label included, and the rest for itself.
    """

    def __init__(self, task: TaskSpec, errors: ErrorModel) -> None:
        self.task = task
        self.errors = errors
        self._rows = {truth: self._row(truth) for truth in task.names}
        self._strangers = [words for words in STRANGERS if task.map_label(words) is None]

    def label(self, item: str, truth: str, question: str) -> str:
        """The class that one pass names; `question` tells the passes apart."""
        rate, others, weights = self._rows[truth]
        hard = self.errors.shared_errors * rate
        # What is hard for the first teacher; a stronger one finds a part of the same items hard.
        common = hard if self.errors.teacher == 0 else self.errors.common_errors * hard
        fate = self._draws("item", item)
        if fate.random() < common:
            return fate.choices(others, weights)[0]
        if common < hard:
            fate = self._draws("item", item, self.errors.teacher)
            if fate.random() * (1 - common) < hard - common:
                return fate.choices(others, weights)[0]
        own = self._draws("label", item, question)
        if own.random() * (1 - hard) < rate - hard:
            return own.choices(others, weights)[0]
        return truth

    def reply(self, item: str, truth: str | None, question: str, asked: int) -> Reply:
        """The answer when `question` is put for the `asked`-th time (from 0); without a truth, any class will do.

        A re-ask keeps label, confidence and wording and draws faults and latency anew.
        """
        errors, luck = self.errors, self._draws("luck", item, question, asked)
        fault, transport = self._one_of(CONTENT_FAULTS, luck), self._one_of(TRANSPORT_FAULTS, luck)
        delay = errors.latency_ms_median / 1000 * math.exp(errors.latency_sigma * luck.gauss())
        if transport == "hang":
            delay += errors.hang_s
        if fault == "refusal":
            # Half in the field made for it, half as prose where the JSON should be.
            formal, words = luck.random() < 0.5, luck.choice(REFUSALS)
            return Reply(transport or fault, "" if formal else words, words if formal else None, "stop", delay)

        own = self._draws("words", item, question)
        label = own.choice(self.task.names) if truth is None else self.label(item, truth, question)
        weights = errors.confidence_right if label == truth else errors.confidence_wrong
        answer = {"label": label, "confidence": own.choices(errors.confidence_values, weights)[0]}
        answer["why"] = f"{own.choice(REASONS)} {label.replace('_', ' ')}"
        dress = self._one_of(DRESSES, own)
        if own.random() < errors.label_variants:
            answer["label"] = own.choice(self.variants(label))
        if fault == "unknown_label":
            answer["label"] = luck.choice(self._strangers)

        content, finish = json.dumps(answer), "stop"
        if fault == "broken_json":
            # Cut off or short of its commas: neither can be read by leaving something out.
            content = content[: len(content) // 2] if luck.random() < 0.5 else content.replace(",", "")
        if dress == "fenced_json":
            content = f"```json\n{content}\n```"
        elif dress == "surrounding_prose":
            content = f"Here is my answer:\n{content}\nLet me know if you need anything else."
        if fault == "truncated":
            content, finish = content[: len(content) // 2], "length"
        elif fault == "empty":
            content = ""
        return Reply(transport or fault or dress or "label", content, None, finish, delay)

    def body_error(self, item: str, question: str, asked: int) -> dict[str, Any]:
        """The body of an error that comes with HTTP 200."""
        code, message = self._draws("body", item, question, asked).choice(BODY_ERRORS)
        return {"error": {"code": code, "message": message, "metadata": {"provider_name": "rehearsal"}}}

    def variants(self, name: str) -> list[str]:
        """Other spellings of a class that still map to it: capitals, spaces, hyphens, plurals, the task's aliases."""
        forms = [name.upper(), name.capitalize(), name.replace("_", " "), name.replace("_", "-")]
        forms += [f" {name}.", f"{name}s"] + [alias for alias, meant in self.task.aliases.items() if meant == name]
        return sorted({form for form in forms if form != name and self.task.map_label(form) == name})

    def _row(self, truth: str) -> tuple[float, list[str], list[float]]:
        """How often a class is missed, the other classes, and how often each is named instead."""
        names = self.task.names
        row = self.task.confusion.get(truth)
        right = names.index(truth)
        rate = EVEN_ERROR_RATE if row is None else 1 - row[right] / sum(row)
        counts = [1] * len(names) if row is None or sum(row) == row[right] else row
        others = [name for name in names if name != truth]
        weights = [float(count) for name, count in zip(names, counts, strict=True) if name != truth]
        return rate if self.errors.error_rate is None else self.errors.error_rate, others, weights

    def _draws(self, *key: object) -> random.Random:
        # hash() differs between processes; a digest does not.
        return random.Random(hashlib.sha256(repr((self.errors.seed, *key)).encode()).digest())

    def _one_of(self, kinds: tuple[str, ...], luck: random.Random) -> str | None:
        """At most one of the kinds, each at its own rate; one draw, whatever the rates."""
        left = luck.random()
        for kind in kinds:
            left -= getattr(self.errors, kind)
            if left < 0:
                return kind
        return None
