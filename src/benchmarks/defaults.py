"""The settings that users start from, as `conf/` has them: what is measured is what they get."""

from pathlib import Path
from typing import TypeVar, cast

from omegaconf import OmegaConf

from src.config import CONF
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.serving.spec import ServingSpec

Kind = TypeVar("Kind")


def labeler(**changes: object) -> LabelerSpec:
    """The default labeler but for what is asked and what it may cost."""
    return _read(LabelerSpec, "labeler/default.yaml", max_cost_usd=1e6, **changes)


def teacher(base_url: str) -> Teacher:
    """The default teacher at another address, where no key is needed."""
    return _read(Teacher, "teacher/gemini_flash.yaml", base_url=base_url, key_env=None)


def serving() -> ServingSpec:
    return _read(ServingSpec, "serving/default.yaml")


def _read(kind: type[Kind], file: str, **changes: object) -> Kind:
    values = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(Path(CONF, file)), changes)
    return cast(Kind, OmegaConf.to_object(values))
