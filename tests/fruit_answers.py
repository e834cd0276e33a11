"""A task about fruit, and what a teacher and people say of its items."""

from typing import Any

from src.task import Annotation, Failure, Panel, TaskSpec

NAMES = ["apple", "orange", "pear", "sweet_pepper"]
TASK = TaskSpec(
    name="fruit", version=1, kind="classify", classes=dict.fromkeys(NAMES, ""),
    aliases={"apples": "apple", "bell_pepper": "sweet_pepper"}, system_prompt="", user_prompt="", metric="accuracy",
)
TEACHER = "teacher/model"
PANEL = Panel((TEACHER,), 2)


def said(label: str | None, n: int = 0, *, item: str = "i", **fields: Any) -> Annotation:
    """What the teacher said in pass n."""
    return Annotation(**({"item": item, "annotator": TEACHER, "prompt_hash": "p", "task": "fruit", "pass_index": n,
                          "label": label, "confidence": 0.9} | fields))


def failed(failure: Failure, n: int = 0, label: str | None = None, **fields: Any) -> Annotation:
    return said(label, n, failure=failure, confidence=None, **fields)


def reviewed(label: str | None, who: str = "ada") -> Annotation:
    return Annotation(item="i", annotator=f"human:{who}", prompt_hash="fruit@1", task="fruit", label=label,
                      failure=None if label else Failure.WITHDRAWN)
