"""The task and the records that flow through it.

Knows nothing about where items come from, who annotates them or what learns from them. Imports only `errors`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from src.errors import ConfigError

KINDS = ("classify",)
METRICS = ("accuracy", "f1_macro")


@dataclass
class TaskSpec:
    """What is asked about every item. Class names, their order and the prompts stand in `conf/task/` alone.

    `classes` maps each class to a one-line definition; `aliases` maps other spellings to classes; the prompts are
    Jinja templates over `classes` (names), `definitions` and `size` (pixels). `confusion`, optional, holds by true
    class how often people answered each class, and is the rehearsal teacher's default error model. `migrations`,
    optional, holds by earlier version what became of its classes: old name → the new one, or a list of them where it
    was split, empty where it is gone; classes that are not named kept their names.
    """

    name: str
    version: int
    kind: str
    classes: dict[str, str]
    aliases: dict[str, str]
    system_prompt: str
    user_prompt: str
    metric: str
    confusion: dict[str, list[int]] = field(default_factory=dict)
    migrations: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("task.kind", self.kind, f"one of {', '.join(KINDS)}")
        if self.metric not in METRICS:
            raise ConfigError("task.metric", self.metric, f"one of {', '.join(METRICS)}")
        if len(self.classes) < 2:
            raise ConfigError("task.classes", list(self.classes), "at least two classes")
        for name in self.classes:
            if spelling(name) != name:
                raise ConfigError("task.classes", name, f"lower case with underscores, as in {spelling(name)!r}")
        for alias, name in self.aliases.items():
            if name not in self.classes:
                raise ConfigError(f"task.aliases.{alias}", name, f"one of {', '.join(self.classes)}")
        for name, row in self.confusion.items():
            if name not in self.classes or len(row) != len(self.classes) or min(row) < 0 or sum(row) == 0:
                raise ConfigError(f"task.confusion.{name}", row, f"a class with {len(self.classes)} counts")
        for version, moves in self.migrations.items():
            if version >= self.version:
                raise ConfigError("task.migrations", version, f"a version below task.version={self.version}")
            for old, new in moves.items():
                names = new if isinstance(new, list) else [new]
                if not all(isinstance(name, str) and name in self.classes for name in names):
                    raise ConfigError(f"task.migrations.{version}.{old}", new,
                                      f"one of {', '.join(self.classes)}, or a list of these")

    @property
    def names(self) -> list[str]:
        """The class names, in the order of every probability vector and confusion matrix."""
        return list(self.classes)

    def successors(self, version: int) -> dict[str, list[str]]:
        """What became of the classes of that version, by their old names: one class now, several, or none. Those that
        kept their names need not be among them."""
        moves = self.migrations.get(version, {})
        return {spelling(old): new if isinstance(new, list) else [new] for old, new in moves.items()}

    def map_label(self, raw: str | None) -> str | None:
        """The class that an annotator's spelling means, or None where it means none."""
        if raw is None:
            return None
        name = spelling(raw)
        if name in self.classes:
            return name
        return next((c for alias, c in self.aliases.items() if spelling(alias) == name), None)


def spelling(raw: str) -> str:
    """Lower case, spaces and hyphens to underscores, nothing else around it."""
    return re.sub(r"[\s\-_]+", "_", raw.strip().strip("\"'.").lower())


NO_ATTRIBUTES: Mapping[str, str] = {}  # one for all items that have none, which may be a million


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to label.

    `key` is the sha256 of the source bytes; `payload` is where these lie (images) or what they say (text); items of
    one `group` (a photographer, a customer) never stand on both sides of a split; items of one `twin` look the same,
    or nearly, though their bytes differ. `truth` is a class or None, and is never shown to a teacher.
    """

    key: str
    payload: Path | str
    name: str
    group: str | None = None
    twin: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES, hash=False)
    truth: str | None = None


class Failure(StrEnum):
    """Why an annotation carries no usable label."""

    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_REQUEST = "bad_request"
    REFUSAL = "refusal"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    INVALID_JSON = "invalid_json"
    UNKNOWN_LABEL = "unknown_label"
    WITHDRAWN = "withdrawn"
    LOST = "lost"  # asked by a process that died before it could store what came back

    @property
    def transient(self) -> bool:
        """Whether the same question may well be answered later; the others are asked again only on request."""
        return self in (Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.TIMEOUT, Failure.CONNECTION, Failure.LOST)


SECOND_LOOK = 1000  # passes from here on are further looks at items that seemed mislabelled


@dataclass(frozen=True, slots=True)
class Annotation:
    """One answer by one annotator about one item, as it came: `label` is the annotator's own spelling.

    The key is item, annotator, prompt_hash, pass_index and attempt; the store numbers the attempts. `confidence` is
    what the annotator said, in [0, 1], or None. Costs are US dollars, latency is seconds, tokens are counts as the
    provider reports them. `job` names the run that paid.
    """

    item: str
    annotator: str
    prompt_hash: str
    task: str
    pass_index: int = 0
    attempt: int = 0
    label: str | None = None
    failure: Failure | None = None
    confidence: float | None = None
    why: str = ""
    cost_usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    latency_s: float = 0.0
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    model: str = ""
    provider: str = ""
    shown_hash: str = ""
    reply: str = ""
    task_version: int = 1
    job: str = ""


@dataclass(frozen=True)
class Panel:
    """Whose answers make up a label.

    `members` are annotators asked about every item, in passes 0 to `passes` - 1. An `arbiter`, where there is one, is
    asked only where the members disagree (in pass 0). Up to `second_looks` further answers of anybody here, in passes
    from SECOND_LOOK on, count where they were asked for.
    """

    members: tuple[str, ...]
    passes: int
    arbiter: str | None = None
    second_looks: int = 0

    def counts(self, annotator: str, pass_index: int) -> bool:
        """Whether an answer is one of those that count."""
        if annotator in self.members and pass_index < self.passes:
            return True
        if annotator == self.arbiter and pass_index == 0:
            return True
        further = SECOND_LOOK <= pass_index < SECOND_LOOK + self.second_looks
        return further and (annotator in self.members or annotator == self.arbiter)


@dataclass(frozen=True)
class Label:
    """What quality control concludes from one item's annotations.

    `label` is None where nothing could be concluded; `accepted` says whether students may learn from it and `reason`
    why not (or why a person should look all the same). `votes` holds each annotator's mapped label in pass order.
    `confidence` is the least that an annotator said; `probability` is how likely the label is right, calibrated on
    gold, or None where gold cannot tell. `distribution`, where known, holds a probability for every class in the
    task's order and sums to one: what a student may learn from instead of the one label.
    """

    item: str
    label: str | None
    accepted: bool
    source: str
    reason: str = ""
    confidence: float | None = None
    votes: tuple[str | None, ...] = ()
    why: str = ""
    probability: float | None = None
    distribution: tuple[float, ...] = ()
