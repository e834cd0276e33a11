"""What `conf/cascade/` says: when the student answers, when the LLM does, and how much is looked at all the same."""

from dataclasses import dataclass

from src.cascade.policy import Policy
from src.errors import ConfigError


@dataclass
class CascadeSpec:
    """`threshold`, where given, takes the place of the certified one, and nothing is promised of it. The LLM's answer
    counts from `teacher_confidence` on, its calibrated probability of being right; with 0, always. `audit_share` of
    all requests is escalated however sure the student is, by a draw of `seed`."""

    threshold: float | None
    teacher_confidence: float
    audit_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError("cascade.threshold", self.threshold, "in [0, 1], or null for the certified one")
        if not 0 <= self.teacher_confidence <= 1:
            raise ConfigError("cascade.teacher_confidence", self.teacher_confidence, "in [0, 1]; 0 takes every answer "
                              "of the LLM")
        if not 0 <= self.audit_share <= 1:
            raise ConfigError("cascade.audit_share", self.audit_share, "in [0, 1]; 0.01 is one request of a hundred")
        if self.seed < 0:
            raise ConfigError("cascade.seed", self.seed, "0 or more")

    def policy(self, certified: float | None) -> Policy:
        """With the `certified` threshold, None where none is, unless another one was given."""
        threshold = certified if self.threshold is None else self.threshold
        return Policy(threshold, self.teacher_confidence, self.audit_share, self.seed)
