"""Pictures of fruit, and a job that asks about them: the stand-in teacher, or whoever is at an address."""

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image
from scripted_server import HOW, TASK, make_spec, make_teacher

from src.labeling.ask import Answers, RehearsalSpec, Survey
from src.labeling.rehearsal import ErrorModel
from src.store import Store
from src.task import Item, TaskSpec


def pictures(folder: Path, count: int) -> list[Item]:
    items = []
    for n in range(count):
        path = folder / f"{n}.png"
        Image.new("RGB", (8, 8), (n, 255 - n, 2 * n)).save(path)
        items.append(Item(hashlib.sha256(path.read_bytes()).hexdigest(), path, path.name, truth=TASK.names[n % 2]))
    return items


def put(items: list[Item], store: Store, *, task: TaskSpec = TASK, base_url: str = "http://127.0.0.1:9/v1",
        gold: int = 4, errors: ErrorModel | None = None, teacher: dict[str, Any] | None = None,
        check: Any = lambda annotations: None, **changes: Any) -> Answers:
    """What a survey of the first `gold` items, and then of the others, brings: rehearsed where errors are given."""
    survey = Survey(
        task=task, teachers=[make_teacher(base_url, **(teacher or {}))], arbiter=None, how=HOW,
        spec=make_spec(**changes), store=store, max_pixels=10**6, seed=0, job="",
        rehearsal=RehearsalSpec("always", errors, {}) if errors else None,
    )
    return survey.run(items[:gold], items[gold:], check)
