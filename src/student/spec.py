"""What `conf/student/` and `conf/trainer/` say. Imports no torch, so that labelling alone never loads it."""

from dataclasses import dataclass

from src.errors import ConfigError

ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass
class AugmentSpec:
    """Random views of a training image; the names are those of `student.augment.Augment`."""

    crop_scale: float
    rotation_degrees: float
    horizontal_flip: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ConfigError("student.augment.crop_scale", self.crop_scale, "a share of the area, in (0, 1]")
        for key in ("horizontal_flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"student.augment.{key}", getattr(self, key), "in [0, 1]")


@dataclass
class StudentSpec:
    """A timm network and how it learns.

    `name` is timm's; `weights` a file of pretrained weights, else `pretrained` takes them from the hub. `input_size`
    is in pixels; `warmup_share` is the part of training in which the learning rate rises; `drop_rate` is dropout
    before the classifier; `mixup` the Beta parameter of MixUp, 0 for none; `flip_average` answers with the mean of an
    image's and its mirror image's probabilities, for half the speed. `export` leaves it as ONNX as well.
    """

    name: str
    pretrained: bool
    weights: str | None
    input_size: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    warmup_share: float
    mixup: float
    drop_rate: float
    flip_average: bool
    export: bool
    augment: AugmentSpec

    def __post_init__(self) -> None:
        for key, least in (("input_size", 32), ("batch_size", 2)):
            if getattr(self, key) < least:
                raise ConfigError(f"student.{key}", getattr(self, key), f"{least} or more")
        if not self.learning_rate > 0:
            raise ConfigError("student.learning_rate", self.learning_rate, "more than 0")
        for key in ("weight_decay", "mixup"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"student.{key}", getattr(self, key), "0 or more")
        for key in ("label_smoothing", "warmup_share", "drop_rate"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"student.{key}", getattr(self, key), "in [0, 1)")


@dataclass
class TrainerSpec:
    """How long and on what. `patience` is in epochs without better agreement with the teacher on validation; 0
    trains to the end."""

    max_epochs: int
    patience: int
    accelerator: str

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ConfigError("trainer.max_epochs", self.max_epochs, "1 or more")
        if self.patience < 0:
            raise ConfigError("trainer.patience", self.patience, "0 or more")
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("trainer.accelerator", self.accelerator, f"one of {', '.join(ACCELERATORS)}")
