"""Decisions as a server logs them: answered by the student, escalated, and waiting for a person."""

from datetime import UTC, datetime
from typing import Any

from src.store import Logged

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make(request: int | str = 0, **changes: Any) -> Logged:
    fields: dict[str, Any] = {
        "position": 0, "step": 0, "item": "a" * 64, "task": "fruit", "task_version": 1, "student": "run:" + "b" * 32,
        "client": "shop", "probabilities": (0.9, 0.1), "answer": "pear", "probability": 0.9, "route": "student",
        "escalated": None, "human": None, "created_at": NOON}
    return Logged(request if isinstance(request, str) else f"{request:032x}", **(fields | changes))


def asked(request: int = 0, **changes: Any) -> Logged:
    """Escalated, and nobody has answered yet."""
    given = {"answer": None, "probability": None, "route": "teacher", "escalated": "doubtful"}
    return make(request, **(given | changes))


def person(request: int = 0, **changes: Any) -> Logged:
    return asked(request, **({"route": "human", "human": "teacher_unsure", "step": 1} | changes))
