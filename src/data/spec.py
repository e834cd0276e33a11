"""What `conf/data/` says: where items come from, how they are shown, and how they are split."""

from dataclasses import dataclass
from typing import Any

from src.errors import ConfigError

KINDS = ("images", "texts")
MOST_BITS = 16  # unrelated pictures differ by about 32


@dataclass
class Shown:
    """How an image is shown to a teacher: enlarged to `size` pixels where it is smaller, sharpened, JPEG-encoded."""

    size: int
    sharpen: bool
    jpeg_quality: int

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ConfigError("data.shown.size", self.size, "16 to 4096 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError("data.shown.jpeg_quality", self.jpeg_quality, "1 to 100")


@dataclass
class DataSpec:
    """Sizes are numbers of items; `validation_share` is the part of the labelled pool that judges training.

    `source` is a partial call (Hydra's `_target_`) of a function `bring(into, *, root, classes, download) -> Path`
    that returns what is to be read: `into`, which it has filled, or a place that existed. `kind` says what lies there:
    images in a folder, or texts, one in each row of a CSV file with the columns `text_column`, `truth_column` and
    `group_column`. `stand_in`, where there is one, brings drawn images when the real ones cannot be had in rehearsal;
    `drawn` says that `source` itself does. `near_duplicates` is how many of 64 bits the perceptual hashes of two images
    that look the same may differ by; None seeks none. How images are `shown`, `max_pixels` and `near_duplicates` say
    nothing about texts. `escalations` says which escalated items are labelled before all others: None, or "served",
    what the task's server kept.
    """

    name: str
    kind: str
    source: dict[str, Any]
    stand_in: dict[str, Any] | None
    drawn: bool
    root: str | None
    truth_csv: str | None
    text_column: str | None
    truth_column: str | None
    group_column: str | None
    gold_csv: str | None
    gold_size: int
    test_size: int
    validation_share: float
    split_seed: int
    near_duplicates: int | None
    max_pixels: int
    shown: Shown
    escalations: str | None = None  # configs of earlier runs lack this key

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("data.kind", self.kind, f"one of {', '.join(KINDS)}")
        for key, least in (("gold_size", 2), ("test_size", 0), ("max_pixels", 1), ("split_seed", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"data.{key}", getattr(self, key), f"{least} or more")
        if not 0 < self.validation_share < 1:
            raise ConfigError("data.validation_share", self.validation_share, "between 0 and 1")
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= MOST_BITS:
            raise ConfigError("data.near_duplicates", self.near_duplicates, f"0 to {MOST_BITS} of 64 bits, or null")
        if self.escalations not in (None, "served"):
            raise ConfigError("data.escalations", self.escalations, "served, or null for none")
        if self.escalations and self.kind != "images":
            raise ConfigError("data.escalations", self.escalations, "only images are served; give null")
        for key in ("text_column", "truth_column", "group_column"):
            if self.kind == "images" and getattr(self, key) is not None:
                raise ConfigError(f"data.{key}", getattr(self, key),
                                  "images have no columns; data.truth_csv names their truth, data=csv reads texts")
        if self.kind == "texts" and self.truth_csv is not None:
            raise ConfigError("data.truth_csv", self.truth_csv,
                              "the truth of texts is a column of their own file; name it with data.truth_column")
        if self.kind == "texts" and not self.text_column:
            raise ConfigError("data.text_column", self.text_column, "the name of the column that holds the texts")
