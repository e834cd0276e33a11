"""The settings that users start from, as `conf/` has them: what is measured is what they get."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from src.config import CONF
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.serving.spec import ServingSpec
from src.student.spec import StudentSpec

Kind = TypeVar("Kind")


def labeler(**changes: object) -> LabelerSpec:
    """The default labeler but for what is asked and what it may cost."""
    return _read(LabelerSpec, "labeler/default.yaml", {"max_cost_usd": 1e6, **changes})


def teacher(base_url: str) -> Teacher:
    """The default teacher at another address, where no key is needed."""
    return _read(Teacher, "teacher/gemini_flash.yaml", {"base_url": base_url, "key_env": None})


def serving() -> ServingSpec:
    return _read(ServingSpec, "serving/default.yaml")


def student(**changes: object) -> StudentSpec:
    """The default student but for `changes`, which may be those of an experiment."""
    augment = OmegaConf.load(Path(CONF, "student", "augment", "recipe.yaml"))
    return _read(StudentSpec, "student/mobilenetv3_small.yaml", {"augment": augment}, changes)


def demo_student() -> StudentSpec:
    """As `make demo` trains it."""
    return student(**OmegaConf.load(Path(CONF, "experiment", "demo.yaml")).student)


def _read(kind: type[Kind], file: str, *changes: Mapping[str, object]) -> Kind:
    """Later changes go first; what the file takes from folders below its own is to be among them."""
    values = OmegaConf.load(Path(CONF, file))
    assert isinstance(values, DictConfig)
    values.pop("defaults", None)
    merged = OmegaConf.merge(OmegaConf.structured(kind), values, *changes)
    return cast(Kind, OmegaConf.to_object(merged))
