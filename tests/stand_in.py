"""What the stand-in teacher is set up with: a task with a confusion matrix, and error models from `conf/`."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.labeling.rehearsal import ErrorModel
from src.task import TaskSpec

ERRORS = Path(__file__).parents[1] / "conf/rehearsal/errors"
# CIFAR-100N within five classes, as RECIPE quotes it; repeated here so that the YAML is not tested against itself.
MATRIX = {
    "apple": [429, 2, 11, 16, 14],
    "mushroom": [1, 270, 4, 2, 0],
    "orange": [8, 5, 449, 7, 2],
    "pear": [36, 12, 11, 344, 7],
    "sweet_pepper": [30, 5, 5, 25, 356],
}


def make_task(**changes: Any) -> TaskSpec:
    plurals = {"apples": "apple", "mushrooms": "mushroom", "pears": "pear", "sweetpepper": "sweet_pepper"}
    fields: dict[str, Any] = {
        "name": "fruit",
        "version": 1,
        "kind": "classify",
        "classes": {name: f"a {name}" for name in MATRIX},
        "aliases": plurals,
        "system_prompt": "Answer in JSON.",
        "user_prompt": "One of {{ classes | tojson }}?",
        "metric": "accuracy",
        "confusion": MATRIX,
    }
    return TaskSpec(**(fields | changes))


def make_errors(file: str = "none", **changes: Any) -> ErrorModel:
    """A file's error model with changes, composed and checked as Hydra does it."""
    config = OmegaConf.merge(OmegaConf.structured(ErrorModel), OmegaConf.load(ERRORS / f"{file}.yaml"), changes)
    errors = OmegaConf.to_object(config)
    assert isinstance(errors, ErrorModel)
    return errors
