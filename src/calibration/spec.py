"""What `conf/calibration/` says: how scores become probabilities, and what is to be promised of the answers."""

from dataclasses import dataclass
from itertools import pairwise

from src.errors import ConfigError

METHODS = ("temperature", "vector", "isotonic", "none")


@dataclass
class CalibrationSpec:
    """`method` is how probabilities are mended: one number for all classes (temperature), two for each (vector), a
    rising curve for each (isotonic), or not at all (none).

    `target_precision` is the share of the answers given that shall be right at least; `delta` how likely any promise
    made on this gold may be broken. Each certification on the same gold takes `spend` of what is left of `delta`.
    `coverages` are the shares of items, smallest first, whose thresholds are tested; what share each threshold really
    has is for the data to say.
    """

    method: str
    target_precision: float
    delta: float
    spend: float
    coverages: list[float]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError("calibration.method", self.method, f"one of {', '.join(METHODS)}")
        if not 0 < self.target_precision < 1:
            raise ConfigError("calibration.target_precision", self.target_precision, "between 0 and 1; nothing "
                              "certifies that every answer is right")
        if not 0 < self.delta < 0.5:
            raise ConfigError("calibration.delta", self.delta, "between 0 and 0.5; 0.05 is a promise with 95% "
                              "confidence")
        if not 0 < self.spend <= 1:
            raise ConfigError("calibration.spend", self.spend, "in (0, 1]; 1 leaves nothing for a second certification")
        if not self.coverages or not all(0 < share <= 1 for share in self.coverages) or any(
                later <= earlier for earlier, later in pairwise(self.coverages)):
            raise ConfigError("calibration.coverages", self.coverages, "one or more shares in (0, 1], rising")
