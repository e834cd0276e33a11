"""What `conf/quality/` says: how answers become labels, and which of these students may learn from."""

from dataclasses import dataclass

from src.errors import ConfigError
from src.quality.consensus import METHODS

DISAGREEMENTS = ("drop", "soft")
HEURISTICS = ("flag", "drop", "off")


@dataclass
class QualitySpec:
    """`consensus` is how several answers become one label, `disagreements` what happens where they do not: students do
    not see the item (drop), or learn from a probability for every class (soft). Opinions are weighed by the members'
    own passes: where each item has one of these alone, dawid_skene is no other than majority, and crowdlab takes the
    student's word for as good as an answer.

    `min_confidence` applies to what the annotators said, `min_probability` to what gold says of it. `heuristics` says
    what happens to answers that look doubtful by themselves: a person is shown them (flag), students do not learn
    from them either (drop), or nothing (off). `reviewer` names who edits the review file.

    The `second_look_share` of the pool that looks most mislabelled is asked `second_looks` times more. Students that
    judge labels they did not learn from are trained in `folds`. `gold_half_width` is how far the teacher's accuracy
    may lie from the ends of its 95% interval before more gold is asked for. `spot_checks` accepted labels, drawn at
    random, are put before a person besides what is doubtful.
    """

    consensus: str
    disagreements: str
    min_confidence: float
    min_probability: float
    heuristics: str
    second_look_share: float
    second_looks: int
    folds: int
    gold_half_width: float
    spot_checks: int
    reviewer: str

    def __post_init__(self) -> None:
        for key, allowed in (("consensus", METHODS), ("disagreements", DISAGREEMENTS), ("heuristics", HEURISTICS)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"quality.{key}", getattr(self, key), f"one of {', '.join(allowed)}")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError("quality.min_confidence", self.min_confidence, "in [0, 1]; 0 accepts all agreements")
        if not 0 <= self.min_probability < 1:
            raise ConfigError("quality.min_probability", self.min_probability, "in [0, 1); 0 is off")
        if not 0 <= self.second_look_share <= 1:
            raise ConfigError("quality.second_look_share", self.second_look_share, "in [0, 1]; 0 asks nothing again")
        if self.second_looks < 1:
            raise ConfigError("quality.second_looks", self.second_looks, "1 or more; quality.second_look_share=0 is "
                              "what asks nothing again")
        if self.folds < 2:
            raise ConfigError("quality.folds", self.folds, "2 or more")
        if not 0 < self.gold_half_width < 0.5:
            raise ConfigError("quality.gold_half_width", self.gold_half_width, "between 0 and 0.5")
        if self.spot_checks < 0:
            raise ConfigError("quality.spot_checks", self.spot_checks, "0 or more")
        if not self.reviewer:
            raise ConfigError("quality.reviewer", self.reviewer, "a name for the person who reviews")
