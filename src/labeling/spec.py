"""What `conf/labeler/` says: how much is asked, how fast, and at which cost at the most."""

from dataclasses import dataclass

from src.errors import ConfigError


@dataclass
class LabelerSpec:
    """`max_items` is how many items of the pool shall have labels, in all runs together; gold's *choose* part is
    labelled besides, so that the teacher can be judged. Times are seconds."""

    max_items: int
    passes: int
    concurrency: int
    max_attempts: int
    max_content_attempts: int
    backoff_s: float
    max_backoff_s: float
    max_cost_usd: float
    dry_run: bool
    retry_failed: bool

    def __post_init__(self) -> None:
        for key in ("max_items", "passes", "concurrency", "max_attempts", "max_content_attempts"):
            if getattr(self, key) < 1:
                raise ConfigError(f"labeler.{key}", getattr(self, key), "1 or more")
        for key in ("backoff_s", "max_backoff_s", "max_cost_usd"):
            if getattr(self, key) < 0:
                raise ConfigError(f"labeler.{key}", getattr(self, key), "0 or more")
