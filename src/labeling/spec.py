"""What `conf/labeler/` says: how much is asked, how fast, and at which cost at the most."""

from dataclasses import dataclass

from src.errors import ConfigError
from src.task import SECOND_LOOK


@dataclass
class LabelerSpec:
    """`max_items` is how many items of the pool shall have labels, in all runs together; gold's *choose* part is
    labelled besides, so that the teacher can be judged. Times are seconds. `adaptive` learns the rate that the server
    takes from its refusals; `preflight` looks at a handful of answers first, and `pilot` is how many questions are
    paid for before the rest is estimated."""

    max_items: int
    passes: int
    concurrency: int
    max_attempts: int
    max_content_attempts: int
    backoff_s: float
    max_backoff_s: float
    max_cost_usd: float
    requests_per_minute: float | None
    tokens_per_minute: float | None
    adaptive: bool
    preflight: bool
    pilot: int
    dry_run: bool
    retry_failed: bool

    def __post_init__(self) -> None:
        for key in ("max_items", "passes", "concurrency", "max_attempts", "max_content_attempts"):
            if getattr(self, key) < 1:
                raise ConfigError(f"labeler.{key}", getattr(self, key), "1 or more")
        for key in ("backoff_s", "max_backoff_s", "max_cost_usd", "pilot"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"labeler.{key}", getattr(self, key), "0 or more")
        for key in ("requests_per_minute", "tokens_per_minute"):
            if (limit := getattr(self, key)) is not None and not limit > 0:
                raise ConfigError(f"labeler.{key}", limit, "more than 0, or null for no limit")
        if self.passes >= SECOND_LOOK:
            raise ConfigError("labeler.passes", self.passes, f"below {SECOND_LOOK}")
