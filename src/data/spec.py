"""What `conf/data/` says: where items come from, how they are shown, and how they are split."""

from dataclasses import dataclass
from typing import Any

from src.errors import ConfigError


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
    that returns a folder `scan` can read: `into`, which it has filled, or one that existed. `stand_in`, where there
    is one, brings drawn images when the real ones cannot be had in rehearsal; `drawn` says that `source` itself does.
    """

    name: str
    source: dict[str, Any]
    stand_in: dict[str, Any] | None
    drawn: bool
    root: str | None
    truth_csv: str | None
    gold_csv: str | None
    gold_size: int
    test_size: int
    validation_share: float
    split_seed: int
    max_pixels: int
    shown: Shown

    def __post_init__(self) -> None:
        for key, least in (("gold_size", 2), ("test_size", 0), ("max_pixels", 1), ("split_seed", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"data.{key}", getattr(self, key), f"{least} or more")
        if not 0 < self.validation_share < 1:
            raise ConfigError("data.validation_share", self.validation_share, "between 0 and 1")
