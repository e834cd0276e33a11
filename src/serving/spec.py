"""What `conf/serving/` says: where the cascade listens, how much it takes, and how long anybody waits."""

from dataclasses import dataclass

from src.errors import ConfigError


@dataclass
class ServingSpec:
    """Times are seconds unless the key says otherwise.

    The student answers up to `batch_images` at once, and an image waits at most `batch_wait_ms` for others. More than
    `most_pending` images at a time are turned away (429), as are more than `requests_per_second` by one client; so are
    (413) more than `most_items` in one request and bodies of more than `most_body_mb`. A client waits at most `wait_s`;
    the LLM has `teacher_within_s`, and `max_usd_per_hour` for all; then a person is asked. A reviewer holds an item for
    `lease_s`, and `second_opinion_share` of the items are shown to a second one. What was escalated is kept for
    `keep_days`, `keep_gb` of it at the most. What is accepted has `shutdown_s` to be answered when the server is told
    to stop.
    """

    host: str
    port: int
    batch_images: int
    batch_wait_ms: float
    most_pending: int
    most_items: int
    most_body_mb: float
    requests_per_second: float | None
    wait_s: float
    teacher_within_s: float
    max_usd_per_hour: float
    lease_s: float
    second_opinion_share: float
    keep_days: float
    keep_gb: float
    shutdown_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError("serving.port", self.port, "0 (any that is free) to 65535")
        for key in ("batch_images", "most_pending", "most_items"):
            if getattr(self, key) < 1:
                raise ConfigError(f"serving.{key}", getattr(self, key), "1 or more")
        if self.most_items > self.most_pending:
            raise ConfigError("serving.most_items", self.most_items, f"at most serving.most_pending="
                              f"{self.most_pending}, or the largest request could never be taken")
        for key in ("most_body_mb", "wait_s", "teacher_within_s", "lease_s", "keep_days", "keep_gb", "shutdown_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"serving.{key}", getattr(self, key), "more than 0")
        for key in ("batch_wait_ms", "max_usd_per_hour"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"serving.{key}", getattr(self, key), "0 or more")
        if self.requests_per_second is not None and not self.requests_per_second > 0:
            raise ConfigError("serving.requests_per_second", self.requests_per_second,
                              "more than 0, or null for no limit")
        if not 0 <= self.second_opinion_share <= 1:
            raise ConfigError("serving.second_opinion_share", self.second_opinion_share, "a share in [0, 1]")
