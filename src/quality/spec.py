"""What `conf/quality/` says: which of a teacher's answers students may learn from."""

from dataclasses import dataclass

from src.errors import ConfigError

HEURISTICS = ("flag", "drop", "off")


@dataclass
class QualitySpec:
    """`heuristics` says what happens to answers that look doubtful by themselves: a person is shown them (flag),
    students do not learn from them either (drop), or nothing (off). `reviewer` names who edits the review file."""

    min_confidence: float
    heuristics: str
    reviewer: str

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError("quality.min_confidence", self.min_confidence, "in [0, 1]; 0 accepts all agreements")
        if self.heuristics not in HEURISTICS:
            raise ConfigError("quality.heuristics", self.heuristics, f"one of {', '.join(HEURISTICS)}")
        if not self.reviewer:
            raise ConfigError("quality.reviewer", self.reviewer, "a name for the person who reviews")
